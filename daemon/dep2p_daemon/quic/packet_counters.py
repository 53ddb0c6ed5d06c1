"""How many packets of a connection took which way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PacketCounters:
    """Fast is `bulk_send.py` and `bulk_receive.py`, stock is aioquic."""

    sent_fast: int = 0
    sent_stock: int = 0
    received_fast: int = 0
    received_stock: int = 0

    def add(self, other: PacketCounters) -> None:
        """Add another connection's, for a sum."""
        self.sent_fast += other.sent_fast
        self.sent_stock += other.sent_stock
        self.received_fast += other.received_fast
        self.received_stock += other.received_stock

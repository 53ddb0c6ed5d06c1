"""How many QUIC packets of a daemon took the short way: `dep2p_quic_packets_total`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import dep2p

METRIC: Final = "dep2p_quic_packets_total"
AT_LEAST: Final = 0.95
"""Of the packets that carry bulk data."""


@dataclass(frozen=True, kw_only=True)
class PacketPaths:
    """Packets of a daemon so far, or of what went on between two looks."""

    sent_fast: int
    sent_stock: int
    received_fast: int
    received_stock: int

    @classmethod
    async def of(cls, node: dep2p.Node) -> Self:
        """Ask a daemon."""
        counts = {}
        for family in await node.get_metrics(METRIC):
            for sample in family.samples:
                labels = dict(sample.labels)
                counts[f"{labels['direction']}_{labels['path']}"] = int(sample.value)
        return cls(**counts)

    def __sub__(self, other: PacketPaths) -> PacketPaths:
        """What went on since `other`."""
        return PacketPaths(
            sent_fast=self.sent_fast - other.sent_fast,
            sent_stock=self.sent_stock - other.sent_stock,
            received_fast=self.received_fast - other.received_fast,
            received_stock=self.received_stock - other.received_stock,
        )

    @property
    def share_sent(self) -> float:
        """Of who sends the bulk: the receiving end's packets are acknowledgements."""
        return self.sent_fast / max(1, self.sent_fast + self.sent_stock)

    @property
    def share_received(self) -> float:
        """Of who receives it."""
        return self.received_fast / max(1, self.received_fast + self.received_stock)

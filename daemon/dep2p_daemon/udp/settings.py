"""What can be set about the UDP sockets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class UdpSettings:
    """Sizes and bounds of one UDP socket."""

    buffer_bytes: int = 4 * 1024 * 1024
    """Wanted size of the kernel's receive and send buffers; the kernel may grant less."""
    max_datagrams_per_wake: int = 128
    """Datagrams handled before other tasks of the loop get their turn."""
    send_queue_datagrams: int = 512
    """Datagrams held back while the kernel's send buffer is full; more are dropped."""
    offload: bool = True
    """Use the kernel's batching (UDP_GRO, UDP_SEGMENT) where it exists."""

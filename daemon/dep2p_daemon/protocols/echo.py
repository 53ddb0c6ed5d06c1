"""Echo, `/dep2p/echo/1.0.0`: every byte comes back, the half-close after the last one.

For trying a connection out. The next piece is read once the last one is written: a peer that
does not read what comes back is not read from either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.swarm.swarm import Swarm

PROTOCOL: Final = "/dep2p/echo/1.0.0"


async def handle(stream: Stream) -> None:
    """Serve one inbound stream."""
    while data := await stream.read():
        await stream.write(data)
    await stream.aclose()


def register(swarm: Swarm) -> None:
    """Serve echo on `swarm`."""
    swarm.set_handler(PROTOCOL, handle)

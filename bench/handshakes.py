"""One end of bare QUIC handshakes: the transport alone, without daemon, identify and API.

Run as `python -m bench.handshakes listen`, which prints its address, or `... dial ADDRESS`, which
dials and closes as often as each line of standard input says and then prints `done`. Both end
with their standard input. Started by the bench; uses loopback only.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import structlog

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr, parse_dial_target
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.quic.transport import QuicTransport


async def listen(transport: QuicTransport, key: PrivateKey) -> None:
    """Accept whoever comes."""
    listener = await transport.listen(Multiaddr.for_udp("127.0.0.1", 0))
    print(listener.addresses[0].with_peer_id(key.peer_id), flush=True)

    async def accept() -> None:
        while True:
            await listener.accept()

    accepting = asyncio.create_task(accept())
    await asyncio.to_thread(sys.stdin.read)
    accepting.cancel()


async def dial(transport: QuicTransport, text: str) -> None:
    """Dial and close on demand."""
    target = parse_dial_target(text)
    address = target.addresses[0].without_peer_id()
    while line := await asyncio.to_thread(sys.stdin.readline):
        for _ in range(int(line)):
            connection = await transport.dial(address, target.peer)
            await connection.close()
        print("done", flush=True)


async def main() -> None:
    """Be what the command line says."""
    key = PrivateKey.generate()
    async with QuicTransport(key, QuicSettings()) as transport:
        if sys.argv[1] == "listen":
            await listen(transport, key)
        else:
            await dial(transport, sys.argv[2])


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(main())

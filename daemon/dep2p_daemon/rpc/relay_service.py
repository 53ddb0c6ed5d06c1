"""RelayService: the relays through which peers reach this daemon."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from typing_extensions import override

from dep2p.v1 import relay_pb2, relay_service_pb2, relay_service_pb2_grpc
from dep2p_daemon.circuit.events import RelayChanged, RelayHostChanged
from dep2p_daemon.circuit.relay_host import RelayHost
from dep2p_daemon.daemon import Stopping
from dep2p_daemon.errors import DialTimeoutError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import parse_relay_address
from dep2p_daemon.rpc.conversion import relay_host_message, relay_message
from dep2p_daemon.rpc.deadlines import DIAL_SECONDS, MAX_DIAL_SECONDS, seconds_left
from dep2p_daemon.rpc.interceptors import stopping_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.rpc.interceptors import Context


class RelayService(relay_service_pb2_grpc.RelayServiceServicer):
    """Serves `dep2p.v1.RelayService`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @override
    async def ConnectRelay(
        self, request: relay_service_pb2.ConnectRelayRequest, context: Context
    ) -> relay_pb2.Relay:
        address: Multiaddr | RelayHost
        if RelayHost.looks_like_one(request.address):
            address = RelayHost.parse(request.address)
        else:
            address = parse_relay_address(request.address)
        seconds = seconds_left(context, default=DIAL_SECONDS, maximum=MAX_DIAL_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                return relay_message(await self._daemon.relay_supervisor.connect(address))
        except TimeoutError:
            raise DialTimeoutError(
                f"no reservation at the relay {address} within {seconds:.1f} s",
                reason="RELAY_TIMEOUT",
                remedy="check that the relay runs, that the address is right, and that its "
                f"firewall or cloud security group lets {_port(address)} in",
                address=address,
                waited_seconds=f"{seconds:.1f}",
            ) from None

    @override
    async def DisconnectRelay(
        self, request: relay_service_pb2.DisconnectRelayRequest, context: Context
    ) -> relay_service_pb2.DisconnectRelayResponse:
        relay: PeerId | RelayHost
        if RelayHost.looks_like_one(request.peer_id):
            relay = RelayHost.parse(request.peer_id)
        else:
            relay = PeerId.parse(request.peer_id)
        peer = await self._daemon.relay_supervisor.disconnect(relay)
        return relay_service_pb2.DisconnectRelayResponse(peer_id="" if peer is None else str(peer))

    @override
    async def ListRelays(
        self, request: relay_service_pb2.ListRelaysRequest, context: Context
    ) -> relay_service_pb2.ListRelaysResponse:
        relays = self._relays()
        relays.sort(key=lambda relay: relay.peer_id)
        return relay_service_pb2.ListRelaysResponse(relays=relays)

    @override
    async def WatchRelays(
        self, request: relay_service_pb2.WatchRelaysRequest, context: Context
    ) -> AsyncIterator[relay_service_pb2.WatchRelaysResponse]:
        response = relay_service_pb2.WatchRelaysResponse
        with self._daemon.events.subscribe() as subscription:
            for relay in self._relays():
                yield response(relay=relay)
            while True:
                event = await subscription.next()
                if isinstance(event, Stopping):
                    raise stopping_error()
                if subscription.take_lost():
                    # Which relays changed is lost too; their state now is not.
                    for relay in self._relays():
                        yield response(relay=relay)
                if isinstance(event, RelayChanged):
                    yield response(relay=relay_message(event.status))
                elif isinstance(event, RelayHostChanged):
                    yield response(relay=relay_host_message(event.status))

    def _relays(self) -> list[relay_pb2.Relay]:
        """All relays as they are now, those that are not found yet too."""
        daemon = self._daemon
        found = [relay_message(status) for status in daemon.relay_client.relays]
        return [relay_host_message(host) for host in daemon.relay_supervisor.hosts] + found


def _port(relay: Multiaddr | RelayHost) -> str:
    return f"port {relay.port}" if relay.port else "its port"

"""The daemon's API as methods: `async with dep2p.connect() as node: await node.get_node()`.

What methods return are the API's own messages (`dep2p.v1`). All of it belongs to the event loop
that made it; nothing runs in threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from dep2p.calls import Response, responses, unary
from dep2p.listener import Listener
from dep2p.socket_path import default_socket_path
from dep2p.stream import Stream, open_stream
from dep2p.v1 import (
    node_service_pb2,
    node_service_pb2_grpc,
    peer_service_pb2,
    peer_service_pb2_grpc,
    relay_service_pb2,
    relay_service_pb2_grpc,
    stream_service_pb2,
    stream_service_pb2_grpc,
)

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Iterable

    from dep2p.v1.event_pb2 import Event
    from dep2p.v1.explanation_pb2 import PeerExplanation
    from dep2p.v1.peer_pb2 import Connection, Peer
    from dep2p.v1.relay_pb2 import Relay

Policy = Literal["auto", "direct", "relayed"]
"""Which paths a dial may use."""

CALL_SECONDS: Final = 10.0
"""For a call that asks the daemon and nobody else."""
DIAL_SECONDS: Final = 30.0
"""For a call that may have to dial a peer."""
_OPENING_MARGIN: Final = 5.0
"""The daemon's own deadline for opening a stream comes first, and says what was tried."""
_PAGE: Final = 1000

_POLICIES: Final[dict[Policy, peer_service_pb2.DialPolicy.ValueType]] = {
    "auto": peer_service_pb2.DIAL_POLICY_AUTO,
    "direct": peer_service_pb2.DIAL_POLICY_DIRECT,
    "relayed": peer_service_pb2.DIAL_POLICY_RELAYED,
}

_CHANNEL_OPTIONS: Final = (
    # With the probe, gRPC buffers megabytes for a stream that nobody reads.
    ("grpc.http2.bdp_probe", 0),
    # Each channel its own connection: its failures and its back-off are nobody else's.
    ("grpc.use_local_subchannel_pool", 1),
    # A daemon that comes back is found at once: looking for a local socket costs nothing.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A repeated Dial or OpenStream is the caller's decision.
    ("grpc.enable_retries", 0),
)


def connect(socket_path: str | os.PathLike[str] | None = None) -> Node:
    """Return a client of the daemon at `socket_path`; use it with `async with`.

    Nothing is sent before the first call: that raises DaemonNotReachableError when there is no
    daemon. Without a path it is $DEP2P_SOCKET, else the user's own (`default_socket_path`).
    """
    return Node(default_socket_path() if socket_path is None else Path(socket_path))


class Node:
    """A daemon's API. Made by `connect`; an async context manager that owns the connections.

    Every method raises `dep2p.errors.Dep2pError`s; `timeout` is in seconds.
    """

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path.absolute()
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Self:
        channel = self._channel()
        self._node = node_service_pb2_grpc.NodeServiceStub(channel)
        self._peers = peer_service_pb2_grpc.PeerServiceStub(channel)
        self._relays = relay_service_pb2_grpc.RelayServiceStub(channel)
        # Data has a connection of its own, so that no answer queues behind it.
        self._streams = stream_service_pb2_grpc.StreamServiceStub(self._channel())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        while self._channels:
            await self._channels.pop().close()

    def _channel(self) -> grpc.aio.Channel:
        target = f"unix:{quote(str(self.socket_path))}"
        channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._channels.append(channel)
        return channel

    # NodeService

    async def get_node(self, *, timeout: float = CALL_SECONDS) -> node_service_pb2.Node:
        """Tell who the daemon is and how it does."""
        request = node_service_pb2.GetNodeRequest()
        return await unary(self._node.GetNode, request, timeout=timeout, socket=self.socket_path)

    def watch_events(self, *types: str, skip_snapshot: bool = False) -> AsyncGenerator[Event, None]:
        """Yield the current state as snapshot events, then every change, until the daemon ends.

        `types` selects by name, such as "connection_opened". An event `lost` says how many
        events this watcher was too slow for.
        """
        request = node_service_pb2.WatchEventsRequest(types=types, skip_snapshot=skip_snapshot)
        return responses(
            lambda: self._node.WatchEvents(request),
            lambda response: response.event,
            self.socket_path,
        )

    def check_network(self) -> AsyncGenerator[node_service_pb2.CheckNetworkResponse, None]:
        """Yield what is being measured (`progress`), then the `report`; up to half a minute."""
        request = node_service_pb2.CheckNetworkRequest()
        return responses(lambda: self._node.CheckNetwork(request), _itself, self.socket_path)

    async def get_metrics(
        self, prefix: str = "", *, timeout: float = CALL_SECONDS
    ) -> list[node_service_pb2.MetricFamily]:
        """Tell the daemon's counters and gauges whose names begin with `prefix`."""
        request = node_service_pb2.GetMetricsRequest(prefix=prefix)
        response = await unary(
            self._node.GetMetrics, request, timeout=timeout, socket=self.socket_path
        )
        return list(response.families)

    async def stop(self, *, timeout: float = CALL_SECONDS) -> None:
        """End the daemon in order; returns when it has begun to."""
        request = node_service_pb2.StopRequest()
        await unary(self._node.Stop, request, timeout=timeout, socket=self.socket_path)

    # PeerService

    async def dial(
        self,
        peer: str,
        *,
        policy: Policy = "auto",
        force_new: bool = False,
        timeout: float = DIAL_SECONDS,
    ) -> Connection:
        """Connect to a peer id or a multiaddr with /p2p, or return the connection there is.

        Raises:
            InvalidArgumentError: the address lacks a part; the remedy shows the right form.
            NoReservationError: the target peer is not connected to the relay.
            UnreachableError: tried and failed; metadata lists every address.
            DeadlineError: no address answered within `timeout`.
        """
        request = peer_service_pb2.DialRequest(
            peer=peer, policy=_POLICIES[policy], force_new=force_new
        )
        response = await unary(self._peers.Dial, request, timeout=timeout, socket=self.socket_path)
        return response.connection

    async def dial_direct(
        self,
        peer: str,
        *,
        wait: float,
        policy: Policy = "auto",
        force_new: bool = False,
        timeout: float = DIAL_SECONDS,
    ) -> peer_service_pb2.DialResponse:
        """Dial, and if the path is relayed wait up to `wait` seconds for a direct one.

        The answer has the connection, and `direct_failure` where it is relayed still. `timeout`
        is the dial's own. Raises as `dial`.
        """
        request = peer_service_pb2.DialRequest(
            peer=peer, policy=_POLICIES[policy], force_new=force_new, wait_direct=_duration(wait)
        )
        return await unary(
            self._peers.Dial, request, timeout=timeout + wait, socket=self.socket_path
        )

    async def disconnect(
        self, peer_id: str, connection_id: str = "", *, timeout: float = CALL_SECONDS
    ) -> int:
        """Close the connections to a peer, or one of them; returns how many were closed."""
        request = peer_service_pb2.DisconnectRequest(peer_id=peer_id, connection_id=connection_id)
        response = await unary(
            self._peers.Disconnect, request, timeout=timeout, socket=self.socket_path
        )
        return response.closed_count

    async def list_peers(
        self, *, include_known: bool = False, timeout: float = CALL_SECONDS
    ) -> list[Peer]:
        """List the connected peers, or all that are known; sorted by peer id."""
        peers: list[Peer] = []
        request = peer_service_pb2.ListPeersRequest(include_known=include_known, page_size=_PAGE)
        while True:
            page = await unary(
                self._peers.ListPeers, request, timeout=timeout, socket=self.socket_path
            )
            peers += page.peers
            if not page.next_page_token:
                return peers
            request.page_token = page.next_page_token

    async def get_peer(self, peer_id: str, *, timeout: float = CALL_SECONDS) -> Peer:
        """Tell about one peer. Raises NotFoundError for one that is not known."""
        request = peer_service_pb2.GetPeerRequest(peer_id=peer_id)
        return await unary(self._peers.GetPeer, request, timeout=timeout, socket=self.socket_path)

    async def explain_peer(self, peer_id: str, *, timeout: float = CALL_SECONDS) -> PeerExplanation:
        """Tell why a peer is reached directly, through a relay, or not at all."""
        request = peer_service_pb2.ExplainPeerRequest(peer_id=peer_id)
        return await unary(
            self._peers.ExplainPeer, request, timeout=timeout, socket=self.socket_path
        )

    async def list_connections(
        self, peer_id: str = "", *, timeout: float = CALL_SECONDS
    ) -> list[Connection]:
        """List the open connections, of one peer or of all; oldest first."""
        connections: list[Connection] = []
        request = peer_service_pb2.ListConnectionsRequest(peer_id=peer_id, page_size=_PAGE)
        while True:
            page = await unary(
                self._peers.ListConnections, request, timeout=timeout, socket=self.socket_path
            )
            connections += page.connections
            if not page.next_page_token:
                return connections
            request.page_token = page.next_page_token

    def ping(
        self, peer: str, *, count: int = 0, interval: float | None = None
    ) -> AsyncGenerator[peer_service_pb2.PingResponse, None]:
        """Yield round trips, `count` of them (0: until left), one every `interval` seconds (1)."""
        request = peer_service_pb2.PingRequest(peer=peer, count=count)
        if interval is not None:
            request.interval.CopyFrom(_duration(interval))
        return responses(lambda: self._peers.Ping(request), _itself, self.socket_path)

    def measure_throughput(
        self, peer: str, *, upload_bytes: int = 0, download_bytes: int = 0
    ) -> AsyncGenerator[peer_service_pb2.MeasureThroughputResponse, None]:
        """Yield reports once a second while data moves; the last one has `final` set."""
        request = peer_service_pb2.MeasureThroughputRequest(
            peer=peer, upload_bytes=upload_bytes, download_bytes=download_bytes
        )
        return responses(lambda: self._peers.MeasureThroughput(request), _itself, self.socket_path)

    # RelayService

    async def connect_relay(self, address: str, *, timeout: float = DIAL_SECONDS) -> Relay:
        """Reserve a slot at the relay with this address (with /p2p); kept until disconnected."""
        request = relay_service_pb2.ConnectRelayRequest(address=address)
        return await unary(
            self._relays.ConnectRelay, request, timeout=timeout, socket=self.socket_path
        )

    async def disconnect_relay(self, relay: str, *, timeout: float = CALL_SECONDS) -> str:
        """Give the reservation up and forget the relay.

        `relay` is its peer id, or the host:port it was named by. Returns its peer id, which is
        empty when it had not been found yet.
        """
        request = relay_service_pb2.DisconnectRelayRequest(peer_id=relay)
        response = await unary(
            self._relays.DisconnectRelay, request, timeout=timeout, socket=self.socket_path
        )
        return response.peer_id

    async def list_relays(self, *, timeout: float = CALL_SECONDS) -> list[Relay]:
        """List the relays with their state; sorted by peer id."""
        request = relay_service_pb2.ListRelaysRequest()
        response = await unary(
            self._relays.ListRelays, request, timeout=timeout, socket=self.socket_path
        )
        return list(response.relays)

    def watch_relays(self) -> AsyncGenerator[Relay, None]:
        """Yield every relay, then each change."""
        request = relay_service_pb2.WatchRelaysRequest()
        return responses(
            lambda: self._relays.WatchRelays(request),
            lambda response: response.relay,
            self.socket_path,
        )

    # StreamService

    async def open_stream(
        self,
        peer: str,
        protocols: Iterable[str],
        *,
        direct_only: bool = False,
        timeout: float = DIAL_SECONDS,
    ) -> Stream:
        """Open a stream to a peer, dialling it where needed; `protocols` are best first.

        Raises:
            ProtocolNotSupportedError: the peer serves none of the protocols.
            and what `dial` raises.
        """
        if isinstance(protocols, str):
            raise TypeError("protocols are several: write [protocol]")
        request = stream_service_pb2.OpenStreamRequest(
            open=stream_service_pb2.OpenStreamRequest.Open(
                peer=peer,
                protocols=protocols,
                direct_only=direct_only,
                timeout=_duration(timeout),
            )
        )
        return await open_stream(
            self._streams.OpenStream(),
            request,
            timeout=timeout + _OPENING_MARGIN,
            socket=self.socket_path,
        )

    def listen(
        self,
        protocol: str,
        *,
        allowed_peers: Iterable[str] = (),
        timeout: float = CALL_SECONDS,
    ) -> Listener:
        """Serve a protocol, for `allowed_peers` only if there are any; use with `async with`.

        Entering raises AlreadyExistsError when another program serves it.
        """
        request = stream_service_pb2.ListenRequest(protocol=protocol, allowed_peers=allowed_peers)
        return Listener(self._streams, request, timeout=timeout, socket=self.socket_path)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _itself(response: Response) -> Response:
    return response

"""PeerService: connects to peers, tells about them, measures the way to them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from dep2p.v1 import explanation_pb2, peer_pb2, peer_service_pb2, peer_service_pb2_grpc
from dep2p_daemon.errors import (
    InvalidArgumentError,
    NotFoundError,
    ProtocolNotSupportedError,
)
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import parse_dial_target
from dep2p_daemon.nat.wait_direct import DirectFailure, wait_direct
from dep2p_daemon.protocols import perf, ping
from dep2p_daemon.rpc.conversion import connection_message, path_of, peer_message
from dep2p_daemon.rpc.deadlines import DIAL_SECONDS, MAX_DIAL_SECONDS, seconds_left
from dep2p_daemon.rpc.explanation import explanation
from dep2p_daemon.rpc.pages import page
from dep2p_daemon.swarm.dialing import DialPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.muxed import Connection
    from dep2p_daemon.rpc.interceptors import Context

PING_INTERVAL: Final = 1.0
"""Seconds between pings whose caller names no interval."""

_POLICIES: Final = {
    peer_service_pb2.DIAL_POLICY_UNSPECIFIED: DialPolicy.AUTO,
    peer_service_pb2.DIAL_POLICY_AUTO: DialPolicy.AUTO,
    peer_service_pb2.DIAL_POLICY_DIRECT: DialPolicy.DIRECT,
    peer_service_pb2.DIAL_POLICY_RELAYED: DialPolicy.RELAYED,
}


class PeerService(peer_service_pb2_grpc.PeerServiceServicer):
    """Serves `dep2p.v1.PeerService`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._swarm = daemon.swarm

    @override
    async def Dial(
        self, request: peer_service_pb2.DialRequest, context: Context
    ) -> peer_service_pb2.DialResponse:
        policy = _POLICIES.get(request.policy)
        if policy is None:
            raise InvalidArgumentError(
                f"there is no dial policy {request.policy}",
                reason="DIAL_POLICY_UNKNOWN",
                remedy="use auto, direct or relayed",
            )
        connection = await self._dial(
            request.peer, context, policy=policy, force_new=request.force_new
        )
        response = peer_service_pb2.DialResponse()
        if request.HasField("wait_direct") and connection.relayed:
            wait = request.wait_direct.ToNanoseconds() / 1e9
            left = seconds_left(context, default=wait, maximum=MAX_DIAL_SECONDS)
            found = await wait_direct(
                self._swarm,
                self._daemon.hole_puncher,
                connection.remote_peer,
                max(0.0, min(wait, left)),
            )
            if isinstance(found, DirectFailure):
                response.direct_failure.reason = found.reason.value
                response.direct_failure.message = found.message
                response.direct_failure.remedy = found.remedy
            else:
                connection = found
        response.connection.CopyFrom(connection_message(connection))
        return response

    async def _dial(
        self,
        peer: str,
        context: Context,
        *,
        policy: DialPolicy = DialPolicy.AUTO,
        force_new: bool = False,
    ) -> Connection:
        target = parse_dial_target(peer)
        seconds = seconds_left(context, default=DIAL_SECONDS, maximum=MAX_DIAL_SECONDS)
        return await self._swarm.dial(
            target.peer, target.addresses, policy=policy, force_new=force_new, timeout=seconds
        )

    @override
    async def Disconnect(
        self, request: peer_service_pb2.DisconnectRequest, context: Context
    ) -> peer_service_pb2.DisconnectResponse:
        count = await self._swarm.disconnect(
            PeerId.parse(request.peer_id), request.connection_id or None
        )
        return peer_service_pb2.DisconnectResponse(closed_count=count)

    @override
    async def ListPeers(
        self, request: peer_service_pb2.ListPeersRequest, context: Context
    ) -> peer_service_pb2.ListPeersResponse:
        peers = set(self._swarm.connected_peers())
        if request.include_known:
            peers.update(self._daemon.peerstore.peers())
        chosen, next_token = page(peers, key=str, size=request.page_size, token=request.page_token)
        return peer_service_pb2.ListPeersResponse(
            peers=[peer_message(self._daemon, peer) for peer in chosen],
            next_page_token=next_token,
        )

    @override
    async def GetPeer(
        self, request: peer_service_pb2.GetPeerRequest, context: Context
    ) -> peer_pb2.Peer:
        peer = PeerId.parse(request.peer_id)
        if self._daemon.peerstore.get(peer) is None and not self._swarm.connections(peer):
            raise NotFoundError(
                f"nothing is known of {peer}",
                reason="PEER_NOT_FOUND",
                remedy="dial it with an address, or see dep2pctl peers",
                peer=peer,
            )
        return peer_message(self._daemon, peer)

    @override
    async def ExplainPeer(
        self, request: peer_service_pb2.ExplainPeerRequest, context: Context
    ) -> explanation_pb2.PeerExplanation:
        return explanation(self._daemon, PeerId.parse(request.peer_id))

    @override
    async def ListConnections(
        self, request: peer_service_pb2.ListConnectionsRequest, context: Context
    ) -> peer_service_pb2.ListConnectionsResponse:
        peer = PeerId.parse(request.peer_id) if request.peer_id else None
        chosen, next_token = page(
            self._swarm.connections(peer),
            key=_by_age,
            size=request.page_size,
            token=request.page_token,
        )
        return peer_service_pb2.ListConnectionsResponse(
            connections=[connection_message(connection) for connection in chosen],
            next_page_token=next_token,
        )

    @override
    async def Ping(
        self, request: peer_service_pb2.PingRequest, context: Context
    ) -> AsyncIterator[peer_service_pb2.PingResponse]:
        interval = PING_INTERVAL
        if request.HasField("interval"):
            interval = request.interval.ToNanoseconds() / 1e9
        if request.count < 0 or interval < 0:
            raise InvalidArgumentError(
                "a negative count or interval",
                reason="PING_INVALID",
                remedy="use a count of 1 or more, or 0 to go on until cancelled",
            )
        connection = await self._dial(request.peer, context)
        sequence = 0
        while True:
            async with aclosing(ping.ping(self._swarm, connection)) as round_trips:
                async for rtt in round_trips:
                    sequence += 1
                    yield peer_service_pb2.PingResponse(
                        sequence=sequence,
                        rtt_ms=rtt * 1e3,
                        path=path_of(connection),
                        remote_address=str(connection.remote_address),
                    )
                    if sequence == request.count:
                        return
                    await asyncio.sleep(interval)
                    best = self._swarm.best_connection(connection.remote_peer)
                    if best is not None and best is not connection:
                        connection = best  # the way that new streams take has changed
                        break

    @override
    async def MeasureThroughput(
        self, request: peer_service_pb2.MeasureThroughputRequest, context: Context
    ) -> AsyncIterator[peer_service_pb2.MeasureThroughputResponse]:
        if not request.upload_bytes and not request.download_bytes:
            raise InvalidArgumentError(
                "nothing to move",
                reason="NOTHING_TO_MEASURE",
                remedy="set upload_bytes, download_bytes, or both",
            )
        connection = await self._dial(request.peer, context)
        try:
            stream = await self._swarm.open_stream(
                connection.remote_peer, [perf.PROTOCOL], connection=connection
            )
        except ProtocolNotSupportedError as error:
            raise ProtocolNotSupportedError(
                f"{connection.remote_peer} does not serve {perf.PROTOCOL}",
                remedy="turn it on there: in its configuration, [perf] enabled = true",
                **error.metadata,
            ) from error
        reports = perf.measure(
            stream, upload_bytes=request.upload_bytes, download_bytes=request.download_bytes
        )
        async with aclosing(reports):
            async for report in reports:
                yield peer_service_pb2.MeasureThroughputResponse(
                    elapsed_seconds=report.elapsed,
                    uploaded_bytes=report.uploaded,
                    downloaded_bytes=report.downloaded,
                    final=report.final,
                    path=path_of(connection),
                    upload_seconds=report.upload_time or 0.0,
                    download_seconds=report.download_time or 0.0,
                )


def _by_age(connection: Connection) -> str:
    """Sort key: ids count up, so their numbers at one width sort by age."""
    return connection.id[1:].zfill(20)

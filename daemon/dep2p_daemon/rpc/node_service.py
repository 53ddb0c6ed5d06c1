"""NodeService: who this daemon is, what happens in it, and its end."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from dep2p.v1 import event_pb2, node_service_pb2, node_service_pb2_grpc
from dep2p_daemon import __version__
from dep2p_daemon.daemon import Stopping
from dep2p_daemon.errors import InvalidArgumentError, ResourceLimitError
from dep2p_daemon.rpc.conversion import event_message, snapshot, timestamp
from dep2p_daemon.rpc.metrics_conversion import metrics_message
from dep2p_daemon.rpc.network_conversion import report_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from dep2p_daemon.daemon import Daemon
    from dep2p_daemon.rpc.interceptors import Context

MAX_WATCHERS: Final = 64
"""Watches of events and relays at once; ours."""

EVENT_TYPES: Final = frozenset(
    field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["event"].fields
)
ALWAYS_SENT: Final = frozenset({"lost", "stopping"})
"""About the watch itself, so not subject to its selection."""


class NodeService(node_service_pb2_grpc.NodeServiceServicer):
    """Serves `dep2p.v1.NodeService`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._watchers = 0

    @override
    async def GetNode(
        self, request: node_service_pb2.GetNodeRequest, context: Context
    ) -> node_service_pb2.Node:
        daemon = self._daemon
        connections = daemon.swarm.connections()
        relay = daemon.relay_server
        return node_service_pb2.Node(
            peer_id=str(daemon.peer_id),
            addresses=[str(address) for address in daemon.addresses()],
            listen_addresses=[str(address) for address in daemon.swarm.listen_addresses],
            protocols=daemon.swarm.protocols,
            version=__version__,
            preset=daemon.config.node.preset,
            start_time=timestamp(daemon.started_at),
            connection_count=len(connections),
            peer_count=len(daemon.swarm.connected_peers()),
            stream_count=sum(len(connection.streams) for connection in connections),
            relay_server_enabled=relay is not None,
            reservation_count=0 if relay is None else len(relay.reservations),
            circuit_count=0 if relay is None else len(relay.circuits),
            data_dir=str(daemon.config.node.data_dir),
            process_id=os.getpid(),
        )

    @override
    async def WatchEvents(
        self, request: node_service_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[node_service_pb2.WatchEventsResponse]:
        wanted = _selection(request.types)
        response = node_service_pb2.WatchEventsResponse
        if self._watchers >= MAX_WATCHERS:
            raise ResourceLimitError(
                f"{MAX_WATCHERS} programs watch already, which is the most",
                remedy="end a watch that is not needed",
                limit="max_watchers",
            )
        self._watchers += 1
        try:
            # Subscribed and looked at in one turn of the loop: nothing is missed or told twice.
            with self._daemon.events.subscribe() as subscription:
                if not request.skip_snapshot:
                    for message in snapshot(self._daemon):
                        if message.WhichOneof("event") in wanted:
                            yield response(event=message)
                while True:
                    event = await subscription.next()
                    if lost := subscription.take_lost():
                        yield response(event=_lost(lost))
                    told = event_message(self._daemon, event)
                    if told is not None and told.WhichOneof("event") in wanted:
                        yield response(event=told)
                    if isinstance(event, Stopping):
                        return
        finally:
            self._watchers -= 1

    @override
    async def CheckNetwork(
        self, request: node_service_pb2.CheckNetworkRequest, context: Context
    ) -> AsyncIterator[node_service_pb2.CheckNetworkResponse]:
        async with aclosing(self._daemon.netcheck.run()) as steps:
            async for step in steps:
                if isinstance(step, str):
                    yield node_service_pb2.CheckNetworkResponse(progress=step)
                else:
                    yield node_service_pb2.CheckNetworkResponse(report=report_message(step))

    @override
    async def GetMetrics(
        self, request: node_service_pb2.GetMetricsRequest, context: Context
    ) -> node_service_pb2.GetMetricsResponse:
        return metrics_message(self._daemon.metrics.registry.collect(), request.prefix)

    @override
    async def Stop(
        self, request: node_service_pb2.StopRequest, context: Context
    ) -> node_service_pb2.StopResponse:
        # In the next turn of the loop, so that the answer is on its way before the end begins.
        asyncio.get_running_loop().call_soon(self._daemon.request_stop, "request")
        return node_service_pb2.StopResponse()


def _selection(types: Iterable[str]) -> frozenset[str]:
    names = frozenset(types) or EVENT_TYPES
    if unknown := sorted(names - EVENT_TYPES):
        raise InvalidArgumentError(
            f"there is no event of the type {unknown[0]!r}",
            reason="EVENT_TYPE_UNKNOWN",
            remedy=f"the types are: {', '.join(sorted(EVENT_TYPES))}",
            type=unknown[0],
        )
    return names | ALWAYS_SENT


def _lost(count: int) -> event_pb2.Event:
    return event_pb2.Event(time=timestamp(time.time()), lost=event_pb2.Lost(count=count))

"""A muxed connection of Yamux on a secured channel: the asyncio shell of `yamux.py`.

Two tasks, both in the owner's task group: one reads and dispatches, one writes what is due.
Whatever ends one of them ends this connection and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import structlog
from typing_extensions import override

from dep2p_daemon.errors import (
    ConnectionClosedError,
    Dep2pError,
    ProtocolViolationError,
    StreamResetError,
)
from dep2p_daemon.muxed import Buffer, CloseCode, Connection, Direction, ReceiveMemory, Stream
from dep2p_daemon.tcp import yamux_events as events
from dep2p_daemon.tcp.waiters import Waiters
from dep2p_daemon.tcp.yamux import YAMUX_PROTOCOL, YamuxSession
from dep2p_daemon.tcp.yamux_frame import GoAwayCode
from dep2p_daemon.tcp.yamux_stream import YamuxStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import CircuitLimits
    from dep2p_daemon.tcp.secure_channel import SecureChannel
    from dep2p_daemon.tcp.settings import YamuxSettings

OUTPUT_BATCH: Final = 256 * 1024
"""Bytes sealed and handed to the channel at a time."""
MAX_CONTROL_BACKLOG: Final = 64 * 1024
"""Bytes of answers (pings, refusals, credit) that may wait; then we stop reading the peer that
causes them and does not take them."""
RTT_SMOOTHING: Final = 1 / 8
"""Weight of a new sample (RFC 6298)."""

_log = structlog.get_logger(__name__)


class YamuxConnection(Connection):
    """A `Connection` over Yamux. Made by `upgrade`, which starts its tasks."""

    def __init__(
        self,
        channel: SecureChannel,
        *,
        local_peer: PeerId,
        direction: Direction,
        local_address: Multiaddr,
        remote_address: Multiaddr,
        settings: YamuxSettings,
        memory: ReceiveMemory,
        relay: PeerId | None = None,
        limits: CircuitLimits | None = None,
    ) -> None:
        super().__init__(
            local_peer=local_peer,
            remote_peer=channel.remote_peer,
            remote_key=channel.remote_key,
            direction=direction,
            local_address=local_address,
            remote_address=remote_address,
            security="/noise",
            muxer=YAMUX_PROTOCOL,
            relay=relay,
            limits=limits,
        )
        self._channel = channel
        self._settings = settings
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._session = YamuxSession(
            client=direction is Direction.OUTBOUND,
            settings=settings,
            now=self._loop.time(),
            may_grow=lambda: memory.allows_growth,
        )
        self._streams: dict[int, YamuxStream] = {}
        self._accepting: deque[YamuxStream] = deque()
        self._accept_waiters = Waiters()
        self._open_waiters = Waiters()
        self._output_due: asyncio.Future[None] | None = None
        self._output_done: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._buffered = 0
        self._refusal_logged = False
        self._close_error: ConnectionClosedError | None = None
        self._error: ConnectionClosedError | None = None
        self._ended = asyncio.Event()
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.DataReceived: self._on_data,
            events.StreamOpened: self._on_opened,
            events.StreamEnded: self._on_stream_ended,
            events.StreamReset: self._on_stream_reset,
            events.StreamAcknowledged: self._on_acknowledged,
            events.StreamRefused: self._on_refused,
            events.GoAwayReceived: self._on_go_away,
            events.RoundTripMeasured: self._on_round_trip,
        }

    def start(self, task_group: asyncio.TaskGroup) -> None:
        """Start reading and writing, as tasks of `task_group`."""
        self._on_timer()
        for work in (self._read, self._write):
            task = task_group.create_task(self._guard(work))
            task.add_done_callback(self._on_task_done)
            self._tasks.append(task)

    @property
    @override
    def heard_at(self) -> float | None:
        return self._session.heard_at

    @property
    @override
    def streams(self) -> tuple[Stream, ...]:
        return tuple(stream for stream in self._streams.values() if not stream.closed)

    @property
    @override
    def is_closed(self) -> bool:
        return (
            self._error is not None
            or self._close_error is not None
            or self._session.remote_gone_away
        )

    @override
    async def open_stream(self) -> Stream:
        while True:
            if (error := self._error or self._close_error) is not None:
                raise error
            if self._session.can_open or self._session.remote_gone_away:
                break
            await self._open_waiters.wait()
        stream_id = self._session.open(self._loop.time())
        stream = self._streams[stream_id] = YamuxStream(self, stream_id, Direction.OUTBOUND)
        self._flush()
        return stream

    @override
    async def accept_stream(self) -> Stream:
        while not self._accepting:
            if self._error is not None:
                raise self._error
            await self._accept_waiters.wait()
        stream = self._accepting.popleft()
        self._session.accept(stream.id)
        self._flush()
        return stream

    @override
    async def close(self, code: int = CloseCode.NONE, message: str = "") -> None:
        # Yamux has no room for the code and the message: they stay on this side.
        reason = CloseCode.SUPPLANTED.name if code == CloseCode.SUPPLANTED else None
        error = ConnectionClosedError(message or "closed by this node", code=code, reason=reason)
        try:
            self._begin_close(error, GoAwayCode.NORMAL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.close_timeout):
                    await self._ended.wait()
        finally:
            self._end(error)

    @override
    async def wait_closed(self) -> ConnectionClosedError:
        await self._ended.wait()
        assert self._error is not None
        return self._error

    # What streams ask for.

    def enqueue(self, stream_id: int, data: Buffer) -> int:
        """Queue bytes to be sent; return how many they are."""
        if isinstance(data, memoryview) and type(data.obj) is bytes and data.c_contiguous:
            data = data.cast("B")
        elif type(data) is not bytes:
            # The caller may change it once `write` has returned.
            data = bytes(data)
        self._session.write(stream_id, data)
        self.traffic.sent += len(data)
        self._flush()
        return len(data)

    @property
    def send_buffer_full(self) -> bool:
        """Whether writers have to wait."""
        return self._session.queued > self._settings.send_buffer

    def finish(self, stream: YamuxStream) -> None:
        """Send the end of our half of a stream."""
        self._session.finish(stream.id, self._loop.time())
        self.retire(stream)
        self._flush()

    def reset(self, stream: YamuxStream) -> None:
        """Reset a stream."""
        self._session.reset(stream.id)
        self.retire(stream)
        self._flush()

    def ignore(self, stream: YamuxStream) -> None:
        """Drop what still arrives on a stream."""
        self._session.ignore(stream.id, self._loop.time())
        self._arm_timer()

    def retire(self, stream: YamuxStream) -> None:
        """Forget a stream whose halves have both ended."""
        if stream.closed:
            self._streams.pop(stream.id, None)

    def consume(self, stream: YamuxStream, count: int) -> None:
        """A stream's reader took bytes."""
        if self._error is None:
            self._count_buffered(-count)
            self._session.consume(stream.id, count, self._loop.time())
            self._flush()

    # The tasks.

    async def _read(self) -> ConnectionClosedError:
        session, handlers = self._session, self._handlers
        while True:
            plaintexts = await self._channel.read_plaintexts()
            if not plaintexts:
                return await self._on_channel_end()
            now = self._loop.time()
            try:
                for plaintext in plaintexts:
                    for event in session.receive(plaintext, now):
                        handlers[type(event)](event)
            except ProtocolViolationError as violation:
                await self._on_violation(violation)
                raise
            self._flush()
            while session.control_backlog > MAX_CONTROL_BACKLOG:
                self._output_done = self._loop.create_future()
                await self._output_done
            # A busy socket never makes us wait: let the readers and the others have their turn.
            await asyncio.sleep(0)

    async def _write(self) -> None:
        session = self._session
        while True:
            parts = session.output(OUTPUT_BATCH)
            for stream_id in session.take_drained():
                if (stream := self._streams.get(stream_id)) is not None:
                    stream.on_drained()
            if parts:
                await self._channel.write_parts(parts)
                _wake(self._output_done)
            elif self._close_error is not None:
                await self._channel.close_write()
                return
            else:
                self._output_due = self._loop.create_future()
                await self._output_due

    async def _guard(self, work: Callable[[], Awaitable[ConnectionClosedError | None]]) -> None:
        """Run a task so that its failure ends this connection only."""
        try:
            error = await work()
        except ConnectionClosedError as closed:
            error = closed
        except Dep2pError as failure:
            _log.info(
                "connection failed",
                peer=str(self.remote_peer),
                address=str(self.remote_address),
                reason=failure.reason,
                error=failure.message,
            )
            error = ConnectionClosedError(failure.message, reason=failure.reason, remote=True)
        except Exception:
            _log.exception("connection failed by a defect", peer=str(self.remote_peer))
            error = ConnectionClosedError("an internal error", reason="INTERNAL")
        if error is not None:
            self._end(error)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._end(ConnectionClosedError("the node is stopping", code=CloseCode.SHUTDOWN))

    async def _on_channel_end(self) -> ConnectionClosedError:
        """The peer ended the channel: end our half too, so that nobody sees a reset."""
        with contextlib.suppress(Dep2pError, TimeoutError):
            async with asyncio.timeout(self._settings.close_timeout):
                await self._channel.close_write()
        if self._close_error is not None:
            return self._close_error
        return ConnectionClosedError("the peer closed the connection", remote=True)

    async def _on_violation(self, violation: ProtocolViolationError) -> None:
        """Try to tell the peer why it loses the connection."""
        self._begin_close(
            ConnectionClosedError(violation.message, reason=violation.reason, remote=True),
            GoAwayCode.PROTOCOL_ERROR,
        )
        await asyncio.wait(self._tasks[1:], timeout=self._settings.close_timeout)

    def _begin_close(self, error: ConnectionClosedError, code: GoAwayCode) -> None:
        if self._close_error is None and self._error is None:
            self._close_error = error
            self._session.go_away(code)
            self._flush()

    def _end(self, error: ConnectionClosedError) -> None:
        """Everything stops here, whoever caused it. Idempotent."""
        if self._error is not None:
            return
        self._error = error
        self._memory.used -= self._buffered
        self._channel.abort()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for stream in self._streams.values():
            stream.on_failure(error)
        self._streams.clear()
        self._accept_waiters.wake_all()
        self._open_waiters.wake_all()
        self._ended.set()

    # What the session tells.

    def _on_data(self, event: events.DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        self.traffic.received += len(event.data)
        self._count_buffered(stream.on_data(event.data))
        if self._memory.exceeded:
            _log.warning(
                "stream reset",
                reason="RECEIVE_MEMORY",
                peer=str(self.remote_peer),
                limit=self._memory.limit,
            )
            stream.reset(CloseCode.RESOURCE_LIMIT_EXCEEDED)

    def _on_opened(self, event: events.StreamOpened) -> None:
        stream = YamuxStream(self, event.stream_id, Direction.INBOUND)
        self._streams[stream.id] = stream
        self._accepting.append(stream)
        self._accept_waiters.wake_one()

    def _on_stream_ended(self, event: events.StreamEnded) -> None:
        if (stream := self._streams.get(event.stream_id)) is not None:
            stream.on_end()
            self.retire(stream)

    def _on_stream_reset(self, event: events.StreamReset) -> None:
        if (stream := self._streams.pop(event.stream_id, None)) is not None:
            stream.on_failure(StreamResetError(remote=True))
            # Streams that come and go unaccepted would pile up here past the session's caps.
            with contextlib.suppress(ValueError):
                self._accepting.remove(stream)

    def _on_acknowledged(self, _event: events.StreamAcknowledged) -> None:
        self._open_waiters.wake_one()

    def _on_refused(self, event: events.StreamRefused) -> None:
        if not self._refusal_logged:
            self._refusal_logged = True
            _log.warning(
                "inbound stream refused",
                reason="RESOURCE_LIMIT",
                limit=event.limit,
                peer=str(self.remote_peer),
            )

    def _on_go_away(self, event: events.GoAwayReceived) -> None:
        _log.debug("go-away received", peer=str(self.remote_peer), code=event.code)
        self._open_waiters.wake_all()

    def _on_round_trip(self, event: events.RoundTripMeasured) -> None:
        if self.rtt is None:
            self.rtt = event.seconds
        else:
            self.rtt += RTT_SMOOTHING * (event.seconds - self.rtt)

    # Waking and waiting.

    def _flush(self) -> None:
        if self._output_due is not None and self._session.output_due:
            _wake(self._output_due)

    def _count_buffered(self, count: int) -> None:
        self._buffered += count
        self._memory.used += count

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self._session.handle_timer(self._loop.time())
        except ConnectionClosedError as error:
            self._end(error)
            return
        self._flush()
        self._arm_timer()

    def _arm_timer(self) -> None:
        due = self._session.deadline()
        if self._timer is not None:
            if due >= self._timer.when():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)

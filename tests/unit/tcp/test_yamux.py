from __future__ import annotations

import contextlib
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from dep2p_daemon.errors import ConnectionClosedError, LocalError, ProtocolViolationError
from dep2p_daemon.tcp import yamux_events as ev
from dep2p_daemon.tcp.settings import YamuxSettings
from dep2p_daemon.tcp.yamux import MAX_CREDIT_STEP, MAX_PAYLOAD, MAX_UNACKNOWLEDGED, YamuxSession
from dep2p_daemon.tcp.yamux_frame import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    INITIAL_WINDOW,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    GoAwayCode,
    encode,
)
from dep2p_daemon.tcp.yamux_stream_state import TRANSITIONS, StreamInput, StreamState

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 256 * 1024
RTT = 0.02


def wire(session: YamuxSession) -> bytes:
    """Everything that is due, as bytes."""
    data = b""
    while parts := session.output(BATCH):
        data += b"".join(parts)
    return data


def frames(data: bytes) -> list[tuple[int, int, int, int]]:
    """The headers (type, flags, stream, length), after checking that nothing is left over."""
    found = []
    while data:
        version, kind, flags, stream_id, length = HEADER.unpack_from(data)
        assert version == 0
        found.append((kind, flags, stream_id, length))
        data = data[HEADER.size + (length if kind == DATA else 0) :]
    return found


class Pair:
    """A client and a server that exchange bytes in memory, with a clock of their own."""

    def __init__(self, settings: YamuxSettings | None = None) -> None:
        settings = settings or YamuxSettings()
        self.now = 0.0
        self.client = YamuxSession(client=True, settings=settings, now=0.0)
        self.server = YamuxSession(client=False, settings=settings, now=0.0)
        self.client_events: list[ev.Event] = []
        self.server_events: list[ev.Event] = []

    def pump(self) -> None:
        """Exchange until both are silent."""
        while True:
            to_server, to_client = wire(self.client), wire(self.server)
            if not to_server and not to_client:
                return
            self.server_events += self.server.receive(to_server, self.now)
            self.client_events += self.client.receive(to_client, self.now)

    def open(self) -> int:
        """A stream from the client that the server has accepted."""
        stream_id = self.client.open(self.now)
        self.pump()
        assert ev.StreamOpened(stream_id) in self.server_events
        self.server.accept(stream_id)
        self.pump()
        self.client_events.clear()
        self.server_events.clear()
        return stream_id

    def measure_rtt(self) -> None:
        for session in (self.client, self.server):
            session.handle_timer(self.now)
        to_server, to_client = wire(self.client), wire(self.server)
        self.server.receive(to_server, self.now)
        self.client.receive(to_client, self.now)
        self.now += RTT
        self.pump()

    def take_server_events(self) -> list[ev.Event]:
        taken, self.server_events = self.server_events, []
        return taken


def payload(events: Sequence[ev.Event], stream_id: int) -> bytes:
    return b"".join(
        event.data
        for event in events
        if isinstance(event, ev.DataReceived) and event.stream_id == stream_id
    )


# Opening, accepting, closing.


def test_stream_ids_have_the_roles_parity() -> None:
    pair = Pair()
    assert [pair.client.open(0.0) for _ in range(3)] == [1, 3, 5]
    assert [pair.server.open(0.0) for _ in range(3)] == [2, 4, 6]


def test_syn_and_ack_on_the_wire() -> None:
    pair = Pair()
    pair.client.open(0.0)
    data = wire(pair.client)
    assert frames(data) == [(WINDOW_UPDATE, SYN, 1, 0)]
    assert pair.server.receive(data, 0.0) == [ev.StreamOpened(1)]
    assert wire(pair.server) == b""
    pair.server.accept(1)
    data = wire(pair.server)
    assert frames(data) == [(WINDOW_UPDATE, ACK, 1, 0)]
    assert pair.client.receive(data, 0.0) == [ev.StreamAcknowledged(1)]


def test_data_before_the_acknowledgement_and_both_ends() -> None:
    pair = Pair()
    stream = pair.client.open(0.0)
    pair.client.write(stream, b"hello")
    pair.client.finish(stream, 0.0)
    assert frames(wire(pair.client)) == [
        (WINDOW_UPDATE, SYN, 1, 0),
        (DATA, 0, 1, 5),
        (WINDOW_UPDATE, FIN, 1, 0),
    ]


def test_a_new_stream_comes_after_the_end_of_an_earlier_one() -> None:
    pair = Pair(YamuxSettings(max_inbound_streams=1))
    first = pair.open()
    pair.server.finish(first, 0.0)
    pair.pump()
    pair.client.finish(first, 0.0)
    second = pair.client.open(0.0)
    pair.pump()
    assert pair.take_server_events() == [ev.StreamEnded(first), ev.StreamOpened(second)]


def test_stream_that_is_reset_before_its_syn_was_never_there() -> None:
    pair = Pair()
    stream = pair.client.open(0.0)
    pair.client.write(stream, b"x")
    pair.client.reset(stream)
    assert wire(pair.client) == b""
    assert pair.client.can_open


def test_syn_on_a_data_frame() -> None:
    pair = Pair()
    events = pair.server.receive(encode(DATA, SYN | FIN, 1, 2) + b"hi", 0.0)
    assert events == [ev.StreamOpened(1), ev.DataReceived(1, b"hi"), ev.StreamEnded(1)]


def test_half_close_leaves_the_other_half_open() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.finish(stream, 0.0)
    pair.pump()
    assert pair.take_server_events() == [ev.StreamEnded(stream)]
    pair.server.write(stream, b"late answer")
    pair.server.finish(stream, 0.0)
    pair.pump()
    assert payload(pair.client_events, stream) == b"late answer"
    assert pair.client_events[-1] == ev.StreamEnded(stream)
    with pytest.raises(LocalError):
        pair.client.write(stream, b"x")


def test_fin_waits_for_queued_data() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.write(stream, bytes(INITIAL_WINDOW + 10))
    pair.client.finish(stream, 0.0)
    pair.pump()
    assert ev.StreamEnded(stream) not in pair.server_events
    pair.server.consume(stream, INITIAL_WINDOW, 1.0)
    pair.pump()
    assert len(payload(pair.server_events, stream)) == INITIAL_WINDOW + 10
    assert pair.server_events[-1] == ev.StreamEnded(stream)


def test_reset_reaches_the_peer_and_late_frames_are_ignored() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.write(stream, b"on its way")
    in_flight = wire(pair.client)
    pair.server.reset(stream)
    assert pair.server.receive(in_flight, 0.0) == []
    pair.pump()
    assert pair.client_events == [ev.StreamReset(stream)]
    assert pair.client.receive(encode(WINDOW_UPDATE, 0, stream, 9), 0.0) == []
    assert pair.client.receive(encode(DATA, FIN, stream, 3) + b"abc", 0.0) == []
    pair.client.reset(stream)
    assert wire(pair.client) == b""


def test_reset_drops_what_is_queued() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.write(stream, b"never sent")
    pair.client.reset(stream)
    assert frames(wire(pair.client)) == [(WINDOW_UPDATE, RST, stream, 0)]
    assert pair.client.queued == 0
    assert pair.client.take_drained() == [stream]


def test_reset_within_a_frame_drops_its_rest() -> None:
    pair = Pair()
    stream = pair.open()
    data = encode(DATA, 0, stream, 10)
    assert pair.server.receive(data + b"abc", 0.0) == [ev.DataReceived(stream, b"abc")]
    pair.server.reset(stream)
    following = encode(DATA, SYN, 3, 2) + b"ok"
    assert pair.server.receive(b"defghij" + following, 0.0) == [
        ev.StreamOpened(3),
        ev.DataReceived(3, b"ok"),
    ]


# Flow control.


def test_writer_stops_at_the_window_until_it_is_consumed() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.write(stream, bytes(2 * INITIAL_WINDOW))
    pair.pump()
    assert len(payload(pair.server_events, stream)) == INITIAL_WINDOW
    pair.server.consume(stream, INITIAL_WINDOW // 2 - 1, 9.0)
    pair.pump()
    assert len(payload(pair.server_events, stream)) == INITIAL_WINDOW
    pair.server.consume(stream, 1, 9.0)
    pair.pump()
    assert len(payload(pair.server_events, stream)) == INITIAL_WINDOW * 3 // 2


def test_a_stalled_stream_does_not_block_the_others() -> None:
    pair = Pair()
    stalled, lively = pair.open(), pair.open()
    pair.client.write(stalled, bytes(4 * INITIAL_WINDOW))
    pair.pump()
    for _ in range(8):
        pair.client.write(lively, bytes(INITIAL_WINDOW // 2))
        pair.pump()
        pair.server.consume(lively, INITIAL_WINDOW // 2, 9.0)
    pair.pump()
    assert len(payload(pair.server_events, lively)) == 4 * INITIAL_WINDOW
    assert len(payload(pair.server_events, stalled)) == INITIAL_WINDOW


def test_streams_take_turns() -> None:
    pair = Pair()
    first, second = pair.open(), pair.open()
    pair.client.write(first, bytes(3 * MAX_PAYLOAD))
    pair.client.write(second, b"small")
    order = [stream_id for _, _, stream_id, _ in frames(wire(pair.client))]
    assert order == [first, second, first, first]


def test_frames_fill_a_noise_frame() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.write(stream, bytes(MAX_PAYLOAD + 1))
    assert [length for *_, length in frames(wire(pair.client))] == [MAX_PAYLOAD, 1]
    assert MAX_PAYLOAD + HEADER.size == 65519


def test_more_than_the_window_is_a_violation() -> None:
    pair = Pair()
    stream = pair.open()
    pair.server.receive(encode(DATA, 0, stream, INITIAL_WINDOW) + bytes(INITIAL_WINDOW), 0.0)
    with pytest.raises(ProtocolViolationError, match="room for 0"):
        pair.server.receive(encode(DATA, 0, stream, 1) + b"x", 0.0)


def run_transfer(pair: Pair, stream: int, *, seconds_per_window: float, rounds: int = 40) -> int:
    """Consume a lot; return the bytes that the client may have in flight at the end."""
    for _ in range(rounds):
        pair.client.write(stream, bytes(INITIAL_WINDOW))
        pair.pump()
        pair.now += seconds_per_window
        got = len(payload(pair.take_server_events(), stream))
        pair.server.consume(stream, got, pair.now)
        pair.pump()
    pair.client.write(stream, bytes(64 * INITIAL_WINDOW))
    pair.pump()
    return len(payload(pair.take_server_events(), stream))


def test_window_grows_while_its_reader_is_quick() -> None:
    pair = Pair(YamuxSettings(max_window=4 * INITIAL_WINDOW))
    pair.measure_rtt()
    assert run_transfer(pair, pair.open(), seconds_per_window=RTT) == 4 * INITIAL_WINDOW


def test_of_a_wide_window_all_but_2_mib_can_always_be_used() -> None:
    session = YamuxSession(client=False, settings=YamuxSettings(), now=0.0)
    session.handle_timer(0.0)
    wire(session)
    session.receive(encode(PING, ACK, 0, 1) + encode(WINDOW_UPDATE, SYN, 1, 0), RTT)
    for trip in range(1, 12):
        session.consume(1, YamuxSettings().max_window, 3 * trip * RTT)
    wire(session)
    assert session._streams[1].window == YamuxSettings().max_window
    session.consume(1, MAX_CREDIT_STEP - 1, 40 * RTT)
    assert frames(wire(session)) == []
    session.consume(1, 1, 40 * RTT)
    assert frames(wire(session)) == [(WINDOW_UPDATE, 0, 1, MAX_CREDIT_STEP)]


def test_window_stays_with_a_slow_reader() -> None:
    pair = Pair(YamuxSettings(max_window=4 * INITIAL_WINDOW))
    pair.measure_rtt()
    assert run_transfer(pair, pair.open(), seconds_per_window=3 * RTT) <= INITIAL_WINDOW


def test_window_stays_when_the_reader_comes_in_bursts() -> None:
    pair = Pair()
    pair.measure_rtt()
    stream = pair.open()
    for _ in range(20):
        # It takes all there is at once, but only every fourth round trip.
        assert run_transfer(pair, stream, seconds_per_window=4 * RTT, rounds=1) <= INITIAL_WINDOW
        got = len(payload(pair.take_server_events(), stream))
        pair.server.consume(stream, got, pair.now)
        pair.pump()


def test_window_growth_is_bounded_for_all_streams_together() -> None:
    pair = Pair(YamuxSettings(max_window_growth=2 * INITIAL_WINDOW))
    pair.measure_rtt()
    first, second = pair.open(), pair.open()
    assert run_transfer(pair, first, seconds_per_window=RTT) == 3 * INITIAL_WINDOW
    assert run_transfer(pair, second, seconds_per_window=RTT) == INITIAL_WINDOW
    pair.server.reset(first)
    pair.pump()
    pair.server.consume(second, INITIAL_WINDOW, pair.now)
    pair.pump()
    # Its writer has enough queued to fill any window all the time.
    assert run_transfer(pair, second, seconds_per_window=RTT, rounds=16) == 3 * INITIAL_WINDOW


def test_window_does_not_grow_when_memory_is_short() -> None:
    allowed = True
    session = YamuxSession(
        client=False, settings=YamuxSettings(), now=0.0, may_grow=lambda: allowed
    )
    session.handle_timer(0.0)
    wire(session)
    session.receive(encode(PING, ACK, 0, 1) + encode(WINDOW_UPDATE, SYN, 1, 0), RTT)
    session.consume(1, 2 * INITIAL_WINDOW, 4 * RTT)
    assert frames(wire(session)) == [(WINDOW_UPDATE, 0, 1, 3 * INITIAL_WINDOW)]
    allowed = False
    session.consume(1, 4 * INITIAL_WINDOW, 7 * RTT)
    assert frames(wire(session)) == [(WINDOW_UPDATE, 0, 1, 4 * INITIAL_WINDOW)]


def test_unread_bytes_take_their_credit_back() -> None:
    pair = Pair()
    stream = pair.open()
    half = INITIAL_WINDOW // 2
    pair.server.consume(stream, half - 1, 1.0)
    pair.server.consume(stream, -10, 1.0)
    pair.server.consume(stream, 10, 1.0)
    assert wire(pair.server) == b""
    pair.server.consume(stream, 1, 1.0)
    assert frames(wire(pair.server)) == [(WINDOW_UPDATE, 0, stream, half)]


def test_small_writes_that_wait_are_joined() -> None:
    pair = Pair()
    stream = pair.open()
    for _ in range(10_000):
        pair.client.write(stream, b"x")
    (part,) = [part for part in pair.client.output(BATCH) if len(part) != HEADER.size]
    assert bytes(part) == b"x" * 10_000


# Streams that we stopped reading.


def test_ignored_data_is_dropped_without_credit() -> None:
    pair = Pair()
    stream = pair.open()
    pair.server.ignore(stream, 0.0)
    pair.client.write(stream, bytes(INITIAL_WINDOW))
    pair.pump()
    assert pair.server_events == []
    pair.server.consume(stream, INITIAL_WINDOW, 1.0)
    assert wire(pair.server) == b""


@pytest.mark.parametrize("finish_first", [True, False])
def test_peer_that_writes_into_a_closed_stream_is_told(finish_first: bool) -> None:
    pair = Pair()
    stream = pair.open()
    if finish_first:
        pair.server.finish(stream, 0.0)
        pair.server.ignore(stream, 0.0)
    else:
        pair.server.ignore(stream, 0.0)
        pair.server.finish(stream, 0.0)
    pair.client.write(stream, bytes(INITIAL_WINDOW - 1))
    pair.pump()
    assert pair.client_events == [ev.StreamEnded(stream)]
    pair.client.write(stream, b"x")
    pair.pump()
    assert pair.client_events[-1] == ev.StreamReset(stream)


def test_lingering_stream_is_reset_in_time() -> None:
    pair = Pair(YamuxSettings(linger_timeout=5.0))
    stream = pair.open()
    pair.server.finish(stream, 0.0)
    pair.server.ignore(stream, 0.0)
    pair.pump()
    assert pair.server.deadline() <= 5.0
    pair.server.handle_timer(4.9)
    pair.pump()
    assert ev.StreamReset(stream) not in pair.client_events
    pair.server.handle_timer(5.0)
    pair.pump()
    assert pair.client_events[-1] == ev.StreamReset(stream)


def test_stream_that_ends_in_time_does_not_linger() -> None:
    pair = Pair(YamuxSettings(linger_timeout=5.0))
    stream = pair.open()
    pair.server.finish(stream, 0.0)
    pair.server.ignore(stream, 0.0)
    pair.client.finish(stream, 0.0)
    pair.pump()
    pair.client_events.clear()
    pair.server.handle_timer(6.0)
    pair.pump()
    assert ev.StreamReset(stream) not in pair.client_events


# Caps.


def test_inbound_streams_are_capped() -> None:
    pair = Pair(YamuxSettings(max_inbound_streams=2))
    first, second = pair.open(), pair.open()
    refused = pair.client.open(0.0)
    pair.client.write(refused, b"dropped")
    pair.pump()
    assert pair.server_events == [ev.StreamRefused("max_inbound_streams")]
    assert ev.StreamReset(refused) in pair.client_events
    pair.client.reset(first)
    pair.open()
    assert second != first


def test_streams_that_nobody_accepts_are_capped() -> None:
    pair = Pair(YamuxSettings(accept_backlog=2))
    opened = [pair.client.open(0.0) for _ in range(3)]
    pair.pump()
    assert pair.server_events == [
        ev.StreamOpened(opened[0]),
        ev.StreamOpened(opened[1]),
        ev.StreamRefused("accept_backlog"),
    ]
    pair.server.accept(opened[0])
    pair.client.reset(opened[1])
    pair.pump()
    for _ in range(2):
        pair.client.open(0.0)
    pair.server_events.clear()
    pair.pump()
    assert [type(event) for event in pair.server_events] == [ev.StreamOpened] * 2


def test_unacknowledged_streams_are_capped() -> None:
    pair = Pair()
    for _ in range(MAX_UNACKNOWLEDGED):
        assert pair.client.can_open
        pair.client.open(0.0)
    assert not pair.client.can_open
    pair.pump()
    pair.server.accept(1)
    pair.pump()
    assert pair.client.can_open
    pair.client.open(0.0)
    pair.server.reset(3)
    pair.pump()
    assert pair.client_events[-1] == ev.StreamAcknowledged(3)
    assert pair.client.can_open


def test_endless_syns_leave_nothing_behind() -> None:
    session = YamuxSession(client=False, settings=YamuxSettings(), now=0.0)
    for number in range(5000):
        session.receive(encode(WINDOW_UPDATE, SYN, 2 * number + 1, 0), 0.0)
    assert session.control_backlog == (5000 - 256) * HEADER.size
    opened = 0
    for number in range(256):
        session.accept(2 * number + 1)
    for number in range(5000, 5600):
        events = session.receive(encode(WINDOW_UPDATE, SYN, 2 * number + 1, 0), 0.0)
        opened += events == [ev.StreamOpened(2 * number + 1)]
    assert opened == YamuxSettings().max_inbound_streams - 256


# Session frames and time.


def test_ping_is_answered_with_its_value() -> None:
    session = YamuxSession(client=True, settings=YamuxSettings(), now=0.0)
    assert session.receive(encode(PING, SYN, 0, 0xDEADBEEF), 0.0) == []
    assert frames(wire(session)) == [(PING, ACK, 0, 0xDEADBEEF)]


def test_round_trip_is_measured() -> None:
    pair = Pair()
    pair.client.handle_timer(0.0)
    answer = wire(pair.client)
    pair.server.receive(answer, 0.1)
    assert pair.client.receive(wire(pair.server), 0.25) == [ev.RoundTripMeasured(0.25)]
    assert pair.client.receive(encode(PING, ACK, 0, 1), 0.3) == []
    assert pair.client.receive(encode(PING, ACK, 0, 77), 0.3) == []


def test_pings_go_out_at_their_interval() -> None:
    pair = Pair(YamuxSettings(keepalive_interval=30.0))
    pair.client.handle_timer(0.0)
    pair.pump()
    assert pair.client.deadline() == 30.0
    pair.client.handle_timer(29.0)
    assert wire(pair.client) == b""
    pair.client.handle_timer(30.0)
    assert [kind for kind, *_ in frames(wire(pair.client))] == [PING]


def test_silence_after_a_ping_is_the_end() -> None:
    session = YamuxSession(client=True, settings=YamuxSettings(keepalive_timeout=10.0), now=0.0)
    session.handle_timer(0.0)
    assert session.deadline() == 10.0
    session.handle_timer(9.9)
    with pytest.raises(ConnectionClosedError) as caught:
        session.handle_timer(10.0)
    assert caught.value.reason == "KEEPALIVE_TIMEOUT"


def test_other_bytes_are_a_sign_of_life_too() -> None:
    session = YamuxSession(client=True, settings=YamuxSettings(keepalive_timeout=10.0), now=0.0)
    session.handle_timer(0.0)
    session.receive(b"\x00", 8.0)
    assert session.deadline() == 18.0
    session.handle_timer(17.9)
    with pytest.raises(ConnectionClosedError):
        session.handle_timer(18.0)


def test_go_away_comes_after_the_data_and_ends_opening() -> None:
    pair = Pair()
    stream = pair.open()
    pair.client.write(stream, b"last words")
    pair.client.go_away(GoAwayCode.NORMAL)
    pair.client.go_away(GoAwayCode.PROTOCOL_ERROR)
    assert pair.client.output_due
    data = wire(pair.client)
    assert frames(data) == [(DATA, 0, stream, 10), (GO_AWAY, 0, 0, 0)]
    assert not pair.client.output_due
    assert pair.server.receive(data, 0.0)[-1] == ev.GoAwayReceived(0)
    for session in (pair.client, pair.server):
        with pytest.raises(ConnectionClosedError):
            session.open(0.0)


def test_go_away_waits_for_data_that_takes_several_batches() -> None:
    pair = Pair()
    first, second = pair.open(), pair.open()
    for stream in (first, second):
        pair.client.write(stream, bytes(INITIAL_WINDOW))
    pair.client.go_away(GoAwayCode.NORMAL)
    kinds = [kind for kind, *_ in frames(wire(pair.client))]
    assert kinds == [DATA] * (len(kinds) - 1) + [GO_AWAY]


def test_streams_of_a_peer_that_was_told_to_stop_are_refused() -> None:
    pair = Pair()
    pair.server.go_away(GoAwayCode.NORMAL)
    stream = pair.client.open(0.0)
    pair.server.receive(wire(pair.client), 0.0)
    assert (WINDOW_UPDATE, RST, stream, 0) in frames(wire(pair.server))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x01" + bytes(11), id="version"),
        pytest.param(encode(4, 0, 0, 0), id="type"),
        pytest.param(encode(DATA, SYN, 0, 0), id="data on the session"),
        pytest.param(encode(WINDOW_UPDATE, 0, 0, 0), id="window of the session"),
        pytest.param(encode(PING, SYN, 1, 0), id="ping on a stream"),
        pytest.param(encode(WINDOW_UPDATE, SYN, 2, 0), id="our own parity"),
        pytest.param(encode(WINDOW_UPDATE, SYN, 1, 0) * 2, id="opened twice"),
        pytest.param(encode(DATA, 0, 99, 0xFFFFFFFF), id="endless frame for nobody"),
        pytest.param(encode(DATA, SYN, 1, INITIAL_WINDOW + 1), id="more than the window"),
        pytest.param(encode(DATA, SYN | FIN, 1, 0) + encode(DATA, 0, 1, 1) + b"x", id="after fin"),
        pytest.param(encode(DATA, SYN | FIN, 1, 0) + encode(DATA, FIN, 1, 0), id="fin twice"),
    ],
)
def test_violations(data: bytes) -> None:
    session = YamuxSession(client=False, settings=YamuxSettings(), now=0.0)
    with pytest.raises(ProtocolViolationError):
        session.receive(data, 0.0)


# Parsing.


@given(st.lists(st.integers(1, 40)))
def test_any_cut_of_the_bytes_means_the_same(cuts: list[int]) -> None:
    data = (
        encode(PING, SYN, 0, 7)
        + encode(DATA, SYN, 1, 5)
        + b"hello"
        + encode(WINDOW_UPDATE, 0, 1, 100)
        + encode(DATA, FIN, 1, 6)
        + b" world"
        + encode(GO_AWAY, 0, 0, 2)
    )
    session = YamuxSession(client=False, settings=YamuxSettings(), now=0.0)
    events: list[ev.Event] = []
    for cut in [*cuts, len(data)]:
        events += session.receive(data[:cut], 0.0)
        data = data[cut:]
    assert payload(events, 1) == b"hello world"
    assert [event for event in events if not isinstance(event, ev.DataReceived)] == [
        ev.StreamOpened(1),
        ev.StreamEnded(1),
        ev.GoAwayReceived(2),
    ]


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_random_bytes_give_events_or_a_violation(chunks: list[bytes]) -> None:
    session = YamuxSession(client=False, settings=YamuxSettings(), now=0.0)
    with contextlib.suppress(ProtocolViolationError):
        for chunk in chunks:
            session.receive(chunk, 0.0)


HEADERS = st.builds(
    encode,
    st.integers(0, 3),
    st.integers(0, 15),
    st.integers(0, 6),
    st.one_of(st.integers(0, 20), st.just(0xFFFFFFFF)),
)


@given(st.lists(st.one_of(HEADERS, st.binary(max_size=20)), max_size=30))
def test_random_frames_give_events_or_a_violation(chunks: list[bytes]) -> None:
    session = YamuxSession(client=False, settings=YamuxSettings(), now=0.0)
    session.open(0.0)
    with contextlib.suppress(ProtocolViolationError):
        for chunk in chunks:
            session.receive(chunk, 0.0)
            wire(session)


def test_the_state_table_knows_the_ends() -> None:
    for state, event in product(StreamState, StreamInput):
        following = TRANSITIONS.get((state, event))
        if state in (StreamState.CLOSED, StreamState.RESET):
            assert following is None
        if following is StreamState.CLOSED:
            assert event in (StreamInput.SEND_FIN, StreamInput.RECEIVE_FIN)
        if event is StreamInput.RESET and state not in (StreamState.CLOSED, StreamState.RESET):
            assert following is StreamState.RESET


class TwoSessions(RuleBasedStateMachine):
    """Random streams, writes, reads, ends and resets: bytes arrive intact, nothing leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(YamuxSettings(max_window=4 * INITIAL_WINDOW))
        self.sent: dict[int, bytearray] = {}
        self.received: dict[int, bytearray] = {}
        self.unread: dict[int, int] = {}
        self.finished: set[int] = set()
        self.reset: set[int] = set()
        self.ended: set[int] = set()

    def live(self, number: int) -> int | None:
        ids = [stream for stream in self.sent if stream not in self.finished | self.reset]
        return ids[number % len(ids)] if ids else None

    @rule()
    @precondition(lambda self: len(self.sent) < 8)
    def open(self) -> None:
        stream = self.pair.client.open(self.pair.now)
        self.sent[stream], self.received[stream] = bytearray(), bytearray()
        self.unread[stream] = 0

    @rule(number=st.integers(0, 9), size=st.integers(1, 300_000), fill=st.integers(0, 255))
    def write(self, number: int, size: int, fill: int) -> None:
        if (stream := self.live(number)) is not None:
            data = bytes([fill]) * size
            self.pair.client.write(stream, data)
            self.sent[stream] += data

    @rule(number=st.integers(0, 9))
    def finish(self, number: int) -> None:
        if (stream := self.live(number)) is not None:
            self.pair.client.finish(stream, self.pair.now)
            self.finished.add(stream)

    @rule(number=st.integers(0, 9), by_client=st.booleans())
    def reset_stream(self, number: int, by_client: bool) -> None:
        if (stream := self.live(number)) is not None:
            (self.pair.client if by_client else self.pair.server).reset(stream)
            self.reset.add(stream)

    @rule(seconds=st.floats(0, 0.1))
    def deliver(self, seconds: float) -> None:
        self.pair.now += seconds
        self.pair.pump()
        for event in self.pair.take_server_events():
            if isinstance(event, ev.StreamOpened):
                self.pair.server.accept(event.stream_id)
            elif isinstance(event, ev.DataReceived):
                self.received[event.stream_id] += event.data
                self.unread[event.stream_id] += len(event.data)
            elif isinstance(event, ev.StreamEnded):
                self.ended.add(event.stream_id)

    @rule(number=st.integers(0, 9))
    def read(self, number: int) -> None:
        ids = [stream for stream, size in self.unread.items() if size]
        if ids:
            stream = ids[number % len(ids)]
            self.pair.server.consume(stream, self.unread[stream], self.pair.now)
            self.unread[stream] = 0

    @invariant()
    def bytes_are_intact_and_bounded(self) -> None:
        for stream, data in self.received.items():
            assert self.sent[stream].startswith(data)
            assert self.unread[stream] <= 4 * INITIAL_WINDOW
        for stream in self.ended - self.reset:
            assert self.received[stream] == self.sent[stream]

    @override
    def teardown(self) -> None:
        for _ in range(100):
            self.deliver(0.0)
            for _ in range(8):
                self.read(0)
        for stream in self.finished - self.reset:
            assert self.received[stream] == self.sent[stream]
            assert stream in self.ended
        assert self.pair.client.queued == 0


TestTwoSessions = TwoSessions.TestCase

"""Who gets which datagram."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dep2p_daemon.udp.demultiplexer import Demultiplexer, SocketAddress

SENDER: SocketAddress = ("192.0.2.1", 4001)


class Recorder:
    """A demultiplexer, and the calls of its handlers in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[bytes]]] = []
        self.demultiplexer = Demultiplexer()

    def handler(self, name: str):  # type: ignore[no-untyped-def]
        def handle(datagrams: list[bytes], sender: SocketAddress, local: bytes | None) -> None:
            assert sender == SENDER
            assert local == b"\x7f\0\0\1"
            self.calls.append((name, datagrams))

        return handle

    def dispatch(self, batch: bytes, segment: int) -> int:
        return self.demultiplexer.dispatch(memoryview(batch), segment, SENDER, b"\x7f\0\0\1")


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    demultiplexer = recorder.demultiplexer
    demultiplexer.set_quic_handler(recorder.handler("quic"))
    demultiplexer.set_stun_handler(recorder.handler("stun"))
    demultiplexer.set_handler(0x10, recorder.handler("circuit"))
    return recorder


def kind(first: int) -> str | None:
    if first < 4:
        return "stun"
    if first < 0x40:
        return "circuit" if first == 0x10 else None
    return "quic"


@pytest.mark.parametrize("first", range(256))
def test_the_first_byte_decides(recorder: Recorder, first: int) -> None:
    recorder.dispatch(bytes([first, 1, 2]), 1500)
    name = kind(first)
    assert recorder.calls == ([] if name is None else [(name, [bytes([first, 1, 2])])])
    assert recorder.demultiplexer.dropped == (name is None)


def test_every_segment_of_a_batch_by_itself(recorder: Recorder) -> None:
    batch = b"\x40aa" + b"\xc0bb" + b"\x10cc" + b"\x05dd" + b"\x00ee" + b"\x41ff" + b"\x10g"
    assert recorder.dispatch(batch, 3) == 7
    assert recorder.calls == [
        ("quic", [b"\x40aa", b"\xc0bb"]),
        ("circuit", [b"\x10cc"]),
        ("stun", [b"\x00ee"]),
        ("quic", [b"\x41ff"]),
        ("circuit", [b"\x10g"]),
    ]
    assert recorder.demultiplexer.dropped == 1


@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=20), st.binary(max_size=7))
def test_nothing_is_lost_doubled_or_reordered(segments: list[bytes], tail: bytes) -> None:
    recorder = Recorder()
    recorder.demultiplexer.set_quic_handler(recorder.handler("quic"))
    whole = [*segments, tail] if tail else segments
    assert recorder.dispatch(b"".join(whole), 8) == len(whole)
    got = [datagram for _, datagrams in recorder.calls for datagram in datagrams]
    assert got == [segment for segment in whole if segment[0] >= 0x40]
    assert recorder.demultiplexer.dropped == len(whole) - len(got)


def test_the_batch_may_be_overwritten_afterwards(recorder: Recorder) -> None:
    buffer = bytearray(b"\x40aa\x40bb")
    recorder.demultiplexer.dispatch(memoryview(buffer), 3, SENDER, b"\x7f\0\0\1")
    buffer[:] = bytes(6)
    assert recorder.calls == [("quic", [b"\x40aa", b"\x40bb"])]


def test_empty_datagrams_are_nobodys(recorder: Recorder) -> None:
    assert recorder.dispatch(b"", 0) == 1
    assert recorder.calls == []


def test_a_handler_that_fails_does_not_stop_the_others(recorder: Recorder) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    recorder.demultiplexer.set_handler(0x11, fail)
    with capture_logs() as logs:
        recorder.dispatch(b"\x11aa\x40bb", 3)
        recorder.dispatch(b"\x11aa\x40bb", 3)
    assert recorder.calls == [("quic", [b"\x40bb"])] * 2
    assert recorder.demultiplexer.failed == 2
    assert [line["log_level"] for line in logs] == ["error"], "one line for both"


def test_handlers_can_be_taken_back(recorder: Recorder) -> None:
    recorder.demultiplexer.set_handler(0x10, None)
    recorder.demultiplexer.set_quic_handler(None)
    recorder.dispatch(b"\x10aa\x40bb", 3)
    assert recorder.calls == []
    assert recorder.demultiplexer.dropped == 2


@pytest.mark.parametrize("first", [0, 3, 0x40, 0xFF])
def test_only_our_range_can_be_registered(recorder: Recorder, first: int) -> None:
    with pytest.raises(ValueError, match="range"):
        recorder.demultiplexer.set_handler(first, recorder.handler("x"))

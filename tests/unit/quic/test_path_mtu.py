"""The search for what a path carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.quic.mtu_probe import peer_max_datagram
from dep2p_daemon.quic.path_mtu import BASE_SIZE, PROBES, PathMtu
from dep2p_daemon.quic.settings import KIB, QuicSettings

if TYPE_CHECKING:
    from collections.abc import Callable


def search(mtu: PathMtu, carries: int) -> list[int]:
    """Probe until the search ends; returns the sizes that were probed."""
    probed = []
    while mtu.wants_probe:
        probed.append(mtu.next_probe())
        assert not mtu.wants_probe
        if probed[-1] <= carries:
            assert mtu.probe_acknowledged(probed[-1])
        else:
            mtu.probe_lost()
    return probed


@pytest.mark.parametrize(
    ("wanted", "carries", "found"),
    [
        (1200, 65_000, 1200),
        (1400, 1500, 1400),
        (9000, 65_000, 9000),
        (65_000, 65_000, 65_000),
        (65_000, 8972, 8952),
        (65_000, 1472, 1452),
        (65_000, 1420, 1400),
        (65_000, 1280, 1200),
    ],
)
def test_it_finds_what_the_path_carries(wanted: int, carries: int, found: int) -> None:
    mtu = PathMtu(wanted)
    probed = search(mtu, carries)
    assert mtu.size == found
    assert probed == sorted(probed)
    assert len([size for size in probed if size > carries]) in (0, PROBES)


def test_a_new_path_is_searched_anew() -> None:
    mtu = PathMtu(9000)
    search(mtu, 65_000)
    mtu.restart()
    assert mtu.size == BASE_SIZE
    search(mtu, 1500)
    assert mtu.size == 1452


def test_a_probe_of_an_earlier_search_changes_nothing() -> None:
    mtu = PathMtu(9000)
    for _ in range(2):
        assert mtu.probe_acknowledged(mtu.next_probe())
    late = mtu.next_probe()
    mtu.restart()
    assert not mtu.probe_acknowledged(late)
    assert mtu.size == BASE_SIZE
    assert mtu.wants_probe


@given(st.integers(1200, 65_000), st.integers(1200, 65_527), st.integers(1200, 65_527))
def test_nothing_beyond_what_the_peer_takes_is_sent(wanted: int, limit: int, carries: int) -> None:
    mtu = PathMtu(wanted)
    mtu.limit(limit)
    mtu.limit(limit)
    assert max(search(mtu, carries), default=BASE_SIZE) <= min(wanted, limit)
    if carries >= min(wanted, limit):
        assert mtu.size == min(wanted, limit)


async def test_large_datagrams_carry_bulk_and_lost_probes_are_no_congestion(
    wire: Any, make_node: Callable[..., Any]
) -> None:
    settings = QuicSettings(max_datagram_size=65_000)
    server, client = make_node(settings).listen(), make_node(settings)
    wire.keep = lambda _to, datagram: len(datagram) <= 40_000
    dial = client.dial(server)
    wire.advance(5)
    quic = dial.connection._session.quic
    assert quic.max_datagram_size == 32_000
    assert quic._loss._cc.ssthresh is None
    assert quic._recovery.mtu_probes == frozenset()
    before = len(wire.sent)
    stream = await dial.connection.open_stream()
    await stream.write(bytes(200 * KIB))
    wire.advance(1)
    (inbound,) = [await server.accepted[0].accept_stream()]
    assert inbound.unread_bytes == 200 * KIB
    sizes = [len(d) for _, sender, d in wire.sent[before:] if sender == client.address]
    assert sizes.count(32_000) >= 5
    # aioquic's own packets stay within what it can write.
    assert all(size <= 16_000 or size == 32_000 for size in sizes)


async def test_the_peer_says_what_it_takes(wire: Any, make_node: Callable[..., Any]) -> None:
    settings = QuicSettings(max_datagram_size=65_000)
    server, client = make_node(settings).listen(), make_node(settings)
    dial = client.dial(server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dep2p_daemon.quic.mtu_probe.peer_max_datagram", lambda _: 1380)
        wire.advance(5)
    assert dial.connection._session.quic.max_datagram_size == 1380
    assert server.accepted[0]._session.quic.max_datagram_size == 1380
    assert peer_max_datagram(dial.connection._session.quic) == 65_527


async def test_after_a_move_everything_is_found_out_anew(
    wire: Any, make_node: Callable[..., Any]
) -> None:
    server, client = make_node(QuicSettings(max_datagram_size=9000)).listen(), make_node()
    dial = client.dial(server)
    wire.advance(5)
    quic = server.accepted[0]._session.quic
    assert quic.max_datagram_size == 9000
    quic._loss._cc.congestion_window = quic._loss._cc.ssthresh = 10 << 20
    wire.keep = lambda _to, datagram: len(datagram) <= 1500
    client.move(("198.51.100.7", 61_000))
    stream = await dial.connection.open_stream()
    await stream.write(b"x")
    wire.advance(5)
    assert server.accepted[0].remote_address.host == "198.51.100.7"
    assert quic.max_datagram_size == 1452
    assert quic._loss._cc.ssthresh is None
    assert quic.rtt is not None
    assert quic._loss._cc.congestion_window < 1 << 20


async def test_a_change_of_port_alone_is_no_new_path(
    wire: Any, make_node: Callable[..., Any]
) -> None:
    server, client = make_node(QuicSettings(max_datagram_size=9000)).listen(), make_node()
    dial = client.dial(server)
    wire.advance(5)
    client.move((client.address[0], 61_000))
    wire.keep = lambda _to, datagram: len(datagram) <= 1500
    stream = await dial.connection.open_stream()
    await stream.write(b"x")
    wire.advance(1)
    assert server.accepted[0].remote_address.port == 61_000
    assert server.accepted[0]._session.quic.max_datagram_size == 9000

"""The congestion window grows with use only."""

from __future__ import annotations

from aioquic import tls
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket

from dep2p_daemon.quic.congestion import ALGORITHM, UsedWindowCubic


def packet(at: float, size: int = 1200) -> QuicSentPacket:
    return QuicSentPacket(tls.Epoch.ONE_RTT, True, True, False, 1, QuicPacketType.ONE_RTT, at, size)


def rounds(control: UsedWindowCubic, packets: int, count: int) -> list[int]:
    """`count` round trips of 50 ms with `packets` in flight; the window after each."""
    windows, now = [], 1.0
    for _ in range(count):
        flight = [packet(now) for _ in range(packets)]
        for sent in flight:
            control.on_packet_sent(packet=sent)
        now += 0.05
        for sent in flight:
            control.on_packet_acked(now=now, packet=sent)
        windows.append(control.congestion_window)
    return windows


def test_a_window_that_is_used_doubles() -> None:
    control = UsedWindowCubic(1200)
    assert rounds(control, 10, 1) == [24_000]
    assert rounds(control, 20, 1) == [48_000]
    assert control.bytes_in_flight == 0


def test_one_that_is_not_stays() -> None:
    control = UsedWindowCubic(1200)
    assert rounds(control, 4, 20) == [12_000] * 20


def test_half_of_it_is_use() -> None:
    control = UsedWindowCubic(1200)
    assert rounds(control, 5, 1) == [18_000]


def test_losses_still_shrink_it() -> None:
    control = UsedWindowCubic(1200)
    rounds(control, 10, 1)
    flight = [packet(3.0) for _ in range(20)]
    for sent in flight:
        control.on_packet_sent(packet=sent)
    control.on_packets_lost(now=3.1, packets=flight[:2])
    assert control.congestion_window < 24_000
    before = control.congestion_window
    control.on_packet_acked(now=3.2, packet=flight[2])
    assert control.congestion_window >= before


def test_it_is_what_connections_use() -> None:
    control = create_congestion_control(ALGORITHM, max_datagram_size=1200)
    assert isinstance(control, UsedWindowCubic)
    control.set_max_datagram_size(1400)
    assert control._max_datagram_size == control.additive_increase_factor == 1400

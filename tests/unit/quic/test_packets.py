"""What is known of a datagram without keys."""

from __future__ import annotations

import os

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.quic.packets import (
    LongHeader,
    connection_refused,
    parse_long_header,
    version_negotiation,
)


def long_header(
    first: int, version: int, dcid: bytes, scid: bytes, rest: bytes = b"", token: bytes = b""
) -> bytes:
    head = bytes([first]) + version.to_bytes(4, "big") + bytes([len(dcid)]) + dcid
    head += bytes([len(scid)]) + scid
    if version == 1 and first & 0x70 == 0x40:
        head += (len(token) | 0x4000).to_bytes(2, "big") + token
        head += (len(rest) | 0x4000).to_bytes(2, "big")
    return head + rest


@given(
    dcid=st.binary(max_size=20),
    scid=st.binary(max_size=20),
    token=st.binary(max_size=200),
    rest=st.binary(min_size=20, max_size=40),
)
def test_initials_as_aioquic_reads_them(
    dcid: bytes, scid: bytes, token: bytes, rest: bytes
) -> None:
    datagram = long_header(0xC0, 1, dcid, scid, rest, token)
    header = parse_long_header(datagram)
    assert header == LongHeader(1, dcid, scid, is_initial=True, token=token)
    stock = pull_quic_header(Buffer(data=datagram), host_cid_length=8)
    assert stock.packet_type is QuicPacketType.INITIAL
    assert (stock.destination_cid, stock.source_cid, stock.token) == (dcid, scid, token)


@pytest.mark.parametrize("first", [0xD0, 0xE0, 0xF0, 0x80])
def test_other_long_headers_are_no_initials(first: int) -> None:
    header = parse_long_header(long_header(first, 1, b"12345678", b"abc"))
    assert header == LongHeader(1, b"12345678", b"abc", is_initial=False, token=b"")


def test_unknown_versions_may_have_long_ids() -> None:
    header = parse_long_header(long_header(0xC0, 0xBABA, bytes(200), bytes(255)))
    assert header is not None
    assert (len(header.destination), len(header.source)) == (200, 255)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\xc0",
        b"\x40" + bytes(50),
        long_header(0xC0, 1, bytes(8), bytes(8))[:14],
        long_header(0xC0, 1, bytes(8), bytes(8))[:20],
        long_header(0xC0, 1, bytes(8), bytes(8), b"", b"")[:-4],
        long_header(0xC0, 1, bytes(8), bytes(8), b"", b"t" * 100)[:60],
    ],
)
def test_truncated_headers_are_none(datagram: bytes) -> None:
    assert parse_long_header(datagram) is None


@given(st.binary(max_size=100))
def test_rubbish_never_raises(datagram: bytes) -> None:
    header = parse_long_header(datagram)
    if header is not None:
        assert header.destination in datagram
        assert header.source in datagram
        assert header.token in datagram


def test_version_negotiation_swaps_the_ids() -> None:
    header = LongHeader(0xBABA, b"to-us", b"to-them", is_initial=False, token=b"")
    answer = pull_quic_header(Buffer(data=version_negotiation(header)))
    assert answer.packet_type is QuicPacketType.VERSION_NEGOTIATION
    assert (answer.destination_cid, answer.source_cid) == (b"to-them", b"to-us")
    assert answer.supported_versions == [1]


def test_refusals_are_far_smaller_than_what_they_answer() -> None:
    header = LongHeader(1, os.urandom(8), os.urandom(20), is_initial=True, token=b"")
    assert len(connection_refused(header)) < 100

"""DCUtR's message on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.dcutr_message import (
    MAX_ADDRESSES_READ,
    MAX_MESSAGE_BYTES,
    DcutrMessage,
    MessageType,
    decode,
    encode,
)
from dep2p_daemon.nat.nat_kind import NatKind

ADDRESS = Multiaddr.parse("/ip4/45.8.1.7/udp/4001/quic-v1")


def test_connect_is_what_the_specification_writes() -> None:
    wire = encode(DcutrMessage(MessageType.CONNECT, (ADDRESS,)))
    # Field 1, CONNECT = 100; field 2, the binary multiaddr.
    assert wire == b"\x08\x64" + b"\x12" + bytes([len(bytes(ADDRESS))]) + bytes(ADDRESS)
    assert decode(wire) == DcutrMessage(MessageType.CONNECT, (ADDRESS,))


def test_sync_is_three_hundred() -> None:
    assert encode(DcutrMessage(MessageType.SYNC)) == b"\x08\xac\x02"
    assert decode(b"\x08\xac\x02").type is MessageType.SYNC


@given(
    st.lists(
        st.builds(
            Multiaddr.for_udp,
            st.ip_addresses(v=4).map(str),
            st.integers(min_value=1, max_value=65535),
        ),
        unique=True,
        max_size=20,
    )
)
def test_what_is_written_is_read(addresses: list[Multiaddr]) -> None:
    message = DcutrMessage(MessageType.CONNECT, tuple(addresses))
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_violation(data: bytes) -> None:
    reason = None
    try:
        assert decode(data).type in MessageType
    except ProtocolViolationError as error:
        reason = error.reason
    assert reason in (None, "DCUTR_MALFORMED")


@pytest.mark.parametrize("data", [b"", b"\x08\x00", b"\x08\x65", b"\x12\x01", b"\xff"])
def test_no_type_or_an_unknown_one_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError, match="DCUtR"):
        decode(data)


def test_addresses_that_do_not_parse_are_counted_and_left_out() -> None:
    junk = b"\x12\x03abc"
    message = decode(b"\x08\x64" + junk + encode(DcutrMessage(MessageType.CONNECT, (ADDRESS,)))[2:])
    assert message.addresses == (ADDRESS,)
    assert message.unreadable == 1


def test_of_a_thousand_addresses_few_are_looked_at() -> None:
    wire = b"\x08\x64" + b"".join(
        b"\x12\x08" + b"\x04" + bytes([45, 8, n // 256, n % 256]) + b"\x06\x10\x01"
        for n in range(400)
    )
    message = decode(wire)
    assert len(message.addresses) == MAX_ADDRESSES_READ
    assert message.unreadable == 400 - MAX_ADDRESSES_READ


def test_what_would_be_too_long_for_the_peer_is_cut() -> None:
    addresses = tuple(Multiaddr.for_udp(f"45.8.{n // 200}.{n % 200}", 4001) for n in range(800))
    wire = encode(DcutrMessage(MessageType.CONNECT, addresses))
    assert MAX_MESSAGE_BYTES - 32 < len(wire) <= MAX_MESSAGE_BYTES
    assert decode(wire).addresses == addresses[:MAX_ADDRESSES_READ]


@pytest.mark.parametrize("nat", NatKind)
def test_the_kind_of_nat_goes_along_and_nobody_else_need_know_it(nat: NatKind) -> None:
    wire = encode(DcutrMessage(MessageType.CONNECT, (ADDRESS,), nat))
    assert decode(wire).nat is nat
    plain = encode(DcutrMessage(MessageType.CONNECT, (ADDRESS,)))
    assert wire.startswith(plain)  # what follows is one field of a number that others skip
    assert len(wire) - len(plain) in (0, 3)


def test_a_kind_of_nat_of_a_later_version_is_unknown() -> None:
    wire = encode(DcutrMessage(MessageType.CONNECT, (ADDRESS,), NatKind.NO_UDP))
    later = wire[:-1] + b"\x63"
    assert decode(later) == DcutrMessage(MessageType.CONNECT, (ADDRESS,))

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.circuit.messages import (
    MAX_MESSAGE_BYTES,
    HopConnect,
    HopMessage,
    HopReserve,
    HopStatus,
    ReservationGrant,
    Status,
    StopConnect,
    StopMessage,
    StopStatus,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
    fitting_addresses,
    status_name,
)
from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.muxed import CircuitLimits
from dep2p_daemon.wire.libp2p import circuit_pb2 as pb

PEER = PrivateKey.from_seed(bytes(32)).peer_id

peers = st.binary(min_size=32, max_size=32).map(lambda seed: PrivateKey.from_seed(seed).peer_id)
statuses = st.sampled_from(Status)
limits = st.none() | st.builds(
    CircuitLimits,
    duration=st.none() | st.integers(1, 2**32 - 1).map(float),
    data=st.none() | st.integers(1, 2**64 - 1),
)
addresses = st.builds(
    Multiaddr.for_udp, st.ip_addresses().map(str), st.integers(0, 65535)
) | st.builds(Multiaddr.for_tcp, st.ip_addresses(v=4).map(str), st.integers(0, 65535))
grants = st.builds(
    ReservationGrant,
    expires_at=st.integers(0, 2**64 - 1),
    addresses=st.lists(addresses, max_size=5).map(tuple),
    voucher=st.binary(max_size=300),
)
hop_messages = st.one_of(
    st.builds(HopReserve),
    st.builds(HopConnect, peers),
    st.builds(HopStatus, statuses, st.none() | grants, limits),
)
stop_messages = st.one_of(st.builds(StopConnect, peers, limits), st.builds(StopStatus, statuses))


@given(hop_messages)
def test_a_hop_message_survives_the_wire(message: HopMessage) -> None:
    assert decode_hop(encode_hop(message)) == message


@given(stop_messages)
def test_a_stop_message_survives_the_wire(message: StopMessage) -> None:
    assert decode_stop(encode_stop(message)) == message


@given(st.binary(max_size=MAX_MESSAGE_BYTES + 10))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for decode in (decode_hop, decode_stop):
        try:
            decode(data)
        except ProtocolViolationError as error:
            assert error.reason == "MALFORMED_MESSAGE"  # noqa: PT017 - not raised is right too


@given(hop_messages, st.data())
def test_a_cut_or_altered_hop_message_never_crashes(
    message: HopMessage, data: st.DataObject
) -> None:
    wire = bytearray(encode_hop(message))
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= data.draw(st.integers(1, 255))
    for altered in (bytes(wire), bytes(wire[:at])):
        try:
            decode_hop(altered)
        except ProtocolViolationError as error:
            assert error.reason == "MALFORMED_MESSAGE"  # noqa: PT017


def test_types_that_are_zero_are_written() -> None:
    assert encode_hop(HopReserve()) == b"\x08\x00"
    assert encode_stop(StopConnect(PEER)).startswith(b"\x08\x00")


def test_an_absent_type_is_its_zero_value() -> None:
    assert decode_hop(b"") == HopReserve()
    peer = pb.StopMessage(peer=pb.Peer(id=bytes(PEER))).SerializeToString()
    assert decode_stop(peer) == StopConnect(PEER)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"\x08\x07", "unknown type 7"),
        (b"\xff\xff\xff", "no protobuf"),
        (b"\x08\x01", "without a peer"),
        (pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.Peer(id=b"me")).SerializeToString(),
         "no valid peer id"),
        (b"\x08\x00" + b"\x5a\xff\x1f" + bytes(4095), "4096 are allowed"),
    ],
)  # fmt: skip
def test_malformed_hop_messages_say_what_is_wrong(data: bytes, part: str) -> None:
    with pytest.raises(ProtocolViolationError, match=part) as raised:
        decode_hop(data)
    assert raised.value.reason == "MALFORMED_MESSAGE"


def test_an_unknown_stop_type_is_malformed() -> None:
    with pytest.raises(ProtocolViolationError, match="unknown type 2"):
        decode_stop(b"\x08\x02")


def test_a_status_that_the_spec_does_not_have_keeps_its_number() -> None:
    # HopMessage{type: STATUS, status: 299}: a closed proto2 enum hides unknown numbers.
    assert decode_hop(b"\x08\x02\x28\xab\x02") == HopStatus(299)
    assert status_name(299) == "STATUS_299"
    assert decode_hop(b"\x08\x02") == HopStatus(Status.UNUSED)


def test_a_status_is_written_as_the_spec_has_it() -> None:
    # Field 1 (type) = 2, field 5 (status) = 204.
    assert decode_hop(bytes.fromhex("0802" + "28cc01")) == HopStatus(Status.NO_RESERVATION)
    assert encode_hop(HopStatus(Status.NO_RESERVATION)) == bytes.fromhex("080228cc01")


def test_zero_limits_are_unlimited_and_fractions_do_not_become_zero() -> None:
    zero = pb.HopMessage(
        type=pb.HopMessage.STATUS, status=pb.OK, limit=pb.Limit(duration=0, data=0)
    ).SerializeToString()
    assert decode_hop(zero) == HopStatus(Status.OK, limits=CircuitLimits(None, None))
    short = encode_hop(HopStatus(Status.OK, limits=CircuitLimits(0.2, None)))
    assert decode_hop(short) == HopStatus(Status.OK, limits=CircuitLimits(1.0, None))


def test_the_deprecated_addresses_of_a_peer_are_ignored() -> None:
    wire = pb.HopMessage(
        type=pb.HopMessage.CONNECT, peer=pb.Peer(id=bytes(PEER), addrs=[b"\xff\x00nonsense"])
    ).SerializeToString()
    assert decode_hop(wire) == HopConnect(PEER)


def test_addresses_that_do_not_parse_are_skipped() -> None:
    good = Multiaddr.parse(f"/ip4/203.0.113.10/udp/4001/quic-v1/p2p/{PEER}")
    wire = pb.HopMessage(
        type=pb.HopMessage.STATUS,
        status=pb.OK,
        reservation=pb.Reservation(expire=5, addrs=[b"\xff\xff", bytes(good), b""]),
    ).SerializeToString()
    assert decode_hop(wire) == HopStatus(Status.OK, ReservationGrant(5, (good,), b""))


def test_a_reservation_with_many_addresses_still_fits_a_message() -> None:
    many = [Multiaddr.for_tcp("203.0.113.10", port).with_peer_id(PEER) for port in range(500)]
    grant = ReservationGrant(2**62, fitting_addresses(many), bytes(500))
    assert 20 < len(grant.addresses) < 500
    assert grant.addresses == tuple(many[: len(grant.addresses)])
    assert len(encode_hop(HopStatus(Status.OK, grant, CircuitLimits(1, 1)))) <= MAX_MESSAGE_BYTES


def test_a_rsa_peer_id_is_a_peer_id() -> None:
    peer = PeerId.from_bytes(b"\x12\x20" + bytes(range(32)))
    assert decode_hop(encode_hop(HopConnect(peer))) == HopConnect(peer)

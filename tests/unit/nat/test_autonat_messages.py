"""The messages of AutoNAT v1 and v2: what goes in comes out, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat import autonat1_message as v1
from dep2p_daemon.nat import autonat2_message as v2

PEER = PrivateKey.from_seed(b"a" * 32).peer_id
ADDRESSES = st.builds(
    lambda host, port, udp: (Multiaddr.for_udp if udp else Multiaddr.for_tcp)(host, port),
    st.ip_addresses().map(str),
    st.integers(1, 65535),
    st.booleans(),
)
REQUESTS = st.one_of(
    st.builds(
        v2.DialRequest,
        st.lists(ADDRESSES, max_size=v2.MAX_ADDRESSES).map(tuple),
        st.integers(0, 2**64 - 1),
    ),
    st.builds(
        v2.DialResponse,
        st.sampled_from([int(s) for s in v2.ResponseStatus] + [7]),
        st.integers(0, 2**32 - 1),
        st.sampled_from([int(s) for s in v2.DialStatus] + [7]),
    ),
    st.builds(v2.DialDataRequest, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
    st.builds(v2.DialDataResponse, st.binary(max_size=v2.MAX_DATA_BYTES)),
)


@given(REQUESTS)
def test_v2_comes_back_as_it_went(message: v2.RequestMessage) -> None:
    assert v2.decode(v2.encode(message)) == message


@given(st.binary(max_size=300))
def test_v2_nonsense_is_refused_or_read(data: bytes) -> None:
    try:
        message = v2.decode(data)
    except ProtocolViolationError:
        return
    assert v2.decode(v2.encode(message)) == message


def test_v2_bytes_are_those_of_the_specification() -> None:
    address = Multiaddr.for_udp("203.0.113.1", 4001)
    request = bytes.fromhex("0a160a0b") + bytes(address) + bytes.fromhex("110807060504030201")
    assert len(bytes(address)) == 11
    assert v2.encode(v2.DialRequest((address,), 0x0102030405060708)) == request
    assert v2.encode(v2.DialResponse(200, 0, 200)) == bytes.fromhex("120608c80118c801")
    assert v2.encode(v2.DialDataRequest(0, 100)) == bytes.fromhex("1a021064")
    assert v2.encode(v2.DialDataResponse(b"abc")) == bytes.fromhex("22050a03") + b"abc"
    # Not inside a Message.
    assert v2.encode_dial_back(1) == bytes.fromhex("090100000000000000")
    assert v2.encode_dial_back_response() == b""


def test_v2_what_is_missing_is_no_success() -> None:
    assert v2.decode(bytes.fromhex("1200")) == v2.DialResponse(
        v2.ResponseStatus.E_INTERNAL_ERROR, 0, v2.DialStatus.UNUSED
    )
    with pytest.raises(ProtocolViolationError):
        v2.decode(b"")


def test_v2_indexes_survive_addresses_that_do_not_parse() -> None:
    good = Multiaddr.for_tcp("203.0.113.1", 4001)
    request = v2.decode(v2.encode(v2.DialRequest((None, good), 5)))
    assert request == v2.DialRequest((None, good), 5)


def test_v2_no_more_addresses_than_the_limit_are_read() -> None:
    address = Multiaddr.for_tcp("203.0.113.1", 4001)
    request = v2.decode(v2.encode(v2.DialRequest((address,) * 80, 5)))
    assert isinstance(request, v2.DialRequest)
    assert len(request.addresses) == v2.MAX_ADDRESSES


@given(st.integers(0, 2**64 - 1))
def test_v2_nonce(nonce: int) -> None:
    assert v2.decode_dial_back(v2.encode_dial_back(nonce)) == nonce


def test_v2_dial_back_response() -> None:
    assert v2.decode_dial_back_response(v2.encode_dial_back_response())
    assert not v2.decode_dial_back_response(bytes.fromhex("0801"))
    for decode in (v2.decode_dial_back, v2.decode_dial_back_response):
        with pytest.raises(ProtocolViolationError):
            decode(b"\xff")


@given(
    st.one_of(
        st.builds(
            v1.Dial, st.just(PEER), st.lists(ADDRESSES, max_size=v1.MAX_ADDRESSES).map(tuple)
        ),
        st.builds(
            v1.DialResponse,
            st.sampled_from(v1.Status),
            st.text(st.characters(codec="utf-8"), max_size=v1.MAX_TEXT_CHARACTERS),
            st.none() | ADDRESSES,
        ),
    )
)
def test_v1_comes_back_as_it_went(message: v1.Dial | v1.DialResponse) -> None:
    assert v1.decode(v1.encode(message)) == message


@given(st.binary(max_size=300))
def test_v1_nonsense_is_refused_or_read(data: bytes) -> None:
    try:
        message = v1.decode(data)
    except ProtocolViolationError:
        return
    assert v1.decode(v1.encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes.fromhex("0800"),  # DIAL of nobody
        bytes.fromhex("0801"),  # DIAL_RESPONSE without a status
        bytes.fromhex("08011a020807"),  # ... with one that does not exist
        bytes.fromhex("0805"),
    ],
)
def test_v1_what_is_missing_is_no_success(data: bytes) -> None:
    with pytest.raises(ProtocolViolationError, match="AutoNAT v1"):
        v1.decode(data)

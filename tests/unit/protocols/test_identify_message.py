from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.protocols.identify_message import (
    MAX_MESSAGE_BYTES,
    IdentifyInfo,
    decode,
    encode,
    fitting_addresses,
)
from dep2p_daemon.wire import varint
from dep2p_daemon.wire.libp2p import identify_pb2 as pb

KEY = PrivateKey.from_seed(b"k" * 32)
ADDRESSES = tuple(Multiaddr.for_tcp("192.0.2.1", port) for port in range(1, 40))

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
infos = st.builds(
    IdentifyInfo,
    public_key=st.just(KEY.public_key.to_protobuf()),
    addresses=st.lists(st.sampled_from(ADDRESSES), max_size=20).map(tuple),
    protocols=st.lists(names.map("/".__add__), max_size=200).map(tuple),
    observed_address=st.none() | st.sampled_from(ADDRESSES),
    protocol_version=st.none() | names,
    agent_version=st.none() | names,
    signed_peer_record=st.none() | st.binary(min_size=1, max_size=3000),
)


def frame(message: pb.Identify) -> bytes:
    body = message.SerializeToString()
    return varint.encode(len(body)) + body


@given(infos)
def test_what_is_encoded_is_decoded(info: IdentifyInfo) -> None:
    assert decode(encode(info)) == info


@given(infos)
def test_each_message_is_short_enough_for_everyone(info: IdentifyInfo) -> None:
    data, offset, lengths = encode(info), 0, []
    while offset < len(data):
        length, offset = varint.decode(data, offset)
        offset += length
        lengths.append(length)
    assert len(lengths) <= 10
    assert max(lengths) <= 4096


def test_a_short_answer_is_one_message_and_a_long_record_comes_second() -> None:
    info = IdentifyInfo(agent_version="x", signed_peer_record=b"r" * 100)
    length, offset = varint.decode(encode(info))
    assert offset + length == len(encode(info))
    longer = encode(IdentifyInfo(agent_version="x", signed_peer_record=b"r" * 2100))
    length, offset = varint.decode(longer)
    first = pb.Identify.FromString(longer[offset : offset + length])
    assert first.agent_version == "x"
    assert not first.HasField("signed_peer_record")


def test_messages_are_merged_in_order() -> None:
    data = frame(pb.Identify(protocols=["/a"], agent_version="old", listen_addrs=[b"\x04\1\2\3\4"]))
    data += frame(pb.Identify(protocols=["/b"], agent_version="new", signed_peer_record=b"r"))
    info = decode(data)
    assert info.protocols == ("/a", "/b")
    assert info.agent_version == "new"
    assert info.signed_peer_record == b"r"
    assert info.addresses == (Multiaddr.parse("/ip4/1.2.3.4"),)


def test_caps_cut_and_control_characters_go() -> None:
    message = pb.Identify(
        protocols=[f"/{n}" for n in range(700)], agent_version="a\x1b[31mb\n" + "c" * 500
    )
    info = decode(frame(message) + frame(message))
    assert len(info.protocols) == 1024
    assert info.agent_version is not None
    assert info.agent_version.startswith("a[31mb")
    assert len(info.agent_version) <= 128
    many = [b"\x04\1\2\3" + bytes([n % 256]) + b"\x06\1" + bytes([n // 256]) for n in range(300)]
    twice = frame(pb.Identify(listen_addrs=many)) * 2
    assert len(decode(twice).addresses) == 500


def test_a_name_that_is_not_utf8_is_taken_as_far_as_it_goes() -> None:
    # agent_version (6) and protocols (3), each of one byte that is no UTF-8, and "/a".
    info = decode(b"\x0a\x32\x01\xff\x1a\x01\xff\x1a\x02/a")
    assert info.agent_version == "\N{REPLACEMENT CHARACTER}"
    assert info.protocols == ("\N{REPLACEMENT CHARACTER}", "/a")


def test_addresses_of_unknown_kinds_are_skipped() -> None:
    rubbish = [b"", b"\xff", b"\x04\1", b"\x04\1\2\3\4"]
    assert decode(frame(pb.Identify(listen_addrs=rubbish))).addresses == (
        Multiaddr.parse("/ip4/1.2.3.4"),
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (frame(pb.Identify()) * 11, "more than 10 messages"),
        (varint.encode(MAX_MESSAGE_BYTES + 1), "8192 are allowed"),
        (b"\x05ab", "cut off"),
        (b"\x80", "cut off"),
        (b"\x02\x0a\xff", "no protobuf"),
    ],
)
def test_what_breaks_the_rules_is_a_violation(data: bytes, what: str) -> None:
    with pytest.raises(ProtocolViolationError, match=what):
        decode(data)


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda b: varint.encode(len(b)) + b))
def test_rubbish_is_a_violation_or_a_message(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolViolationError:
        return


@given(infos, st.data())
def test_a_damaged_answer_is_a_violation_or_a_message(
    info: IdentifyInfo, data: st.DataObject
) -> None:
    answer = bytearray(encode(info))
    for _ in range(3):
        answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(answer))
    except ProtocolViolationError:
        return


def test_addresses_are_told_in_order_as_far_as_there_is_room() -> None:
    many = [Multiaddr.for_udp("2001:db8::1", port) for port in range(1, 1000)]
    told = fitting_addresses(many)
    assert told == tuple(many[: len(told)])
    assert sum(len(bytes(address)) + 2 for address in told) <= 2048 < len(told) * 28 + 28

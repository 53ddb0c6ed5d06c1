"""What users write where a peer or a relay is asked for; the seed's two mistakes are here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import Dep2pError, MultiaddrError, PeerIdError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import DialTarget, Multiaddr, parse_dial_target, parse_relay_address

RELAY = PeerId.parse("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
TARGET = PeerId.parse("12D3KooWRawPbxPtP1eZaJpumGnyWX2DcUyd3RQnydr3eAto4Az7")
PLACE = "/ip4/203.0.113.10/udp/4001/quic-v1"
CIRCUIT = f"{PLACE}/p2p/{RELAY}/p2p-circuit"


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (str(TARGET), ()),
        (f"/p2p/{TARGET}", ()),
        (f"{PLACE}/p2p/{TARGET}", (PLACE,)),
        (f"  {PLACE}/p2p/{TARGET}\n", (PLACE,)),
        (f"/dnsaddr/example.com/p2p/{TARGET}", ("/dnsaddr/example.com",)),
        (f"/dns4/example.com/tcp/1/p2p/{TARGET}", ("/dns4/example.com/tcp/1",)),
        (f"{CIRCUIT}/p2p/{TARGET}", (CIRCUIT,)),
        (f"/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}", (f"/p2p/{RELAY}/p2p-circuit",)),
    ],
)
def test_right_forms(text: str, addresses: tuple[str, ...]) -> None:
    expected = DialTarget(TARGET, tuple(map(Multiaddr.parse, addresses)))
    assert parse_dial_target(text) == expected


def test_the_seeds_first_mistake_no_peer_id() -> None:
    with pytest.raises(MultiaddrError) as caught:
        parse_dial_target(PLACE)
    error = caught.value
    assert error.reason == "PEER_ID_MISSING"
    assert error.message == f"the address {PLACE} is missing the peer's id at the end"
    assert f"write {PLACE}/p2p/<peer id>" in error.remedy


def test_the_seeds_second_mistake_no_p2p_circuit() -> None:
    with pytest.raises(MultiaddrError) as caught:
        parse_dial_target(f"{PLACE}/p2p/{RELAY}/p2p/{TARGET}")
    error = caught.value
    assert error.reason == "CIRCUIT_MISSING"
    assert "is missing /p2p-circuit between the relay's peer id and" in error.message
    assert f"write {CIRCUIT}/p2p/{TARGET} " in error.remedy
    # What the remedy says is right.
    assert parse_dial_target(f"{CIRCUIT}/p2p/{TARGET}").peer == TARGET


@pytest.mark.parametrize(
    ("text", "reason", "remedy"),
    [
        (CIRCUIT, "TARGET_ID_MISSING", f"{CIRCUIT}/p2p/<target's peer id>"),
        (f"{CIRCUIT}/ws/p2p/{TARGET}", "TARGET_ID_MISSING", f"{CIRCUIT}/p2p/<target's"),
        (
            f"{PLACE}/p2p-circuit/p2p/{TARGET}",
            "RELAY_ID_MISSING",
            f"{PLACE}/p2p/<relay's id>/p2p-circuit/p2p/{TARGET}",
        ),
        (f"/p2p-circuit/p2p/{TARGET}", "RELAY_ID_MISSING", "/p2p/<relay's id>/p2p-circuit/p2p/"),
        (f"{CIRCUIT}/p2p/{TARGET}/p2p-circuit/p2p/{RELAY}", "CIRCUIT_INVALID", "/p2p-circuit/"),
        (f"/ip4/1.2.3.4/udp/4001/p2p/{TARGET}", "ADDRESS_NOT_DIALABLE", "/quic-v1"),
        (f"/ip4/1.2.3.4/tcp/80/ws/p2p/{TARGET}", "ADDRESS_NOT_DIALABLE", "/tcp/4001"),
        (f"/ip4/1.2.3.4/udp/1/quic/p2p/{TARGET}", "ADDRESS_NOT_DIALABLE", "/quic-v1"),
        (f"/ip4/1.2.3.4/p2p/{TARGET}", "ADDRESS_NOT_DIALABLE", "/quic-v1"),
        (f"/ip4/0.0.0.0/tcp/4001/p2p/{TARGET}", "ADDRESS_NOT_DIALABLE", "replace 0.0.0.0"),
        (f"/ip4/1.2.3.4/tcp/0/p2p/{TARGET}", "ADDRESS_NOT_DIALABLE", "the port"),
        (
            f"/ip4/1.2.3.4/tcp/80/ws/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}",
            "ADDRESS_NOT_DIALABLE",
            "",
        ),
        (f"{PLACE}/p2p/{RELAY}/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}", "CIRCUIT_MISSING", ""),
        ("203.0.113.10:4001", "MULTIADDR_INVALID", f"write {PLACE}/p2p/<peer id>"),
    ],
)
def test_mistakes(text: str, reason: str, remedy: str) -> None:
    with pytest.raises(MultiaddrError) as caught:
        parse_dial_target(text)
    assert caught.value.reason == reason
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"/ip4/1.2.3.4/udp/4001/p2p/{TARGET}", "missing /quic-v1 behind the UDP port"),
        (f"/ip4/1.2.3.4/udp/1/quic/p2p/{TARGET}", "old draft"),
        (f"/ip6zone/eth0/ip6/fe80::1/udp/1/p2p/{TARGET}", "missing /quic-v1"),
        (f"/ip6zone/eth0/ip6/fe80::1/p2p/{TARGET}", "missing a port"),
        (f"/ip4/1.2.3.4/p2p/{TARGET}", "missing a port"),
        (f"/ip4/1.2.3.4/tcp/80/ws/p2p/{TARGET}", "not spoken here: /tcp/ws"),
    ],
)
def test_why_an_address_cannot_be_dialled(text: str, said: str) -> None:
    with pytest.raises(MultiaddrError) as caught:
        parse_dial_target(text)
    assert said in caught.value.message


@pytest.mark.parametrize("text", ["", "5Q2STWvBListenerNodeID...", "12D3KooWxyz", "relay"])
def test_what_is_meant_as_a_peer_id_is_judged_as_one(text: str) -> None:
    with pytest.raises(PeerIdError):
        parse_dial_target(text)


@pytest.mark.parametrize(
    "text",
    [f"{PLACE}/p2p/{RELAY}", f"/dnsaddr/example.com/p2p/{RELAY}", f"/ip6/::1/tcp/1/p2p/{RELAY}"],
)
def test_relay_addresses(text: str) -> None:
    assert str(parse_relay_address(f" {text} ")) == text


@pytest.mark.parametrize(
    ("text", "reason", "remedy"),
    [
        (PLACE, "PEER_ID_MISSING", f"write {PLACE}/p2p/<relay's peer id>"),
        (f"{PLACE}/p2p/{RELAY}/p2p/{TARGET}", "CIRCUIT_MISSING", CIRCUIT),
        (f"{CIRCUIT}/p2p/{TARGET}", "RELAY_ADDRESS_IS_CIRCUIT", f"{PLACE}/p2p/{RELAY}"),
        (CIRCUIT, "RELAY_ADDRESS_IS_CIRCUIT", f"{PLACE}/p2p/{RELAY}"),
        (f"/p2p/{RELAY}", "ADDRESS_MISSING", f"{PLACE}/p2p/{RELAY}"),
        (str(RELAY), "MULTIADDR_INVALID", f"{PLACE}/p2p/<relay's peer id>"),
        (f"/ip4/0.0.0.0/udp/4001/quic-v1/p2p/{RELAY}", "ADDRESS_NOT_DIALABLE", "replace"),
        (
            "relay1.example.com:4001",
            "MULTIADDR_INVALID",
            "write /dns/relay1.example.com/udp/4001/quic-v1/p2p/<relay's peer id>",
        ),
        ("", "MULTIADDR_INVALID", "/ip4/"),
    ],
)
def test_mistakes_in_relay_addresses(text: str, reason: str, remedy: str) -> None:
    with pytest.raises(MultiaddrError) as caught:
        parse_relay_address(text)
    assert caught.value.reason == reason
    assert remedy in caught.value.remedy


parts = st.sampled_from(
    ["/ip4/1.2.3.4", "/udp/1", "/quic-v1", "/tcp/2", "/p2p-circuit", f"/p2p/{RELAY}", "/ws", "x"]
)


@given(st.lists(parts, max_size=9).map("".join) | st.text(max_size=50))
def test_whatever_is_written_is_a_target_or_our_error(text: str) -> None:
    for parse in (parse_dial_target, parse_relay_address):
        try:
            parsed = parse(text)
        except Dep2pError:
            continue
        if isinstance(parsed, DialTarget):
            for address in parsed.addresses:
                assert address.transport in ("quic-v1", "tcp", "circuit")
        else:
            assert parsed.peer_id == RELAY

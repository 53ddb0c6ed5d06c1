from __future__ import annotations

import dataclasses
import string
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from dep2p_daemon.circuit.events import (
    CircuitClosed,
    CircuitOpened,
    CircuitStatus,
    CloseReason,
    ReservationChange,
    ReservationChanged,
    ReservationStatus,
)
from dep2p_daemon.errors import ConnectionClosedError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.events import ConnectionClosed, ConnectionOpened
from dep2p_relay_server.story import ROLE_SECONDS, Story, byte_count, greeting
from dep2p_relay_server.texts import TEXTS, language_of

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Connection

LISTENER, DIALLER, RELAY = (PrivateKey.from_seed(bytes([n] * 32)).peer_id for n in (1, 2, 3))


def connection(peer: PeerId) -> Connection:
    """Of a connection the story reads nothing but whose it is."""
    return cast("Connection", SimpleNamespace(remote_peer=peer))


def opened(peer: PeerId) -> ConnectionOpened:
    return ConnectionOpened(connection(peer))


def closed(peer: PeerId) -> ConnectionClosed:
    return ConnectionClosed(connection(peer), ConnectionClosedError("gone"))


def reservation(change: ReservationChange) -> ReservationChanged:
    status = ReservationStatus(
        peer_id=LISTENER,
        address=Multiaddr.parse("/ip4/127.0.0.1/tcp/1"),
        created_at=0,
        expires_at=3600,
    )
    return ReservationChanged(status, change)


def circuit(up: int = 0, down: int = 0, reason: CloseReason | None = None) -> CircuitStatus:
    return CircuitStatus(
        circuit_id="r1",
        source=DIALLER,
        target=LISTENER,
        source_to_target_bytes=up,
        target_to_source_bytes=down,
        opened_at=0,
        limits=None,
        close_reason=reason,
    )


def test_the_seeds_story_in_its_own_words() -> None:
    story = Story(TEXTS["zh"])
    events: list[Any] = [
        opened(LISTENER),
        reservation(ReservationChange.CREATED),
        opened(DIALLER),
        CircuitOpened(circuit()),
    ]
    lines = [line for event in events for line in story.feed(event, now=0.0)]
    lines += story.traffic([circuit(1234, 1234)])
    assert lines[0] == f"📥 新连接: {LISTENER} (监听节点)"
    assert lines[1].startswith(f"📌 预留成功: {LISTENER}")
    assert lines[2:] == [
        f"📥 新连接: {DIALLER} (拨号节点)",
        f"🔄 建立 Circuit: {DIALLER} → {LISTENER}",
        "📊 正在中继数据...（1 个 Circuit）",
        "   上行: 1.2 KB",
        "   下行: 1.2 KB",
    ]


def test_a_peer_without_a_role_is_told_after_a_while() -> None:
    story = Story(TEXTS["en"])
    assert story.feed(opened(DIALLER), now=10.0) == []
    assert story.due(10.0 + ROLE_SECONDS / 2) == []
    assert story.due(10.0 + ROLE_SECONDS) == [f"📥 New connection: {DIALLER}"]
    assert story.due(99.0) == []
    assert story.feed(CircuitOpened(circuit()), now=99.0) == [
        f"🔄 Circuit opened: {DIALLER} → {LISTENER}"
    ]


def test_a_peer_that_leaves_before_its_role_shows_is_told_of() -> None:
    story = Story(TEXTS["en"])
    story.feed(opened(DIALLER), now=0.0)
    assert story.feed(closed(DIALLER), now=0.1) == [
        f"📥 New connection: {DIALLER}",
        f"📤 Disconnected: {DIALLER}",
    ]


def test_only_the_first_and_last_connection_of_a_peer_are_told() -> None:
    story = Story(TEXTS["en"])
    story.feed(opened(DIALLER), now=0.0)
    story.due(5.0)
    assert story.feed(opened(DIALLER), now=6.0) == []
    assert story.due(99.0) == []
    assert story.feed(closed(DIALLER), now=99.0) == []
    assert story.feed(closed(DIALLER), now=99.0) == [f"📤 Disconnected: {DIALLER}"]
    assert story.feed(closed(DIALLER), now=99.0) == []


def test_a_refreshed_reservation_is_no_news() -> None:
    story = Story(TEXTS["en"])
    assert story.feed(reservation(ReservationChange.REFRESHED), now=0.0) == []
    assert story.feed(reservation(ReservationChange.ENDED), now=0.0) == [
        f"📌 Reservation ended: {LISTENER}"
    ]


def test_the_end_of_a_circuit_tells_why_and_how_much() -> None:
    ended = CircuitClosed(circuit(5_000_000, 3, CloseReason.COMPLETED))
    assert Story(TEXTS["en"]).feed(ended, now=0.0) == [
        f"✅ Circuit closed: {DIALLER} → {LISTENER} (COMPLETED)",
        "   Up:   5.0 MB",
        "   Down: 3 B",
    ]


def test_traffic_is_told_only_while_it_flows() -> None:
    story = Story(TEXTS["en"])
    assert story.traffic([]) == []
    assert story.traffic([circuit()]) == []
    assert story.traffic([circuit(1, 0)])
    assert story.traffic([circuit(1, 0)]) == []
    assert story.traffic([circuit(1, 0), circuit(2, 5)])[0].endswith("(circuits: 2)")


def test_other_events_are_nobodys_business() -> None:
    assert Story(TEXTS["en"]).feed(object(), now=0.0) == []


def addresses(*hosts: str) -> list[Multiaddr]:
    return [
        address.with_peer_id(RELAY)
        for host in hosts
        for address in (Multiaddr.for_tcp(host, 4001), Multiaddr.for_udp(host, 4001))
    ]


@pytest.mark.parametrize(
    ("hosts", "heading", "first"),
    [
        (["127.0.0.1", "192.168.1.7", "198.51.101.10"], "public", "198.51.101.10"),
        (["127.0.0.1", "192.168.1.7"], "private", "192.168.1.7"),
        (["127.0.0.1"], "loopback", "127.0.0.1"),
    ],
)
def test_clients_are_given_the_most_public_address(
    hosts: list[str], heading: str, first: str
) -> None:
    texts = TEXTS["en"]
    lines = greeting(texts, RELAY, [Multiaddr.for_udp("0.0.0.0", 4001)], addresses(*hosts))
    assert f"Node ID: {RELAY}" in lines
    assert "  [1] /ip4/0.0.0.0/udp/4001/quic-v1" in lines
    at = lines.index(getattr(texts, heading))
    assert lines[at + 1 : at + 4] == [
        f"  /ip4/{first}/udp/4001/quic-v1/p2p/{RELAY}",
        f"  /ip4/{first}/tcp/4001/p2p/{RELAY}",
        "",
    ]


def test_an_announced_name_is_public() -> None:
    name = Multiaddr.parse("/dns4/relay.example.com/udp/4001/quic-v1").with_peer_id(RELAY)
    lines = greeting(TEXTS["en"], RELAY, [], [*addresses("10.0.0.1"), name])
    assert lines[lines.index(TEXTS["en"].public) + 1] == f"  {name}"


def test_the_languages_fill_in_the_same_things() -> None:
    def blanks(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    english = dataclasses.asdict(TEXTS["en"])
    for texts in TEXTS.values():
        for name, text in dataclasses.asdict(texts).items():
            assert blanks(text) == blanks(english[name]), name


@pytest.mark.parametrize(
    ("env", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh"),
        ({"LC_ALL": "", "LANG": "zh_CN"}, "zh"),
    ],
)
def test_the_language_follows_the_locale(env: dict[str, str], language: str) -> None:
    assert language_of(env) == language


@pytest.mark.parametrize(
    ("size", "text"), [(5, "5 B"), (1234, "1.2 KB"), (2_000_000, "2.0 MB"), (4e12, "4.0 TB")]
)
def test_byte_counts(size: float, text: str) -> None:
    assert byte_count(size) == text

from __future__ import annotations

import socket
import struct
from ipaddress import ip_interface

from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.addresses import OwnAddresses, expand
from dep2p_daemon.swarm.interfaces import interface_addresses, messages, parse_address

RELAY = PrivateKey.from_seed(b"r" * 32).peer_id
INTERFACES = tuple(
    map(ip_interface, ("192.0.2.5/24", "2001:db8::5/64", "fe80::5/64", "127.0.0.1/8", "::1/128"))
)


def parse(*texts: str) -> tuple[Multiaddr, ...]:
    return tuple(map(Multiaddr.parse, texts))


def test_the_unspecified_address_becomes_each_interface_of_its_family() -> None:
    (v4,) = parse("/ip4/0.0.0.0/udp/4001/quic-v1")
    assert expand(v4, INTERFACES) == parse(
        "/ip4/192.0.2.5/udp/4001/quic-v1", "/ip4/127.0.0.1/udp/4001/quic-v1"
    )
    (v6,) = parse("/ip6/::/tcp/4001")
    assert expand(v6, INTERFACES) == parse("/ip6/2001:db8::5/tcp/4001", "/ip6/::1/tcp/4001")
    (fixed,) = parse("/ip4/192.0.2.9/tcp/1")
    assert expand(fixed, INTERFACES) == (fixed,)


def test_the_most_useful_come_first_and_loopback_last() -> None:
    changes: list[tuple[Multiaddr, ...]] = []
    own = OwnAddresses(on_change=changes.append, read_interfaces=lambda: INTERFACES)
    own.set_listening(parse("/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/udp/1/quic-v1"))
    own.set_announced(parse("/ip4/203.0.113.7/tcp/1"))
    circuit = f"/ip4/198.51.100.1/tcp/4001/p2p/{RELAY}/p2p-circuit"
    own.set_circuits(parse(circuit))
    assert own.current == parse(
        "/ip4/203.0.113.7/tcp/1",
        circuit,
        "/ip4/192.0.2.5/tcp/1",
        "/ip4/192.0.2.5/udp/1/quic-v1",
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/127.0.0.1/udp/1/quic-v1",
    )
    assert changes[-1] == own.current


def test_a_change_is_told_once_and_nothing_is_no_change() -> None:
    changes: list[tuple[Multiaddr, ...]] = []
    interfaces = [INTERFACES]
    own = OwnAddresses(on_change=changes.append, read_interfaces=lambda: interfaces[-1])
    own.set_listening(parse("/ip4/0.0.0.0/tcp/1"))
    own.set_listening(parse("/ip4/0.0.0.0/tcp/1"))
    own.read_interfaces()
    assert len(changes) == 1
    interfaces.append((ip_interface("192.0.2.77/24"),))
    own.read_interfaces()
    assert changes[1:] == [parse("/ip4/192.0.2.77/tcp/1")]
    assert [str(network) for network in own.networks] == ["192.0.2.0/24"]


def test_our_own_peer_id_is_cut_off() -> None:
    own = OwnAddresses(on_change=lambda _: None, read_interfaces=lambda: ())
    own.set_circuits(parse(f"/ip4/198.51.100.1/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{RELAY}"))
    assert own.current == parse(f"/ip4/198.51.100.1/tcp/1/p2p/{RELAY}/p2p-circuit")


def test_the_kernel_tells_of_loopback() -> None:
    assert ip_interface("127.0.0.1/8") in interface_addresses()


def rtattr(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def test_an_address_message_is_parsed() -> None:
    remote, local = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
    head = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2)
    assert parse_address(head + rtattr(1, local)) == ip_interface("10.0.0.2/24")
    # Point to point: IFA_ADDRESS is the other end.
    assert parse_address(head + rtattr(1, remote) + rtattr(2, local)) == ip_interface("10.0.0.2/24")
    tentative = struct.pack("=BBBBI", socket.AF_INET6, 64, 0x40, 0, 2)
    assert parse_address(tentative + rtattr(1, bytes(16))) is None
    assert parse_address(head) is None


@given(st.binary(max_size=200))
def test_rubbish_from_netlink_ends_quietly(data: bytes) -> None:
    for _kind, body in messages(data):
        parse_address(body)
    parse_address(data)


def test_a_confirmation_does_not_vouch_for_itself() -> None:
    own = OwnAddresses(on_change=lambda _: None, read_interfaces=lambda: INTERFACES)
    seen, told, bound, old = parse(*(f"/ip4/203.0.113.{n}/tcp/1" for n in range(1, 5)))
    own.set_observed([seen])
    own.set_announced([told])
    own.set_listening([bound, *parse("/ip4/0.0.0.0/tcp/2")])
    (interface,) = parse("/ip4/192.0.2.5/tcp/2")
    own.set_confirmed([old, seen, told, bound, interface])
    assert own.current[:2] == (told, old)
    assert not own.vouched_without_confirmation(old)
    for address in (seen, told, bound, interface, *parse("/ip4/203.0.113.99/tcp/1")):
        assert own.vouched_without_confirmation(address)

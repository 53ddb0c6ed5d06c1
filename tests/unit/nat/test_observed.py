"""What observers say of our address, and what follows from it."""

from __future__ import annotations

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.nat.observed import (
    MappingBehaviour,
    ObservedAddresses,
    ObservedSettings,
)

LISTEN = Multiaddr.for_udp("0.0.0.0", 4001)
LISTEN_TCP = Multiaddr.for_tcp("0.0.0.0", 4001)
LISTEN_V6 = Multiaddr.for_udp("::", 4001)
LOCAL = Multiaddr.for_udp("192.168.1.10", 4001)
MAPPED = Multiaddr.for_udp("45.8.2.101", 30001)
OTHER_MAPPED = Multiaddr.for_udp("45.8.2.101", 30002)


def observer(number: int, port: int = 4001) -> Multiaddr:
    return Multiaddr.for_udp(f"45.8.1.{number}", port)


def observed(settings: ObservedSettings | None = None) -> ObservedAddresses:
    known = ObservedAddresses(settings)
    known.set_listening([LISTEN, LISTEN_TCP, LISTEN_V6])
    return known


def see(
    known: ObservedAddresses,
    what: Multiaddr = MAPPED,
    *,
    by: Multiaddr | None = None,
    local: Multiaddr = LOCAL,
    now: float = 0.0,
) -> bool:
    return known.observe(local=local, remote=by or observer(1), observed=what, now=now)


def test_one_observer_gives_a_candidate_two_confirm_it() -> None:
    known = observed()
    assert see(known)
    assert [(one.address, one.observers) for one in known.candidates(0.0)] == [(MAPPED, 1)]
    assert known.confirmed(0.0) == ()
    assert known.mapping("quic-v1", 0.0) is MappingBehaviour.UNKNOWN
    assert see(known, by=observer(2))
    assert known.confirmed(0.0) == (MAPPED,)
    assert known.mapping("quic-v1", 0.0) is MappingBehaviour.ENDPOINT_INDEPENDENT


def test_the_same_observer_twice_is_one() -> None:
    known = observed()
    for port in range(4001, 4010):
        assert see(known, by=observer(1, port))
    assert known.confirmed(0.0) == ()
    for subnet in range(9):  # one /56 is one customer's
        see(
            known,
            Multiaddr.for_udp("2a0e::5", 3000),
            by=Multiaddr.for_udp(f"2a0e:1:2:{subnet:x}::1", 4001),
            local=Multiaddr.for_udp("2a0e::5", 4001),
        )
    assert known.confirmed(0.0) == ()


def test_another_address_for_each_observer_is_an_address_dependent_mapping() -> None:
    known = observed()
    see(known, MAPPED, by=observer(1))
    see(known, OTHER_MAPPED, by=observer(2))
    assert known.mapping("quic-v1", 0.0) is MappingBehaviour.ADDRESS_DEPENDENT
    assert known.mapping("tcp", 0.0) is MappingBehaviour.UNKNOWN
    assert known.confirmed(0.0) == ()
    assert {one.address for one in known.candidates(0.0)} == {MAPPED, OTHER_MAPPED}


def test_an_observer_that_sees_something_new_takes_back_what_it_saw_before() -> None:
    known = observed()
    see(known, MAPPED, by=observer(1))
    see(known, MAPPED, by=observer(2))
    for number in (1, 2):  # the NAT was restarted
        see(known, OTHER_MAPPED, by=observer(number), now=5.0)
    assert known.confirmed(5.0) == (OTHER_MAPPED,)
    assert [one.address for one in known.candidates(5.0)] == [OTHER_MAPPED]


def test_observations_expire() -> None:
    known = observed(ObservedSettings(lifetime=100.0))
    see(known, by=observer(1), now=0.0)
    see(known, by=observer(2), now=60.0)
    assert known.confirmed(99.0) == (MAPPED,)
    assert known.confirmed(101.0) == ()
    assert len(known.candidates(101.0)) == 1
    assert known.candidates(161.0) == ()


def test_only_listening_sockets_count() -> None:
    known = observed()
    assert not see(known, local=Multiaddr.for_udp("192.168.1.10", 50000))
    assert not see(known, Multiaddr.for_tcp("45.8.2.101", 30001), local=LOCAL)
    assert not see(known, Multiaddr.for_udp("2a0e::5", 30001), local=LOCAL)
    known.set_listening([Multiaddr.for_udp("192.168.1.11", 4001)])
    assert not see(known)  # another address of this machine
    assert known.candidates(0.0) == ()


def test_observers_in_our_own_network_see_the_wrong_side_of_the_nat() -> None:
    known = observed()
    assert not see(known, by=Multiaddr.for_udp("192.168.1.20", 4001))
    assert not see(known, Multiaddr.for_udp("192.168.1.10", 4001))
    assert not see(known, by=observer(1) / "/p2p-circuit")


def test_a_socket_that_is_not_listened_on_any_more_is_forgotten() -> None:
    known = observed()
    see(known)
    known.set_listening([LISTEN_TCP])
    known.set_listening([LISTEN, LISTEN_TCP])
    assert known.candidates(0.0) == ()


def test_observers_are_bounded_and_the_latest_stay() -> None:
    known = observed(ObservedSettings(max_observers=4))
    for number in range(1, 100):
        see(known, Multiaddr.for_udp("45.8.2.101", 30000 + number), by=observer(number))
    assert {one.address.port for one in known.candidates(0.0)} == {30096, 30097, 30098, 30099}


def test_one_address_of_each_socket_is_told() -> None:
    known = observed()
    for number in (1, 2, 3):
        see(known, MAPPED, by=observer(number))
    for number in (4, 5):
        see(known, OTHER_MAPPED, by=observer(number))
    tcp = Multiaddr.for_tcp("45.8.2.101", 30009)
    for number in (6, 7):
        see(known, tcp, by=observer(number), local=Multiaddr.for_tcp("192.168.1.10", 4001))
    assert known.confirmed(0.0) == (MAPPED, tcp)

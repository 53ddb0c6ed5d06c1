"""One port number for UDP and TCP, and what is said where an address is not this machine's."""

from __future__ import annotations

import pytest

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.listen_ports import with_free_port
from dep2p_daemon.multiaddr import Multiaddr


def test_all_get_one_number_that_is_free() -> None:
    wanted = [Multiaddr.for_udp("127.0.0.1", 0), Multiaddr.for_tcp("127.0.0.1", 0)]
    udp, tcp = with_free_port(wanted)
    assert udp.port == tcp.port != 0


def test_a_port_that_was_given_is_left_alone() -> None:
    given = Multiaddr.for_udp("127.0.0.1", 4001)
    assert with_free_port([given]) == (given,)


def test_an_address_of_another_machine_is_told_as_such() -> None:
    with pytest.raises(ConfigError) as caught:
        with_free_port([Multiaddr.for_udp("203.0.113.250", 0)])
    assert caught.value.reason == "LISTEN_FAILED"
    assert "203.0.113.250: Cannot assign requested address" in caught.value.message
    assert "--listen" in caught.value.remedy

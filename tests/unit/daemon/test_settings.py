"""What the configuration says is what the rooms get."""

from __future__ import annotations

from dep2p_daemon.daemon import (
    quic_settings,
    relay_server_settings,
    swarm_settings,
    tcp_settings,
)
from dep2p_daemon.ops.config import LimitsSection, QuicSection, RelayServerSection


def test_limits_reach_swarm_and_transports() -> None:
    limits = LimitsSection(
        max_connections=1,
        max_inbound_connections=2,
        max_inbound_connections_per_ip=9,
        max_connections_per_peer=3,
        max_inbound_streams=4,
        max_inbound_streams_per_connection=5,
        receive_memory=6 << 20,
    )
    settings = swarm_settings(limits)
    for name in set(LimitsSection.model_fields) - {"receive_memory"}:
        assert getattr(settings, name) == getattr(limits, name), name
    assert quic_settings(limits, QuicSection()).max_connections == 1
    assert quic_settings(limits, QuicSection()).receive_memory == 6 << 20
    assert tcp_settings(limits).receive_memory == 6 << 20


def test_a_relays_limits_reach_it() -> None:
    section = RelayServerSection(
        max_reservations=1,
        max_reservations_per_ip=2,
        reservation_ttl=61,
        max_circuits=3,
        max_circuits_per_source=4,
        max_circuits_per_target=5,
        rate=6,
        total_rate=7,
        circuit_duration=8,
        circuit_data=9,
    )
    settings = relay_server_settings(section)
    for name in (
        "max_reservations",
        "max_reservations_per_ip",
        "reservation_ttl",
        "max_circuits",
        "max_circuits_per_source",
        "max_circuits_per_target",
    ):
        assert getattr(settings.admission, name) == getattr(section, name), name
    assert (settings.pair_rate, settings.total_rate) == (6, 7)
    assert (settings.circuit_duration, settings.circuit_data) == (8, 9)


def test_zero_means_no_limit() -> None:
    section = RelayServerSection(rate=0, total_rate=0, circuit_duration=0, circuit_data=0)
    settings = relay_server_settings(section)
    assert settings.pair_rate is None
    assert settings.total_rate is None
    assert settings.circuit_duration is None
    assert settings.circuit_data is None

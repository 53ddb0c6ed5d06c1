from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.circuit.admission import AdmissionLimits
from dep2p_daemon.circuit.relay_server import RelayServerSettings
from dep2p_daemon.daemon import (
    quic_settings,
    relay_server_settings,
    swarm_settings,
    tcp_settings,
)
from dep2p_daemon.errors import ConfigError
from dep2p_daemon.ops.config import (
    Config,
    LimitsSection,
    NodeSection,
    QuicSection,
    RelayServerSection,
    default_data_dir,
    default_socket,
)
from dep2p_daemon.ops.config_load import default_file, fields, load_config
from dep2p_daemon.ops.config_text import to_toml
from dep2p_daemon.quic.settings import QuicSettings
from dep2p_daemon.swarm.settings import SwarmSettings
from dep2p_daemon.tcp.settings import TcpSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

RELAY = (
    "/ip4/203.0.113.10/udp/4001/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dep2pd.toml"


def load(file: Path, text: str = "", env: dict[str, str] | None = None, **flags: object) -> Config:
    file.write_text(text)
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return load_config(path=file, env=env or {}, flags=dotted)


def problems(file: Path, text: str, env: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, text, env, **flags)
    return caught.value.message


def test_defaults_come_from_the_preset(file: Path) -> None:
    desktop, relay = load(file), load(file, node__preset="relay")
    assert (desktop.node.port, desktop.relay_server.enabled) == (0, False)
    assert (relay.node.port, relay.relay_server.enabled) == (4001, True)
    assert relay.source("node.port") == "preset relay"
    assert relay.source("node.preset") == "flag --preset"
    assert desktop.source("limits.max_connections") == "default"


def test_a_config_made_in_code_has_the_presets_values_too() -> None:
    assert Config(node=NodeSection(preset="relay")).relay_server.enabled
    assert not Config().relay_server.enabled


def test_flag_over_environment_over_file_over_preset(file: Path) -> None:
    text = "[node]\npreset = 'relay'\nport = 1\n"
    env = {"DEP2P_NODE__PORT": "2"}
    assert load(file).node.port == 0
    assert load(file, text).node.port == 1
    assert load(file, text).source("node.port") == str(file)
    assert load(file, text, env).node.port == 2
    assert load(file, text, env).source("node.port") == "environment DEP2P_NODE__PORT"
    assert load(file, text, env, node__port=3).node.port == 3
    assert load(file, text, env, node__port=3).source("node.port") == "flag --port"
    assert load(file, "[node]\npreset = 'relay'").node.port == 4001


def test_the_program_may_prefer_other_defaults(file: Path) -> None:
    file.write_text("")
    config = load_config(path=file, env={}, defaults={"log.level": "warning"})
    assert config.log.level == "warning"
    file.write_text("[log]\nlevel = 'debug'")
    assert load_config(path=file, env={}, defaults={"log.level": "warning"}).log.level == "debug"


def test_lists_in_the_environment_are_separated_by_commas(file: Path) -> None:
    config = load(file, env={"DEP2P_NODE__LISTEN": "127.0.0.1, ::1", "DEP2P_RELAYS": RELAY})
    assert [str(entry) for entry in config.node.listen] == ["127.0.0.1", "::1"]
    assert [str(relay) for relay in config.relays] == [RELAY]


def test_listening_on_hosts_addresses_and_everything(file: Path) -> None:
    file.write_text("")

    def listening(port: int = 0, listen: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        given: dict[str, object] = {"node.listen": listen} | ({"node.port": port} if port else {})
        config = load_config(path=file, env={}, flags=given)
        return (
            [str(address) for address in config.listen_addresses],
            [str(address) for address in config.optional_listen_addresses],
        )

    assert listening(7) == (
        ["/ip4/0.0.0.0/udp/7/quic-v1", "/ip4/0.0.0.0/tcp/7"],
        ["/ip6/::/udp/7/quic-v1", "/ip6/::/tcp/7"],
    )
    assert listening(7, ["::1"]) == (
        ["/ip6/::1/udp/7/quic-v1", "/ip6/::1/tcp/7"],
        [],
    )
    assert listening(listen=["/ip4/127.0.0.1/tcp/9"]) == (["/ip4/127.0.0.1/tcp/9"], [])


def test_every_problem_is_told_at_once_with_its_place_and_remedy(file: Path) -> None:
    text = "[node]\nprot = 1\nport = 99999\n[log]\nlevel = 'loud'\n[relay_server]\nenabled = 'so'"
    message = problems(
        file,
        text,
        {"DEP2P_RELAY_SERVER__RESERVATION_TTL": "soon", "DEP2P_LIMITS__MAX_CONNECTION": "1"},
        relays=["/ip4/203.0.113.10/udp/4001/quic-v1"],
        node__announce=["/ip4/0.0.0.0/tcp/1", RELAY],
    )
    assert "9 problems" in message
    for part in (
        f"node.prot ({file}): is not a setting",
        "did you mean node.port?",
        f"node.port = 99999 ({file}): is not allowed",
        "write a number less than or equal to 65535",
        "write 'debug', 'info', 'warning' or 'error'",
        "write true or false",
        "relay_server.reservation_ttl = 'soon' (environment DEP2P_RELAY_SERVER__RESERVATION_TTL)",
        "write 500ms, 10s, 2m, 1h",
        "did you mean limits.max_connections?",
        "(flag --relay)",
        "/p2p/",
        "(flag --announce): is not an address that anybody can dial",
        "has /p2p or /p2p-circuit",
    ):
        assert part in message, part


def test_a_problem_names_its_key_for_programs(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, node__port="x", log__level="y")
    assert caught.value.reason == "CONFIG_INVALID"
    assert caught.value.metadata["keys"] == "node.port,log.level"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("relays = 3", "write a list"),
        ("[node\n", "is not TOML"),
        ("node = 5", "node"),
        ("[node.port]\nx = 1", "node.port"),
        ("socket = 'relative'", "is a relative path"),
        ("[relay_server]\ncircuit_data = -1", "greater than or equal to 0"),
        ("[relay_server]\nrate = '5 parsecs'", "is not a byte count"),
        ("[node]\nlisten = ['nonsense']", "is neither an IP address nor a multiaddr"),
        ("[node]\nlisten = ['/dns4/example.com/tcp/1']", "is no address that can be listened on"),
        (f"[node]\nlisten = ['{RELAY}']", "ends in /p2p"),
        ("[node]\nbootstrap = ['/ip4/203.0.113.1/tcp/1']", "names no peer"),
        (
            "[node]\nbootstrap = ['1.2.3.4:5']",
            "write /ip4/1.2.3.4/udp/5/quic-v1/p2p/<peer id>",
        ),
        ("[node]\ndata_dir = 7", "is not a text"),
    ],
)
def test_a_wrong_file_is_refused_in_words(file: Path, text: str, complaint: str) -> None:
    assert complaint in problems(file, text)


def test_a_socket_path_that_no_kernel_takes_is_refused(file: Path) -> None:
    longest = "/" + "x" * 106
    assert load(file, socket=longest).socket == Path(longest)
    assert "at most 107" in problems(file, "", socket=longest + "y")


def test_a_port_beside_exact_addresses_is_a_contradiction(file: Path) -> None:
    text = "[node]\nlisten = ['/ip4/127.0.0.1/tcp/9']\n"
    assert "has no effect beside node.listen" in problems(file, text, node__port=7)
    assert load(file, "[node]\nlisten = ['127.0.0.1']", node__port=7).node.port == 7


def test_more_inbound_connections_than_connections_is_a_contradiction(file: Path) -> None:
    message = problems(file, "[limits]\nmax_connections = 10\nmax_inbound_connections = 11")
    assert "is more than limits.max_connections" in message


def test_only_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(path=missing, env={})
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(env={"DEP2P_CONFIG": str(missing)})


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path=tmp_path, env={})


def test_usual_places_of_root_and_of_others() -> None:
    env = {"HOME": "/home/ann"}
    assert str(default_data_dir(env, 1000)) == "/home/ann/.local/state/dep2p"
    assert str(default_data_dir({"XDG_STATE_HOME": "/s"}, 1000)) == "/s/dep2p"
    assert str(default_data_dir(env, 0)) == "/var/lib/dep2p"
    assert str(default_socket(env, 1000)) == "/run/user/1000/dep2p/dep2pd.sock"
    assert str(default_socket({"XDG_RUNTIME_DIR": "/r"}, 1000)) == "/r/dep2p/dep2pd.sock"
    assert str(default_socket(env, 0)) == "/run/dep2p/dep2pd.sock"
    assert str(default_file(env, 1000)) == "/home/ann/.config/dep2p/dep2pd.toml"
    assert str(default_file({"XDG_CONFIG_HOME": "/c"}, 1000)) == "/c/dep2p/dep2pd.toml"
    assert str(default_file(env, 0)) == "/etc/dep2p/dep2pd.toml"


def test_the_daemon_and_its_client_look_for_the_socket_in_the_same_place() -> None:
    from dep2p.socket_path import default_socket_path

    for env, uid in (({}, 0), ({"XDG_RUNTIME_DIR": "/r"}, 7), ({}, 7)):
        assert default_socket_path(env, uid) == default_socket(env, uid)


def test_what_show_prints_is_a_file_with_the_same_values(file: Path) -> None:
    config = load(
        file,
        "[relay_server]\nrate = '1MB'\nreservation_ttl = '90s'\ncircuit_data = 0\n",
        {"DEP2P_RELAYS": RELAY},
        node__preset="relay",
        node__listen=["127.0.0.1", "::1"],
        node__announce=["/dns4/relay.example.com/udp/4001/quic-v1"],
    )
    text = to_toml(config)
    assert load(file, text).model_dump() == config.model_dump()
    assert 'rate = "1MB"' in text
    assert "# environment DEP2P_RELAYS" in text
    assert "# preset relay" in text
    assert "# flag --listen" in text


def test_every_key_has_a_description_and_a_line_in_show(file: Path) -> None:
    text = to_toml(load(file))
    for key, field in fields().items():
        assert field.description, key
        assert f"{key.rpartition('.')[2]} = " in text


def test_the_defaults_are_those_of_the_rooms() -> None:
    config = Config()
    assert swarm_settings(config.limits) == SwarmSettings()
    assert quic_settings(config.limits, config.quic) == QuicSettings()
    assert tcp_settings(config.limits) == TcpSettings()
    usual = RelayServerSettings()
    ours = relay_server_settings(config.relay_server)
    assert dataclasses.replace(ours, access=usual.access) == usual


def test_every_cap_of_the_relay_can_be_set() -> None:
    """A field that the wiring forgets would keep its default here."""
    caps = {field.name: 7 for field in dataclasses.fields(AdmissionLimits)}
    caps["reservation_ttl"] = 77
    rates = {"rate": 1, "total_rate": 2, "circuit_duration": 3, "circuit_data": 4}
    settings = relay_server_settings(RelayServerSection.model_validate(caps | rates))
    assert dataclasses.asdict(settings.admission) == caps
    assert (settings.pair_rate, settings.total_rate) == (1, 2)
    assert (settings.circuit_duration, settings.circuit_data) == (3, 4)


def test_every_limit_reaches_its_room() -> None:
    values = {name: 2**15 + number for number, name in enumerate(LimitsSection.model_fields)}
    values["receive_memory"] = 2**21
    section = LimitsSection.model_validate(values)
    memory = values.pop("receive_memory")
    settings = swarm_settings(section)
    assert {name: getattr(settings, name) for name in values} == values
    own = {"fast_path": False, "max_datagram_size": 1400, "prefer_chacha": True}
    quic = quic_settings(section, QuicSection.model_validate(own))
    assert {name: getattr(quic, name) for name in QuicSection.model_fields} == own
    assert quic.max_connections == values["max_connections"]
    assert quic.max_inbound_streams == values["max_inbound_streams_per_connection"]
    assert quic.receive_memory == tcp_settings(section).receive_memory == memory

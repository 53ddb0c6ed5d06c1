"""The daemon's start and end: what it refuses with which remedy, what it keeps."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from tests.api_nodes import api_nodes, config_in, short_directory
from tests.waiting import until

from dep2p_daemon.daemon import Daemon
from dep2p_daemon.errors import ConfigError, PreconditionError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dep2p_daemon.ops.config import Config


@pytest.fixture
def directory() -> Iterator[Path]:
    path = short_directory()
    yield path
    shutil.rmtree(path)


async def start_and_stop(config: Config) -> Daemon:
    async with Daemon(config) as daemon:
        return daemon


async def test_a_first_start_makes_a_key_and_a_second_keeps_it(directory: Path) -> None:
    config = config_in(directory / "deep" / "down")
    first = await start_and_stop(config)
    assert stat.S_IMODE(config.node.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(config.key_path.stat().st_mode) == 0o600
    second = await start_and_stop(config)
    assert first.peer_id == second.peer_id


async def test_the_peerstore_survives_a_restart(directory: Path) -> None:
    async with api_nodes() as start:
        b = await start()
        config = config_in(directory)
        async with Daemon(config) as daemon:
            address = Multiaddr.parse(b.address())
            connection = await daemon.swarm.dial(
                b.daemon.peer_id, (address.without_peer_id(),), timeout=10
            )
            await daemon.identify.wait_identified(connection)
        async with Daemon(config) as daemon:
            assert "/ipfs/ping/1.0.0" in daemon.peerstore.protocols(b.daemon.peer_id)
            await daemon.swarm.dial(b.daemon.peer_id, timeout=10)


async def test_one_daemon_to_a_data_directory(directory: Path) -> None:
    config = config_in(directory)
    async with Daemon(config):
        with pytest.raises(PreconditionError) as caught:
            await start_and_stop(config)
        assert caught.value.reason == "ALREADY_RUNNING"
        assert str(config.node.data_dir) in caught.value.message
        assert "--data-dir" in caught.value.remedy
    await start_and_stop(config)


async def test_udp_and_tcp_share_a_port_number(directory: Path) -> None:
    async with Daemon(config_in(directory, node={"listen": ["127.0.0.1"]})) as daemon:
        ports = [address.port for address in daemon.swarm.listen_addresses]
        assert len(ports) == 2
        assert len(set(ports)) == 1


async def test_without_listen_addresses_all_interfaces_are_listened_on(directory: Path) -> None:
    async with Daemon(
        config_in(directory, node={"listen": ()}, nat={"port_mapping": False})
    ) as daemon:
        listening = daemon.swarm.listen_addresses
        assert {address.host for address in listening} <= {"0.0.0.0", "::"}
        assert len({address.port for address in listening}) == 1
        # To peers only addresses that exist are told.
        assert daemon.addresses()
        assert not any(address.is_unspecified for address in daemon.addresses())


async def test_a_port_that_is_taken(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = config_in(directory, node={"listen": ["127.0.0.1"], "port": port})
        with pytest.raises(ConfigError) as caught:
            await start_and_stop(config)
    assert str(port) in caught.value.message
    assert caught.value.remedy
    # Nothing is left of the attempt: the same again succeeds once the port is free.
    await start_and_stop(config)


async def test_an_address_that_is_not_ours(directory: Path) -> None:
    config = config_in(directory, node={"listen": ["/ip4/203.0.113.1/tcp/0"]})
    with pytest.raises(ConfigError):
        await start_and_stop(config)


async def test_a_data_directory_that_cannot_be_made(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(ConfigError) as caught:
        await start_and_stop(config_in(directory / "file"))
    assert caught.value.reason == "DIRECTORY_UNUSABLE"


async def test_a_key_that_others_can_read(directory: Path) -> None:
    config = config_in(directory)
    await start_and_stop(config)
    config.key_path.chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        await start_and_stop(config)
    assert caught.value.reason == "KEY_FILE_MODE"
    assert str(config.key_path) in caught.value.remedy


async def test_announced_addresses_are_told(directory: Path) -> None:
    announced = "/ip4/203.0.113.10/udp/4001/quic-v1"
    config = config_in(directory, node={"announce": [announced]})
    async with Daemon(config) as daemon:
        assert f"{announced}/p2p/{daemon.peer_id}" in map(str, daemon.addresses())


async def test_bootstrap_peers_are_connected_to() -> None:
    async with api_nodes() as start:
        b = await start()
        a = await start(node={"bootstrap": [b.address()]})
        await until(lambda: a.daemon.swarm.connections(b.daemon.peer_id))


async def test_a_bootstrap_peer_that_is_down_is_tried_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dep2p_daemon.discovery.bootstrap.FIRST_PAUSE", 0.05)
    later = config_in(directory)
    async with AsyncExitStack() as stack, api_nodes() as start:
        daemon = await stack.enter_async_context(Daemon(later))
        address = next(str(a) for a in daemon.addresses() if a.transport == "tcp")
        await stack.aclose()
        a = await start(node={"bootstrap": [address]})
        await asyncio.sleep(0.1)
        port = int(address.split("/")[4])
        again = config_in(directory, node={"listen": ["127.0.0.1"], "port": port})
        async with Daemon(again) as daemon:
            await until(lambda: a.daemon.swarm.connections(daemon.peer_id))


async def test_the_first_reason_to_stop_stays(directory: Path) -> None:
    daemon = Daemon(config_in(directory))
    daemon.request_stop("signal")
    daemon.request_stop("request")
    assert await daemon.wait_stop_requested() == "signal"


async def test_its_end_is_told_to_peers_and_frees_the_port(directory: Path) -> None:
    async with api_nodes() as start:
        b = await start()
        async with Daemon(config_in(directory)) as daemon:
            address = next(a for a in daemon.addresses() if a.transport == "quic-v1")
            await b.client.dial(str(address))
            (connection,) = b.daemon.swarm.connections(daemon.peer_id)
        error = await connection.wait_closed()
        assert error.remote
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", address.port or 0))


async def test_a_failed_start_leaves_nothing_locked(directory: Path) -> None:
    config = config_in(directory, node={"announce": ["/ip4/203.0.113.10/udp/1/quic-v1"]})
    config.node.data_dir.mkdir(mode=0o700)
    config.key_path.write_bytes(b"no key")
    config.key_path.chmod(0o600)
    with pytest.raises(ConfigError):
        await start_and_stop(config)
    config.key_path.write_bytes(PrivateKey.generate().to_protobuf())
    await start_and_stop(config)

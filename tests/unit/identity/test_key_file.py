from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.identity.key_file import load_or_create
from dep2p_daemon.identity.keys import PrivateKey

if TYPE_CHECKING:
    from pathlib import Path


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    old_mask = os.umask(0)
    try:
        key = load_or_create(path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create(path).peer_id == key.peer_id
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_a_libp2p_private_key(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    key = load_or_create(path)
    assert PrivateKey.from_protobuf(path.read_bytes()).peer_id == key.peer_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o610, 0o777])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    load_or_create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load_or_create(path)
    assert caught.value.reason == "KEY_FILE_MODE"
    assert caught.value.remedy == f"run: chmod 600 {path}"


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(5000)])
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_or_create(path)
    assert caught.value.reason == "KEY_FILE_INVALID"
    assert str(path) in caught.value.message
    assert path.read_bytes() == content


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "node.key"
    with pytest.raises(ConfigError) as caught:
        load_or_create(missing)
    assert caught.value.reason == "KEY_FILE_UNWRITABLE"
    assert str(missing) in caught.value.message
    with pytest.raises(ConfigError) as caught:
        load_or_create(tmp_path)
    assert caught.value.reason == "KEY_FILE_UNREADABLE"


def test_starts_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    together = threading.Barrier(8)
    ids: list[object] = []

    def start() -> None:
        together.wait()
        ids.append(load_or_create(path).peer_id)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_start_that_fails_half_way_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.key"

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ConfigError, match="No space left"):
        load_or_create(path)
    assert list(tmp_path.iterdir()) == []

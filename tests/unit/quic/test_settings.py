"""Settings that cannot work are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from dep2p_daemon.errors import ConfigError
from dep2p_daemon.quic.settings import QuicSettings


@pytest.mark.parametrize(
    "setting",
    [
        {"max_datagram_size": 1199},
        {"max_datagram_size": 65_001},
        {"worker_id": 256},
        {"max_inbound_streams": 0},
        {"stateless_reset_key": b"short"},
    ],
    ids=str,
)
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=name):
        QuicSettings(**setting)


@pytest.mark.parametrize("size", [1200, 1400, 9000, 65_000])
def test_settings_in_range(size: int) -> None:
    assert QuicSettings(max_datagram_size=size).max_datagram_size == size

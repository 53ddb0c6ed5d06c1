from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dep2p_daemon.errors import AlreadyExistsError, InvalidArgumentError
from dep2p_daemon.swarm.registry import ProtocolRegistry

if TYPE_CHECKING:
    from dep2p_daemon.muxed import Stream


async def serve(stream: Stream) -> None:
    await stream.aclose()


def test_handlers_come_and_go_and_each_change_is_told() -> None:
    changes: list[tuple[str, ...]] = []
    registry = ProtocolRegistry(lambda: changes.append(registry.protocols))
    registry.set("/b/1", serve)
    registry.set("/a/1", serve)
    registry.remove("/b/1")
    registry.remove("/b/1")
    assert changes == [("/b/1",), ("/a/1", "/b/1"), ("/a/1",)]
    assert registry.get("/a/1") is serve
    assert registry.is_supported("/a/1")
    assert not registry.is_supported("/b/1")
    assert registry.get("/b/1") is None


def test_a_protocol_is_served_by_one() -> None:
    registry = ProtocolRegistry(lambda: None)
    registry.set("/a/1", serve)
    with pytest.raises(AlreadyExistsError, match="/a/1 is already served"):
        registry.set("/a/1", serve)


@pytest.mark.parametrize("name", ["", "/", "a/1", "/a\n", "/a\x00b", "/" + "x" * 1000])
def test_what_multistream_could_not_carry_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a protocol id"):
        ProtocolRegistry(lambda: None).set(name, serve)

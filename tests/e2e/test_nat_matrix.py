"""Every pair of networks, in both dial directions: direct where it can be, else why not."""

from __future__ import annotations

import statistics
import time
from typing import Final

import pytest
from tests.e2e.lab_daemons import lab_daemons
from tests.requires import require_natlab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

KINDS: Final = (
    "none",
    "full-cone",
    "restricted-cone",
    "port-restricted",
    "symmetric",
    "cgnat",
    "udp-blocked",
    "ipv6-firewall",
)
PORT_FILTERING: Final = frozenset({"port-restricted", "symmetric", "cgnat", "udp-blocked"})
"""Let in only what comes from an address and port that was sent to."""
MEDIAN_SECONDS: Final = 3.0
"""From the dial to the direct path, with links of 20 ms."""


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


def expected(one: str, other: str) -> str:
    """What a dial between these two leads to."""
    pair = {one, other}
    if "ipv6-firewall" in pair and not pair <= {"ipv6-firewall", "none"}:
        return "NO_COMMON_IP_VERSION"
    if "symmetric" in pair and pair <= PORT_FILTERING:
        return "PUNCH_FAILED"
    return "direct"


@pytest.mark.parametrize("dialler", KINDS)
async def test_a_dialler_with_every_listener(dialler: str) -> None:
    found: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for listener in KINDS:
        async with lab_daemons(dialler, listener) as net:
            began = time.monotonic()
            answer = await net.alice.ctl_json(
                "dial", net.circuit("alice", "bob"), "--wait-direct", "10s"
            )
            if answer["path"] == "direct":
                found[listener] = "direct"
                seconds[listener] = time.monotonic() - began
                await net.echo("alice", net.bob.peer_id)
            else:
                found[listener] = answer["direct_failure"]["reason"]
                await net.echo("alice", net.circuit("alice", "bob"))
    assert found == {listener: expected(dialler, listener) for listener in KINDS}, seconds
    assert statistics.median(seconds.values()) < MEDIAN_SECONDS, seconds

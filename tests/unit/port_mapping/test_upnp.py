"""A keeper in front of a gateway that speaks UPnP only, and what odd and hostile ones get."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.gateway_nodes import INSIDE, TCP, UDP, kept, router
from tests.scripted_igd import Entry, ScriptedIgd
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import UnreachableError
from dep2p_daemon.nat.port_mapping.terms import Endpoint, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway_nodes import Kept

HOME: Final = ip_address("203.0.113.7")
FOUND: Final = 2.6
"""Seconds: the other two protocols have had their head starts, and a last chance."""
KEYS: Final = {("UDP", 4001), ("TCP", 4001)}
OTHERS: Final = Entry("192.168.1.66", 4001, 3600)


@asynccontextmanager
async def upnp(igd: ScriptedIgd) -> AsyncIterator[Kept]:
    """A keeper in front of a router that drops what comes for PCP and NAT-PMP."""
    made = router()
    made.silent = True
    async with kept(made, igd=igd) as it:
        await it.until(FOUND)
        yield it


@pytest.mark.parametrize(
    "moods",
    [
        {},
        {"version": 2},
        {"service": "WANPPPConnection"},
        {"chunked": True},
        {"only_permanent": True},
        {"only_permanent": True, "lease_error": 402},
    ],
    ids=str,
)
def test_the_ports_are_mapped_shown_and_removed(moods: dict[str, Any]) -> None:
    @virtual_time
    async def run() -> None:
        async with upnp(ScriptedIgd(**moods)) as it:
            assert it.keeper.status.protocol is Protocol.UPNP
            assert {(one.port, one.external) for one in it.keeper.mappings} == {
                (UDP, Endpoint(HOME, 4001)),
                (TCP, Endpoint(HOME, 4001)),
            }
            assert set(it.lan.igd.mappings) == KEYS
            lease = 0 if "only_permanent" in moods else 7200
            assert {one.lease for one in it.lan.igd.mappings.values()} == {lease}
            assert {one.client for one in it.lan.igd.mappings.values()} == {INSIDE}
            it.running.cancel()
            await it.keeper.remove_all()
            assert it.lan.igd.mappings == {}

    run()


@virtual_time
async def test_upnp_is_not_asked_where_another_protocol_works() -> None:
    igd = ScriptedIgd()
    async with kept(router(), igd=igd) as it:
        await it.until(1000)
        assert it.keeper.status.protocol is Protocol.PCP
        assert igd.searches == igd.requests == []


def test_a_daemon_that_needs_no_upnp_does_not_load_it() -> None:
    program = (
        "import sys, dep2p_daemon.daemon; "
        "print([one for one in sys.modules if one.endswith(('.upnp', '.igd', 'pyexpat'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("permanent", [False, True])
def test_mappings_are_renewed_after_half_of_their_life(permanent: bool) -> None:
    @virtual_time
    async def run() -> None:
        async with upnp(ScriptedIgd(only_permanent=permanent)) as it:
            times: list[float] = []
            before = 0
            for minute in range(1, 500):
                await it.until(FOUND + 60 * minute)
                count = it.lan.igd.actions.count("AddPortMapping")
                if count > before:
                    times.append(60 * minute)
                before = count
            gaps = [after - before for before, after in itertools.pairwise(times[1:])]
            assert len(gaps) >= 4
            assert all(gap <= 4500 + 60 for gap in gaps)
            assert all(one.external is not None for one in it.keeper.mappings)

    run()


@pytest.mark.parametrize("version", [1, 2])
def test_a_restarted_gateway_is_found_at_its_new_port_and_maps_again(version: int) -> None:
    @virtual_time
    async def run() -> None:
        async with upnp(ScriptedIgd(version=version)) as it:
            it.lan.igd.reboot()
            await it.until(FOUND + 65)
            assert set(it.lan.igd.mappings) == KEYS
            assert all(one.external is not None for one in it.keeper.mappings)

    run()


@virtual_time
async def test_a_new_outer_address_is_noticed() -> None:
    async with upnp(ScriptedIgd()) as it:
        it.lan.igd.external = "203.0.113.99"
        await it.until(FOUND + 70)
        assert {str(one.external.ip) for one in it.keeper.mappings if one.external} == {
            "203.0.113.99"
        }


@virtual_time
async def test_a_mapping_that_another_host_took_over_is_made_anew_elsewhere() -> None:
    async with upnp(ScriptedIgd()) as it:
        it.lan.igd.mappings[("UDP", 4001)] = OTHERS
        await it.until(FOUND + 70)
        external = {one.port: one.external for one in it.keeper.mappings}[UDP]
        assert external is not None
        assert external.port >= 49152
        assert it.lan.igd.mappings[("UDP", 4001)] == OTHERS


@pytest.mark.parametrize("moods", [{"knows_entries": False}, {"tells_names": True}], ids=str)
def test_a_gateway_that_cannot_tell_its_mappings_is_left_alone(moods: dict[str, Any]) -> None:
    @virtual_time
    async def run() -> None:
        async with upnp(ScriptedIgd(**moods)) as it:
            await it.until(FOUND + 600)
            assert it.lan.igd.actions.count("AddPortMapping") == 2

    run()


@pytest.mark.parametrize("version", [1, 2])
def test_a_port_that_is_another_hosts_is_left_to_it(version: int) -> None:
    @virtual_time
    async def run() -> None:
        igd = ScriptedIgd(version=version, mappings={("UDP", 4001): OTHERS})
        async with upnp(igd) as it:
            external = {one.port: one.external for one in it.keeper.mappings}[UDP]
            assert external is not None
            assert external.port != 4001
            assert igd.mappings[("UDP", 4001)] == OTHERS
            assert igd.mappings[("UDP", external.port)].port == 4001

    run()


@virtual_time
async def test_a_conflict_that_no_other_port_may_avoid_is_told() -> None:
    igd = ScriptedIgd(same_ports=True, mappings={("UDP", 4001): OTHERS})
    async with upnp(igd) as it:
        with pytest.raises(UnreachableError) as caught:
            await it.running
        assert caught.value.reason == "CONFLICT_IN_MAPPING_ENTRY"
        assert igd.mappings == {("UDP", 4001): OTHERS}


@pytest.mark.parametrize(
    ("moods", "reason"),
    [
        ({"fault": 606}, "NOT_AUTHORIZED"),
        ({"fault": 728}, "NO_PORT_MAPS_AVAILABLE"),
        ({"online": False}, "NETWORK_FAILURE"),
        ({"external": ""}, "NETWORK_FAILURE"),
        ({"external": "0.0.0.0"}, "NETWORK_FAILURE"),
        ({"external": "127.0.0.1"}, "EXTERNAL_ADDRESS_INVALID"),
        ({"external": "224.0.0.1"}, "EXTERNAL_ADDRESS_INVALID"),
        ({"external": "router.example"}, "NETWORK_FAILURE"),
        ({"dead": True}, "GATEWAY_SILENT"),
        ({"service": "SwitchPower"}, "GATEWAY_SILENT"),
        ({"location": "http://192.0.2.1/root.xml"}, "UPNP_FOREIGN_URL"),
        ({"control": "http://192.0.2.1/ctl"}, "UPNP_FOREIGN_URL"),
        ({"raw_description": b"<x>"}, "UPNP_MALFORMED"),
        ({"raw_description": b"<x>" + b" " * 70_000 + b"</x>"}, "UPNP_MALFORMED"),
        ({"raw_description": b"<!DOCTYPE x [<!ENTITY a 'b'>]><x/>"}, "UPNP_MALFORMED"),
        ({"raw": b"HTTP/1.1 200 OK\r\n\r\n"}, "UPNP_MALFORMED"),
        ({"raw": b"nonsense"}, "UPNP_MALFORMED"),
        (
            {"raw": b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n"},
            "UPNP_MALFORMED",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_gateway_that_refuses_or_speaks_nonsense_gives_nothing(
    moods: dict[str, Any], reason: str
) -> None:
    @virtual_time
    async def run() -> None:
        async with upnp(ScriptedIgd(**moods)) as it:
            with pytest.raises(UnreachableError) as caught:
                await it.running
            assert caught.value.reason == reason
            assert it.lan.requested == [] or {url.port for _, url in it.lan.requested} == {5000}
            assert all(one.external is None for one in it.keeper.mappings)

    run()


@virtual_time
async def test_a_gateway_that_turns_hostile_later_is_survived() -> None:
    async with upnp(ScriptedIgd()) as it:
        it.lan.igd.raw = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000
        await it.until(FOUND + 7300)
        assert it.running.done()
        assert all(one.external is None for one in it.keeper.mappings)
        assert isinstance(it.running.exception(), UnreachableError)


@virtual_time
async def test_a_goodbye_to_a_silent_gateway_is_over_soon() -> None:
    async with upnp(ScriptedIgd()) as it:
        it.running.cancel()
        it.lan.igd.dead = it.lan.igd.silent = True
        await it.keeper.remove_all()
        assert asyncio.get_running_loop().time() <= FOUND + 1.01

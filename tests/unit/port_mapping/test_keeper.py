"""Which protocol, when to renew, what after a restart: a keeper and a scripted gateway."""

from __future__ import annotations

import asyncio
import itertools
from ipaddress import ip_address
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.gateway_nodes import INSIDE, TCP, UDP, kept, router
from tests.scripted_gateway import TCP as TCP_NUMBER
from tests.scripted_gateway import UDP as UDP_NUMBER
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import UnreachableError
from dep2p_daemon.nat.port_mapping.keeper import KeeperSettings
from dep2p_daemon.nat.port_mapping.terms import Endpoint, Protocol

HOME = ip_address("203.0.113.7")
KEYS = {(INSIDE, UDP_NUMBER, 4001), (INSIDE, TCP_NUMBER, 4001)}
BOTH = pytest.mark.parametrize("pcp", [True, False], ids=["PCP", "NAT-PMP"])


@BOTH
def test_the_ports_are_mapped_and_shown(pcp: bool) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp = pcp
        made.first_port = 40000
        async with kept(made) as it:
            await it.until(1)
            assert it.keeper.status.protocol is (Protocol.PCP if pcp else Protocol.NAT_PMP)
            assert {(one.port, one.external) for one in it.keeper.mappings} == {
                (UDP, Endpoint(HOME, 40000)),
                (TCP, Endpoint(HOME, 40001)),
            }
            assert all(one.error == "" and one.expires_at > 0 for one in it.keeper.mappings)
            assert set(made.mappings) == KEYS
            await it.keeper.remove_all()
            assert made.mappings == {}
            assert all(one.external is None for one in it.keeper.mappings)

    run()


def _maps(sent: list[tuple[float, bytes]], pcp: bool) -> list[float]:
    """When mappings of UDP were asked for."""
    if pcp:
        return [at for at, data in sent if data[:2] == b"\x02\x01" and data[36] == UDP_NUMBER]
    return [at for at, data in sent if data[:2] == b"\x00\x01"]


@BOTH
def test_mappings_are_renewed_after_half_of_their_life(pcp: bool) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp = pcp
        made.max_lifetime = 3600  # less than we ask for
        async with kept(made) as it:
            await it.until(20_000)
            times = _maps(it.channel.sent, pcp)
            gaps = [after - before for before, after in itertools.pairwise(times)]
            assert len(gaps) >= 7
            assert all(1800 <= gap <= 2250 + 1 for gap in gaps)
            assert all(one.external is not None for one in it.keeper.mappings)

    run()


@BOTH
def test_a_restarted_gateway_is_asked_to_map_again_within_a_minute(pcp: bool) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp = pcp
        async with kept(made) as it:
            await it.until(100)
            made.first_port = 50000
            made.reboot()
            assert made.mappings == {}
            await it.until(170)
            assert set(made.mappings) == KEYS
            assert {one.external for one in it.keeper.mappings} == {
                Endpoint(HOME, 50000),
                Endpoint(HOME, 50001),
            }

    run()


@BOTH
def test_what_a_restarted_gateway_refuses_is_no_longer_told(pcp: bool) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp = pcp
        async with kept(made) as it:
            await it.until(100)
            made.reboot()
            made.result = 8 if pcp else 4
            await it.until(180)
            assert [one.external for one in it.keeper.mappings] == [None, None]
            name = "NO_RESOURCES" if pcp else "OUT_OF_RESOURCES"
            assert [one.error for one in it.keeper.mappings] == [name, name]
            made.result = 0
            await it.until(300)
            assert all(one.external is not None for one in it.keeper.mappings)
            assert not it.running.done()

    run()


@BOTH
def test_a_gateway_with_a_broken_clock_does_not_keep_us_busy(pcp: bool) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp = pcp
        start = 4_000_000
        made.clock = lambda: start - 1000 * len(made.requests)
        async with kept(made) as it:
            await it.until(400)
            assert len(it.channel.sent) < 2 * 3 * 400 / 4

    run()


@virtual_time
async def test_a_silent_gateway_is_asked_by_each_protocol_and_given_up() -> None:
    made = router()
    made.silent = True
    async with kept(made) as it:
        with pytest.raises(UnreachableError) as caught:
            await it.running
        assert caught.value.reason == "GATEWAY_SILENT"
        assert sorted(data[0] for _, data in it.channel.sent) == [0] * 5 + [2] * 3
        assert it.lan.igd.searches != []
        assert 18 <= asyncio.get_running_loop().time() <= 26


@virtual_time
async def test_a_gateway_that_knows_neither_protocol_nor_silence() -> None:
    made = router()
    made.result = 2
    async with kept(made) as it:
        with pytest.raises(UnreachableError) as caught:
            await it.running
        assert caught.value.reason == "NOT_AUTHORIZED"
        assert "router" in caught.value.remedy
        assert it.keeper.retry_after == 600
        await it.keeper.remove_all()


@pytest.mark.parametrize(("pcp", "result"), [(True, 7), (False, 3)], ids=["PCP", "NAT-PMP"])
def test_a_gateway_without_a_public_address_says_so(pcp: bool, result: int) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp, made.result = pcp, result
        async with kept(made) as it:
            with pytest.raises(UnreachableError, match="behind another NAT") as caught:
                await it.running
            assert caught.value.reason == "NETWORK_FAILURE"

    run()


@virtual_time
async def test_silence_later_is_answered_by_asking_ever_sooner_until_the_mappings_expire() -> None:
    made = router()
    async with kept(made, settings=KeeperSettings(look_interval=1e6)) as it:
        await it.until(10)
        made.silent = True
        await it.until(7100)
        times = [at for at in _maps(it.channel.sent, pcp=True) if at > 10]
        assert 3600 <= times[0] <= 4501
        assert len(times) > 6
        assert all(one.external is not None for one in it.keeper.mappings)
        assert {one.error for one in it.keeper.mappings} == {"GATEWAY_SILENT"}
        with pytest.raises(UnreachableError):
            await it.running
        assert all(one.external is None for one in it.keeper.mappings)
        assert asyncio.get_running_loop().time() < 7200 + 60


@virtual_time
async def test_only_answers_with_our_nonce_count() -> None:
    def forge(data: bytes) -> list[bytes]:
        if data[:2] != b"\x02\x01":
            return []
        head = b"\x02\x81\0\0" + (3600).to_bytes(4) + (5000).to_bytes(4) + bytes(12)
        wrong_port = data[40:42][::-1]
        evil = (6666).to_bytes(2) + bytes(10) + b"\xff\xff" + bytes((198, 51, 100, 66))
        return [
            head + bytes(12) + data[36:42] + evil,
            head + data[24:36] + data[36:40] + wrong_port + evil,
            head + data[24:36] + b"\x2a" + data[37:42] + evil,
            b"\xff" * 60,
            b"",
        ]

    async with kept(router(), forge=forge) as it:
        await it.until(1)
        assert {one.external for one in it.keeper.mappings} == {Endpoint(HOME, 4001)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"external": "127.0.0.1"}, "EXTERNAL_ADDRESS_INVALID"),
        ({"external": "0.0.0.0"}, "EXTERNAL_ADDRESS_INVALID"),
        ({"external": "224.0.0.1"}, "EXTERNAL_ADDRESS_INVALID"),
        ({"max_lifetime": 1}, "LIFETIME_TOO_SHORT"),
    ],
)
@BOTH
def test_a_gateway_that_gives_nonsense_gives_nothing(
    pcp: bool, change: dict[str, Any], reason: str
) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp = pcp
        for name, value in change.items():
            setattr(made, name, value)
        async with kept(made) as it:
            with pytest.raises(UnreachableError) as caught:
                await it.running
            assert caught.value.reason == reason

    run()


@virtual_time
async def test_a_port_that_is_listened_on_later_is_mapped_too() -> None:
    async with kept(router(), ports=(UDP,)) as it:
        await it.until(5)
        assert len(it.keeper.mappings) == 1
        it.keeper.set_ports((UDP, TCP))
        await it.until(6)
        assert set(it.router.mappings) == KEYS
        it.keeper.set_ports((TCP,))
        assert [one.port for one in it.keeper.mappings] == [TCP]
        await it.until(7)
        assert set(it.router.mappings) == {(INSIDE, TCP_NUMBER, 4001)}


@virtual_time
async def test_a_goodbye_to_a_silent_gateway_is_over_soon() -> None:
    async with kept(router()) as it:
        await it.until(5)
        it.running.cancel()
        it.router.silent = True
        await it.keeper.remove_all()
        assert asyncio.get_running_loop().time() <= 6.01


@virtual_time
async def test_a_port_that_is_dropped_while_another_is_renewed_is_ended_not_renewed() -> None:
    async with kept(router()) as it:
        await it.until(5)
        it.router.silent = True
        it.keeper.renew_all()
        await it.until(6)  # the first is being asked for
        it.keeper.set_ports((UDP,))
        it.router.silent = False
        await it.until(40)
        assert not it.running.done()
        assert set(it.router.mappings) == {(INSIDE, UDP_NUMBER, 4001)}


@virtual_time
async def test_a_goodbye_ends_what_is_just_being_mapped_too() -> None:
    async with kept(router(), ports=(UDP,)) as it:
        await it.until(5)
        it.router.answers_lost = True
        it.keeper.set_ports((UDP, TCP))
        await it.until(6)
        it.running.cancel()
        assert set(it.router.mappings) == KEYS
        it.router.answers_lost = False
        await it.keeper.remove_all()
        assert it.router.mappings == {}


@BOTH
def test_a_goodbye_in_the_midst_of_the_first_mapping_ends_it(pcp: bool) -> None:
    @virtual_time
    async def run() -> None:
        made = router()
        made.pcp = pcp
        made.on_map = lambda key, port: setattr(made, "answers_lost", True)
        async with kept(made) as it:
            await it.until(1)
            assert it.keeper.client is None
            assert len(made.mappings) == 1
            it.running.cancel()
            await asyncio.gather(it.running, return_exceptions=True)
            made.answers_lost = False
            await it.keeper.remove_all()
            assert made.mappings == {}

    run()


@virtual_time
async def test_what_does_not_change_is_logged_once() -> None:
    async with kept(router(), ports=(UDP,)) as it:
        await it.until(5)
        it.router.result = 8
        with capture_logs() as lines:
            it.keeper.set_ports((UDP, TCP))
            await it.until(2000)
        assert len(it.channel.sent) > 20
        refused = [line for line in lines if line["event"] == "a port is not mapped"]
        assert [line["reason"] for line in refused] == ["NO_RESOURCES"]


@virtual_time
async def test_a_clock_that_leaps_each_minute_is_logged_once_an_hour() -> None:
    made = router()
    made.clock = lambda: 4_000_000 - 1000 * len(made.requests)
    with capture_logs() as lines:
        async with kept(made) as it:
            await it.until(7000)
    assert len([line for line in lines if line["event"] == "the gateway was restarted"]) == 2

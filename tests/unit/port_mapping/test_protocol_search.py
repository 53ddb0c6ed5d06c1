"""Which protocol is tried when, and which of those that answer maps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway_nodes import TCP, UDP, kept, router
from tests.scripted_igd import ScriptedIgd
from tests.virtual_time import virtual_time

from dep2p_daemon.errors import ProtocolNotSupportedError, UnreachableError
from dep2p_daemon.nat.port_mapping.protocol_search import (
    GRACE,
    HEAD_START,
    TRANSITIONS,
    ClientSearch,
    ProtocolSearch,
    Signal,
    State,
)
from dep2p_daemon.nat.port_mapping.terms import Endpoint, Granted, Port, Protocol, Refused

ORDER: Final = (Protocol.PCP, Protocol.NAT_PMP, Protocol.UPNP)
GATEWAY: Final = ip_address("192.168.1.1")
GRANTED: Final = Granted(Endpoint(ip_address("203.0.113.7"), 4001), 7200)
SILENCE: Final = UnreachableError("silence", reason="GATEWAY_SILENT")
OTHER_VERSION: Final = ProtocolNotSupportedError("no", reason="UNSUPP_VERSION", version=0)
BEHIND_NAT: Final = Refused("NETWORK_FAILURE", 30.0)
FORBIDDEN: Final = Refused("NOT_AUTHORIZED", 600.0)


@dataclass
class Scripted:
    """A protocol's client of which the test says what it hears, and when."""

    protocol: Protocol
    heard: Exception | None = None
    after: float = 0.0
    """Seconds until the look ends."""
    answer: Granted | Refused | Exception = GRANTED
    mapping_takes: float = 0.0
    restarted: bool = False
    log: list[tuple[float, str]] = field(default_factory=list)

    async def look(self) -> None:
        self._note("look")
        try:
            await asyncio.sleep(self.after)
        except asyncio.CancelledError:
            self._note("cancelled")
            raise
        if self.heard is not None:
            raise self.heard

    async def map(self, port: Port, lifetime: int, last: Endpoint | None) -> Granted | Refused:
        self._note("map")
        await asyncio.sleep(self.mapping_takes)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def unmap(self, port: Port) -> None:
        self._note("unmap")

    def _note(self, what: str) -> None:
        self.log.append((asyncio.get_running_loop().time(), what))


def silent(protocol: Protocol, seconds: float) -> Scripted:
    return Scripted(protocol, SILENCE, seconds)


def search(*clients: Scripted) -> ClientSearch:
    return ClientSearch(clients, GATEWAY, asyncio.get_running_loop().time)


def whats(client: Scripted) -> list[str]:
    return [what for _, what in client.log]


@virtual_time
async def test_a_router_that_drops_all_but_upnp_is_asked_by_it_after_two_seconds() -> None:
    pcp, nat_pmp = silent(Protocol.PCP, 21), silent(Protocol.NAT_PMP, 7.75)
    upnp = Scripted(Protocol.UPNP, after=0.3)
    client, granted = await search(pcp, nat_pmp, upnp).run(UDP, 7200)
    assert (client, granted) == (upnp, GRANTED)
    assert pcp.log[0] == (0.0, "look")
    assert nat_pmp.log[0] == (HEAD_START, "look")
    assert upnp.log[0] == (2 * HEAD_START, "look")
    assert asyncio.get_running_loop().time() == pytest.approx(2 * HEAD_START + 0.3 + GRACE)
    assert whats(pcp) == whats(nat_pmp) == ["look", "cancelled"]


@virtual_time
async def test_who_answers_soon_is_alone() -> None:
    pcp = Scripted(Protocol.PCP, after=HEAD_START / 2)
    others = Scripted(Protocol.NAT_PMP), Scripted(Protocol.UPNP)
    client, _ = await search(pcp, *others).run(UDP, 7200)
    assert client is pcp
    assert [one.log for one in others] == [[], []]


@pytest.mark.parametrize(
    ("late", "wins"),
    [(GRACE * 0.9, Protocol.PCP), (GRACE * 1.1, Protocol.NAT_PMP)],
    ids=["shortly after", "too late"],
)
def test_the_better_protocol_has_precedence_if_it_answers_shortly_after(
    late: float, wins: Protocol
) -> None:
    @virtual_time
    async def run() -> None:
        pcp = Scripted(Protocol.PCP, after=HEAD_START + late)
        nat_pmp, upnp = Scripted(Protocol.NAT_PMP), Scripted(Protocol.UPNP)
        client, _ = await search(pcp, nat_pmp, upnp).run(UDP, 7200)
        assert client.protocol is wins
        mapped = [one.protocol for one in (pcp, nat_pmp, upnp) if "map" in whats(one)]
        assert mapped == [wins], "one protocol maps"
        assert upnp.log == []

    run()


@virtual_time
async def test_a_protocol_that_is_not_spoken_gives_way_at_once() -> None:
    pcp = Scripted(Protocol.PCP, OTHER_VERSION)
    closed = Scripted(Protocol.NAT_PMP, SILENCE, 0.1)
    client, _ = await search(pcp, closed, Scripted(Protocol.UPNP)).run(UDP, 7200)
    assert client.protocol is Protocol.UPNP
    assert asyncio.get_running_loop().time() == pytest.approx(0.1)


@virtual_time
async def test_a_refusal_gives_way_to_the_next_one_that_maps_then() -> None:
    pcp = Scripted(Protocol.PCP, answer=FORBIDDEN, mapping_takes=5)
    nat_pmp, upnp = Scripted(Protocol.NAT_PMP), Scripted(Protocol.UPNP)
    client, _ = await search(pcp, nat_pmp, upnp).run(UDP, 7200)
    assert client is nat_pmp
    assert nat_pmp.log == [(5.0, "look"), (5.0, "map")], "never two at once"
    assert upnp.log == []


@virtual_time
async def test_what_may_have_been_mapped_in_silence_is_ended_before_another_maps() -> None:
    pcp = Scripted(Protocol.PCP, answer=SILENCE, mapping_takes=21)
    nat_pmp = Scripted(Protocol.NAT_PMP)
    client, _ = await search(pcp, nat_pmp).run(UDP, 7200)
    assert client is nat_pmp
    assert whats(pcp) == ["look", "map", "unmap"]


@pytest.mark.parametrize(
    ("answers", "reason", "retry_after"),
    [
        ((SILENCE, SILENCE, SILENCE), "GATEWAY_SILENT", 0.0),
        ((OTHER_VERSION, SILENCE, SILENCE), "UNSUPP_VERSION", 0.0),
        ((SILENCE, FORBIDDEN, SILENCE), "NOT_AUTHORIZED", 600.0),
        ((OTHER_VERSION, FORBIDDEN, BEHIND_NAT), "NETWORK_FAILURE", 600.0),
        ((BEHIND_NAT, FORBIDDEN, SILENCE), "NETWORK_FAILURE", 600.0),
    ],
)
def test_what_tells_the_most_is_told(
    answers: tuple[Refused | Exception, ...], reason: str, retry_after: float
) -> None:
    @virtual_time
    async def run() -> None:
        clients = [
            Scripted(protocol, answer) if isinstance(answer, Exception) else Scripted(protocol)
            for protocol, answer in zip(ORDER, answers, strict=True)
        ]
        for client, answer in zip(clients, answers, strict=True):
            client.answer = answer
        searching = search(*clients)
        with pytest.raises((UnreachableError, ProtocolNotSupportedError)) as caught:
            await searching.run(UDP, 7200)
        assert caught.value.reason == reason
        assert searching.retry_after == retry_after

    run()


@virtual_time
async def test_the_end_of_the_search_ends_its_looks() -> None:
    clients = [silent(protocol, 100) for protocol in ORDER]
    running = asyncio.create_task(search(*clients).run(UDP, 7200))
    await asyncio.sleep(2.5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert [whats(one) for one in clients] == [["look", "cancelled"]] * 3
    assert len(asyncio.all_tasks()) == 1


@virtual_time
async def test_a_defect_of_one_look_ends_the_others() -> None:
    pcp = silent(Protocol.PCP, 100)
    with pytest.raises(ZeroDivisionError):
        await search(pcp, Scripted(Protocol.NAT_PMP, ZeroDivisionError())).run(UDP, 7200)
    assert whats(pcp) == ["look", "cancelled"]


@virtual_time
async def test_with_real_clients_a_router_of_upnp_alone_maps_within_three_seconds() -> None:
    made = router()
    made.silent = True
    igd = ScriptedIgd()
    async with kept(made, igd=igd) as it:
        await it.until(3)
        assert all(one.external is not None for one in it.keeper.mappings)
        assert it.keeper.status.protocol is Protocol.UPNP
        asked = len(it.channel.sent)
        await it.until(50)
        assert len(it.channel.sent) == asked, "the others were left alone"


@virtual_time
async def test_a_nat_pmp_router_s_answer_to_pcp_is_not_taken_for_a_refusal() -> None:
    """Both protocols share a socket, and so does whatever comes late."""

    def late(data: bytes) -> list[bytes]:
        return [b"\0" + bytes((0x80 | data[1],)) + b"\0\1" + bytes(4)] if data[0] == 0 else []

    made = router()
    made.pcp = False
    async with kept(made, forge=late, ports=(UDP, TCP)) as it:
        await it.until(1)
        assert all(one.external is not None for one in it.keeper.mappings)


SIGNALS: Final = st.lists(
    st.tuples(st.sampled_from(ORDER), st.booleans(), st.floats(0, 1.5)), max_size=12
)


@given(SIGNALS)
def test_no_order_of_answers_and_failures_makes_it_stop_or_choose_badly(
    events: list[tuple[Protocol, bool, float]],
) -> None:
    states = dict.fromkeys(ORDER, State.WAITING)
    made, now = ProtocolSearch(ORDER), 0.0

    def note(protocol: Protocol, signal: Signal) -> None:
        states[protocol] = TRANSITIONS[states[protocol], signal]

    for protocol, good, pause in [*events, *((one, False, 1.0) for one in ORDER * 2)]:
        while (begun := made.begin(now)) is not None:
            note(begun, Signal.BEGIN)
        if states[protocol] is State.LOOKING and good:
            made.answered(protocol, now)
            note(protocol, Signal.ANSWER)
        elif states[protocol] in (State.LOOKING, State.ANSWERED):
            made.failed(protocol)
            note(protocol, Signal.FAIL)
        answered = [one for one in ORDER if states[one] is State.ANSWERED]
        chosen = made.choose(now)
        assert chosen is None or chosen == answered[0]
        if answered:
            deadline = made.deadline()
            assert deadline is not None
            assert made.choose(deadline) == answered[0]
        elif not made.is_over and State.LOOKING not in states.values():
            assert made.begin(now) is not None
            note(next(one for one in ORDER if states[one] is State.WAITING), Signal.BEGIN)
        assert made.is_over == all(one is State.OVER for one in states.values())
        now += pause

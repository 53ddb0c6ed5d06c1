"""From relayed to direct with js-libp2p (`@libp2p/dcutr`) on one side, in the NAT laboratory.

We are behind a port-restricted NAT, but in one test. To js the laboratory's addresses are public
ones, as to us: it only asks whether an IP address is private. What libp2p 3.3.11 with dcutr 3.0.28
does besides, as its log (`libp2p:dcutr*`) and these tests show:

* It tells of a public address only if that was announced or verified (AutoNAT). Behind a NAT it
  names private addresses and circuits in CONNECT, never where others saw it.
* It dials from other sockets than those it listens on (over QUIC, all dials share one), and opens
  its NAT with no random packets. So behind a NAT nothing gets through to us or from us.
* It takes no CONNECT without an address that one of its transports dials: it resets the stream.
* It takes one DCUtR stream at a time, and keeps it for the 5 s that its own dial may take, whether
  or not there is a direct connection meanwhile. Further rounds are reset till then.
* Bytes that came together with the end of the stream, while js was still answering multistream,
  never end an `for await` over that stream: `@libp2p/echo` then resets it after 20 s. The echo
  here is `peer.mjs`'s own.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.e2e.lab_daemons import RESERVED_SECONDS, LabNet, laboratory
from tests.interop.exchanges import OUR_ECHO
from tests.interop.js_peer import RELAY_LIMITS, JsError, JsPeer
from tests.requires import require_natlab

import dep2p
from dep2p.v1.peer_pb2 import PATH_DIRECT, PATH_RELAYED

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from dep2p.v1.event_pb2 import Event

pytestmark = [pytest.mark.interop, pytest.mark.e2e, pytest.mark.timeout(120)]

OUR_NAT: Final = "port-restricted"
PORT: Final = 4001
ECHO: Final = "/interop/echo/1.0.0"
UNLIMITED_ONLY: Final = "/interop/unlimited-only/1.0.0"
ECHO_BYTES: Final = 10_000
MEGABYTE: Final = 1_000_000
LISTEN: Final = {"quic": "/ip4/{}/udp/{}/quic-v1", "tcp": "/ip4/{}/tcp/{}"}

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def machine() -> None:
    require_natlab()


@contextlib.asynccontextmanager
async def us_and_js(
    place: str, transport: str, *, own: str = OUR_NAT, announced: bool = True, **relay: str
) -> AsyncIterator[tuple[LabNet, JsPeer]]:
    """Us in "alice", a js node in "bob" (`place`), both with a reservation at our relay.

    `announced`: whether js tells of its public address; `relay` are settings of the relay.
    """
    async with laboratory(own, place) as net:
        daemon = net.prepare("relay", "--preset=relay", f"--port={PORT}")
        daemon.env |= {f"DEP2P_RELAY_SERVER__{key.upper()}": value for key, value in relay.items()}
        await daemon.start()
        await net.start_client("alice")
        part = "/udp/" if transport == "quic" else "/tcp/"
        reserve_at = next(one for one in net.relay_addresses("bob") if part in one)
        async with js_in_bob(net, transport, reserve_at, announced=announced) as js:
            yield net, js


@contextlib.asynccontextmanager
async def js_in_bob(
    net: LabNet, transport: str, reserve_at: str, *, announced: bool = True
) -> AsyncIterator[JsPeer]:
    async with JsPeer(
        transports=[transport],
        reserve_at=reserve_at,
        host=net.lab.address("bob"),
        port=PORT,
        announce=[public_address(net, transport)] if announced else [],
        punch=True,
        debug="libp2p:dcutr*",
        prefix=net.lab.command("bob"),
    ) as js:
        await js.call("serve", protocol=ECHO, behaviour="echo")
        yield js


def public_address(net: LabNet, transport: str) -> str:
    return LISTEN[transport].format(net.lab.public_address("bob"), PORT)


async def we_dial(net: LabNet, js: JsPeer) -> Json:
    """Dial js at its circuit's address and wait for a direct path."""
    target = f"{net.relay_addresses('alice')[0]}/p2p-circuit/p2p/{js.peer_id}"
    answer: Json = await net.alice.ctl_json("dial", target, "--wait-direct=10s")
    return answer


async def dial(net: LabNet, js: JsPeer, dialler: str) -> None:
    """One of the two dials the other through the relay, and does not wait for more."""
    if dialler == "we":
        target = f"{net.relay_addresses('alice')[0]}/p2p-circuit/p2p/{js.peer_id}"
        assert (await net.alice.ctl_json("dial", target))["path"] == "relayed"
    else:
        connection = await js.call("dial", address=net.circuit("alice", "alice"))
        assert "/p2p-circuit/" in connection["remote_address"]


async def both_echo(net: LabNet, js: JsPeer) -> None:
    """Each side's echo gives the other's bytes back."""
    done = await net.alice.ctl("stream", js.peer_id, ECHO, stdin=b"Hello js!")
    assert (done.code, done.stdout) == (0, b"Hello js!"), done.stderr
    opened = await js.call("open", peer_id=net.alice.peer_id, protocol=OUR_ECHO)
    sent = await js.send_all(opened["stream"], ECHO_BYTES)
    await echoed_to_js(js, opened["stream"], sent)


async def echoed_to_js(js: JsPeer, stream: str, sent: Json) -> None:
    """js gets back all that it sent, and the end."""
    report = await js.call("ended", stream=stream)
    expected = {"ended": "end", "length": sent["sent"], "sha256": sent["sent_sha256"]}
    assert report == expected


async def upgrade_ended(net: LabNet, js: JsPeer) -> Json:
    """Our log's line about the first attempt with js that ended."""
    ended: Json = await net.alice.wait_for_line("direct upgrade ended")
    assert ended["peer"] == js.peer_id
    return ended


async def why(net: LabNet, js: JsPeer) -> tuple[Json, Json]:
    """What `why` says, and of that the first punch."""
    told = await net.alice.ctl_json("why", js.peer_id)
    return told, told["punches"][0]


@contextlib.asynccontextmanager
async def events(net: LabNet) -> AsyncIterator[AsyncGenerator[Event, None]]:
    """Our daemon's events about connections and paths, from now on."""
    types = ("connection_opened", "connection_closed", "path_changed")
    async with (
        dep2p.connect(net.alice.socket) as node,
        contextlib.aclosing(node.watch_events(*types)) as watching,
    ):
        await anext(watching)  # the state: there is the relay's connection
        yield watching


async def until_the_relayed_one_closed(
    watching: AsyncGenerator[Event, None], js: JsPeer
) -> list[tuple[str, int]]:
    """What the events told of connections with js, and of which path."""
    steps: list[tuple[str, int]] = []
    async with asyncio.timeout(20):
        while ("connection_closed", PATH_RELAYED) not in steps:
            event = await anext(watching)
            name = event.WhichOneof("event")
            assert name is not None
            about = getattr(event, name)
            connection = about if name == "connection_opened" else about.connection
            if connection.peer_id == js.peer_id:
                steps.append((name, connection.path))
    return steps


async def js_logged_the_exchange(js: JsPeer, dialler: str) -> None:
    """js's own account of its part. What it says of SYNC as initiator begins with "A", a slip."""
    lines = {
        # js was dialled: it is DCUtR's initiator, "B" in the specification.
        "we": ("B sending connect", "B receiving connect", "A sending sync", "B dialing"),
        "js": ("A receiving connect", "A sending connect", "A receiving sync", "A dialing"),
    }
    for line in lines[dialler]:
        await js.logged(line)


@pytest.mark.parametrize(("transport", "dialler"), [("quic", "we"), ("quic", "js"), ("tcp", "we")])
async def test_a_public_js_node_becomes_direct_whoever_dials(transport: str, dialler: str) -> None:
    async with us_and_js("none", transport) as (net, js), events(net) as watching:
        if dialler == "we":
            assert (await we_dial(net, js))["path"] == "direct"
            await js_logged_the_exchange(js, dialler)
        else:
            await dial(net, js, dialler)
        ended = await upgrade_ended(net, js)
        assert ended["outcome"] == "DIRECT"
        assert await until_the_relayed_one_closed(watching, js) == [
            ("connection_opened", PATH_RELAYED),
            ("connection_opened", PATH_DIRECT),
            ("path_changed", PATH_DIRECT),
            ("connection_closed", PATH_RELAYED),
        ]

        told, punch = await why(net, js)
        assert (told["path"], told["reason"]) == ("direct", "DIRECT")
        assert punch["side"] == {"we": "RECEIVER", "js": "INITIATOR"}[dialler]
        step = punch["steps"][-1]
        # Who is dialled through the relay dials what the other advertises before it punches.
        assert step["kind"] == {"we": "PUNCH", "js": "DIRECT_DIAL"}[dialler]
        assert step["addresses"] == [public_address(net, transport)]
        assert step["outcome"] == "DIRECT"

        await js.event("connection:close", lambda event: "/p2p-circuit/" in event["remote_address"])
        (left,) = await net.connections("alice", js.peer_id)
        assert (left["path"], left["relay"]) == ("direct", None)
        (seen,) = [
            one for one in await js.call("connections") if one["peer_id"] == net.alice.peer_id
        ]
        assert seen["remote_address"].startswith(f"/ip4/{net.lab.public_address('alice')}/")
        await both_echo(net, js)


@pytest.mark.parametrize(("transport", "dialler"), [("quic", "we"), ("quic", "js"), ("tcp", "js")])
async def test_js_behind_a_nat_exchanges_the_messages_and_stays_relayed(
    transport: str, dialler: str
) -> None:
    async with us_and_js("port-restricted", transport, announced=False) as (net, js):
        if dialler == "we":
            answer = await we_dial(net, js)
            assert answer["path"] == "relayed"
            assert answer["direct_failure"]["reason"] == "PEER_CANNOT_PUNCH"
            assert "js-libp2p" in answer["direct_failure"]["message"]
            assert "forward a port" in answer["direct_failure"]["remedy"]
        else:
            await dial(net, js, dialler)
        await js_logged_the_exchange(js, dialler)
        ended = await upgrade_ended(net, js)
        assert (ended["outcome"], ended["reason"]) == ("FAILED", "PEER_CANNOT_PUNCH")

        told, punch = await why(net, js)
        assert (told["path"], told["reason"]) == ("relayed", "PEER_CANNOT_PUNCH")
        assert told["verdict"].startswith("relayed: the peer speaks DCUtR, but")
        assert told["remedy"]
        assert punch["side"] == {"we": "RECEIVER", "js": "INITIATOR"}[dialler]
        own = {"quic": "quic-v1", "tcp": "tcp"}[transport]
        assert any(f"/{own}" in address for address in punch["own_candidates"])
        rejected = {one["address"]: one["rejection"] for one in punch["peer_candidates"]}
        private = LISTEN[transport].format(net.lab.address("bob"), PORT)
        assert rejected[private] == "NOT_PUBLIC"
        assert all(rejected.values())
        (connection,) = await net.connections("alice", js.peer_id)
        assert (connection["path"], connection["relay"]) == ("relayed", net.relay.peer_id)
        await both_echo(net, js)


async def test_js_behind_a_nat_dials_us_where_our_nat_lets_everybody_in() -> None:
    """It names no address, so all that we can do is to be dialled."""
    async with us_and_js(OUR_NAT, "quic", own="full-cone", announced=False) as (net, js):
        assert (await we_dial(net, js))["path"] == "direct"
        assert (await upgrade_ended(net, js))["outcome"] == "DIRECT"
        (told, punch) = await why(net, js)
        assert (told["reason"], punch["reason"], punch["steps"]) == ("DIRECT", "DIRECT", [])
        await both_echo(net, js)


async def test_an_announced_port_that_is_closed_changes_nothing_and_cuts_nothing() -> None:
    """js dials us, for 5 s and in vain; the limited connection and its streams stay as they were.

    js opens streams on it, and takes ours, for protocols alone that are made for such ones.
    """
    async with us_and_js("port-restricted", "quic", circuit_data="1MB") as (net, js):
        await js.call("serve", protocol=UNLIMITED_ONLY, behaviour="echo", limited=False)
        connection = await js.call("dial", address=net.circuit("alice", "alice"))
        assert 0 < connection["limits"]["bytes"] <= MEGABYTE
        (before,) = await net.connections("alice", js.peer_id)
        opened = {"peer_id": net.alice.peer_id, "protocol": OUR_ECHO}
        stream = (await js.call("open", **opened))["stream"]
        sent = await js.call("send", stream=stream, size=ECHO_BYTES)
        with pytest.raises(JsError, match="LimitedConnectionError"):
            await js.call("open", **opened, limited=False)
        async with asyncio.timeout(5):
            refused = await net.alice.ctl("stream", js.peer_id, UNLIMITED_ONLY, stdin=b"?")
        assert refused.code == 1
        assert refused.stdout == b""

        await js_logged_the_exchange(js, "js")
        ended = await upgrade_ended(net, js)
        assert (ended["outcome"], ended["reason"]) == ("FAILED", "PEER_CANNOT_PUNCH")
        _, punch = await why(net, js)
        (dialled, round_) = punch["steps"]
        assert (dialled["kind"], round_["kind"]) == ("DIRECT_DIAL", "PUNCH")
        assert round_["addresses"] == [public_address(net, "quic")]
        assert round_["outcome"] == "FAILED"
        assert round_["probe_count"] > 0

        (after,) = await net.connections("alice", js.peer_id)
        assert after["connection_id"] == before["connection_id"]
        await js.call("close_write", stream=stream)
        await echoed_to_js(js, stream, sent)
        await both_echo(net, js)


async def test_a_port_forwarded_to_js_is_the_remedy() -> None:
    async with us_and_js("port-restricted", "quic") as (net, js):
        net.lab.map_port("bob", "udp", PORT, PORT)
        assert (await we_dial(net, js))["path"] == "direct"
        await both_echo(net, js)


async def test_through_a_js_relay_it_becomes_direct_as_well() -> None:
    async with (
        laboratory(OUR_NAT, "none") as net,
        JsPeer(
            transports=["quic"],
            relay_server=RELAY_LIMITS,
            host=net.lab.address("relay"),
            port=PORT,
            prefix=net.lab.command("relay"),
        ) as relay,
    ):
        reserve_at = relay.address("quic")
        await net.start("alice", f"--relay={reserve_at}")
        done = await net.alice.ctl("wait", "relay", f"--timeout={RESERVED_SECONDS}s")
        assert done.code == 0, done.stderr
        async with js_in_bob(net, "quic", reserve_at) as js:
            await net.alice.ctl_json("dial", f"{reserve_at}/p2p-circuit/p2p/{js.peer_id}")
            assert (await upgrade_ended(net, js))["outcome"] == "DIRECT"
            _, punch = await why(net, js)
            assert (punch["relay"], punch["reason"]) == (relay.peer_id, "DIRECT")
            await js.event("connection:close", lambda one: "/p2p-circuit/" in one["remote_address"])
            await both_echo(net, js)

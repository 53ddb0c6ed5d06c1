"""What one of our nodes and a js node do with each other once they are connected.

Each exchange asserts every byte by sha256, and how each half of the stream ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

import dep2p

if TYPE_CHECKING:
    from tests.interop.js_peer import JsPeer

MEGABYTES_4 = 4_000_000
CHUNK_BYTES = 64 * 1024
OUR_ECHO = "/dep2p/echo/1.0.0"
JS_ECHO = "/echo/1.0.0"
PING = "/ipfs/ping/1.0.0"
PING_BYTES = 32
SINK = "/interop/sink/1.0.0"
SOURCE = "/interop/source/1.0.0"
RESETTER = "/interop/reset/1.0.0"
HOLD = "/interop/hold/1.0.0"
OURS = "/interop/ours/1.0.0"
RESET_CODE = 0x2A


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def serve_all(js: JsPeer) -> None:
    """Make the js node serve what the exchanges with it open."""
    await js.call("serve", protocol=SINK, behaviour="sink")
    await js.call("serve", protocol=SOURCE, behaviour="source", size=MEGABYTES_4)
    await js.call("serve", protocol=RESETTER, behaviour="reset")
    await js.call("serve", protocol=HOLD, behaviour="hold")


async def we_echo_at_js(node: dep2p.Node, js: JsPeer) -> None:
    """js-libp2p's own echo service gives our bytes back; both halves end."""
    await we_echo_at(node, js.peer_id, JS_ECHO)


async def we_echo_at(node: dep2p.Node, peer_id: str, protocol: str) -> None:
    """Somebody's echo service gives our bytes back; both halves end."""
    data = os.urandom(MEGABYTES_4)

    async def send() -> None:
        await stream.write(data)
        await stream.close_write()

    async with await node.open_stream(peer_id, [protocol]) as stream:
        assert stream.peer_id == peer_id
        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            echoed = await stream.read_all()
    assert (len(echoed), sha256(echoed)) == (len(data), sha256(data))


async def js_pings_us(js: JsPeer, peer_id: str) -> None:
    """One ping on the connection that is there.

    js-libp2p's ping service would dial again rather than use a connection with limits.
    """
    stream = (await js.call("open", peer_id=peer_id, protocol=PING))["stream"]
    sent = await js.send_all(stream, PING_BYTES)
    report = await js.call("ended", stream=stream)
    assert report == {"ended": "end", "length": PING_BYTES, "sha256": sent["sent_sha256"]}


async def js_echoes_at_us(js: JsPeer, peer_id: str) -> None:
    """Our daemon's own echo gives js its bytes back; both halves end."""
    stream = (await js.call("open", peer_id=peer_id, protocol=OUR_ECHO))["stream"]
    sent = await js.send_all(stream, MEGABYTES_4)
    report = await js.call("ended", stream=stream)
    assert report == {"ended": "end", "length": MEGABYTES_4, "sha256": sent["sent_sha256"]}


async def we_half_close_first(node: dep2p.Node, js: JsPeer) -> None:
    """js reads our end and only then answers, on the half that is still open."""
    data = os.urandom(MEGABYTES_4)
    async with await node.open_stream(js.peer_id, [SINK]) as stream:
        await stream.write(data)
        await stream.close_write()
        report = json.loads(await stream.read_all())
    assert report == {"ended": "end", "length": len(data), "sha256": sha256(data)}
    assert (await js.served(SINK))["peer_id"] == (await node.get_node()).peer_id


async def js_half_closes_first(node: dep2p.Node, js: JsPeer) -> None:
    """We read js's end and only then write."""
    late = os.urandom(CHUNK_BYTES)
    async with await node.open_stream(js.peer_id, [SOURCE]) as stream:
        data = await stream.read_all()
        await stream.write(late)
        await stream.close_write()
        report = await js.served(SOURCE)
    assert (report["sent"], report["sent_sha256"]) == (len(data), sha256(data))
    assert report["length"] == len(late)
    assert report["sha256"] == sha256(late)
    assert report["ended"] == "end"


async def js_resets_us(node: dep2p.Node, js: JsPeer) -> None:
    """A reset by js is a reset for our program, not an end."""
    async with await node.open_stream(js.peer_id, [RESETTER]) as stream:
        await stream.write(b"now")
        with pytest.raises(dep2p.StreamResetError) as reset:
            await stream.read_all()
    assert reset.value.reset_code == 0
    assert reset.value.metadata["by"] == "peer"


async def we_reset_js(node: dep2p.Node, js: JsPeer, muxer: str) -> None:
    """A reset by our program is a reset for js, and an end is an end.

    js over QUIC shows a reset as an end (libp2p-quic 2.1.1, stream.js), but cannot write any
    more, and says why with the code; after a true end it can.
    """
    async with await node.open_stream(js.peer_id, [HOLD]) as stream:
        await stream.write(b"to the end")
        await stream.close_write()
        assert len(await stream.read_all()) == CHUNK_BYTES
    report = await js.served(HOLD)
    assert (report["ended"], report["after_end"]) == ("end", "taken")

    await js.event("held", take=True)
    stream = await node.open_stream(js.peer_id, [HOLD])
    await stream.write(b"hold this")
    await js.event("held", take=True)  # a reset may overtake data: the protocol's name, too
    await stream.reset(RESET_CODE)
    report = await js.served(HOLD)
    if muxer == "quic":
        assert (report["ended"], report["after_end"]) == ("end", "refused")
        assert report["why"] == f"sending stopped by peer: error {RESET_CODE}"
    else:
        assert report["ended"] == "reset"


async def we_answer_js(node: dep2p.Node, js: JsPeer, peer_id: str, muxer: str) -> None:
    """A program behind our Listen gets js's bytes, half-close and reset, and resets itself."""
    async with node.listen(OURS) as listener:
        offers = aiter(listener)

        opened = (await js.call("open", peer_id=peer_id, protocol=OURS))["stream"]
        async with await anext(offers) as stream:
            assert stream.peer_id == js.peer_id
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(js.send_all(opened, MEGABYTES_4))
                data = await stream.read_all()
            assert sha256(data) == sending.result()["sent_sha256"]
            await stream.write(data[:CHUNK_BYTES])
            await stream.close_write()
        report = await js.call("ended", stream=opened)
        assert report["ended"] == "end"
        assert report["sha256"] == sha256(data[:CHUNK_BYTES])

        opened = (await js.call("open", peer_id=peer_id, protocol=OURS))["stream"]
        await js.call("send", stream=opened, size=10)
        stream = await anext(offers)
        await js.call("reset", stream=opened)
        with pytest.raises(dep2p.StreamResetError):
            await stream.read_all()

        opened = (await js.call("open", peer_id=peer_id, protocol=OURS))["stream"]
        await js.call("send", stream=opened, size=10)
        stream = await anext(offers)
        assert len(await stream.read()) == 10
        await stream.reset(RESET_CODE)
        report = await js.call("ended", stream=opened)
        if muxer == "quic":
            refused = await js.call("after_end", stream=opened)
            assert refused["after_end"] == "refused"
            assert refused["why"] == f"sending stopped by peer: error {RESET_CODE}"
        else:
            assert report["ended"] == "reset"


async def we_talk_to_ourselves(dialer: dep2p.Node, listener: dep2p.Node, peer_id: str) -> None:
    """Half-close and reset between two of our own, `peer_id` being the listener's."""
    async with listener.listen(OURS) as served:
        offers = aiter(served)
        async with await dialer.open_stream(peer_id, [OURS]) as stream:
            await stream.write(b"question")
            await stream.close_write()
            async with await anext(offers) as accepted:
                assert await accepted.read_all() == b"question"
                await accepted.write(b"answer")
                await accepted.close_write()
            assert await stream.read_all() == b"answer"

        stream = await dialer.open_stream(peer_id, [OURS])
        await stream.write(b"question")
        accepted = await anext(offers)
        assert await accepted.read() == b"question"
        await stream.reset(RESET_CODE)
        with pytest.raises(dep2p.StreamResetError):
            await accepted.read_all()

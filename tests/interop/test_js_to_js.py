"""js-libp2p with itself: what the other interop tests stand on."""

from __future__ import annotations

import pytest
from tests.interop.js_peer import RELAY_LIMITS, JsError, JsPeer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

FOUR_MEGABYTES = 4_000_000
NOBODY = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
TRANSPORTS = ["quic", "tcp"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_dial_identify_ping_and_echo(transport: str) -> None:
    async with JsPeer(transports=[transport]) as server, JsPeer(transports=[transport]) as client:
        await server.call("serve", protocol="/t/echo", behaviour="echo")
        connection = await client.call("dial", address=server.address(transport))
        assert connection["peer_id"] == server.peer_id
        identity = await client.identified(server.peer_id)
        assert "js-libp2p" in identity["agent_version"]
        assert (await client.call("ping", peer_id=server.peer_id))["rtt_ms"] >= 0
        stream = (await client.call("open", peer_id=server.peer_id, protocol="/t/echo"))["stream"]
        sent = await client.call("send", stream=stream, size=FOUR_MEGABYTES)
        await client.call("close_write", stream=stream)
        got = await client.call("ended", stream=stream)
        assert got == {"ended": "end", "length": FOUR_MEGABYTES, "sha256": sent["sent_sha256"]}
        echoed = await client.call("service_echo", peer_id=server.peer_id, size=FOUR_MEGABYTES)
        assert echoed["sha256"] == echoed["sent_sha256"]


async def test_resets() -> None:
    # Over TCP only: js over QUIC shows a reset as an end (libp2p-quic 2.1.1, stream.js).
    async with JsPeer(transports=["tcp"]) as server, JsPeer(transports=["tcp"]) as client:
        await server.call("serve", protocol="/t/reset", behaviour="reset")
        await server.call("serve", protocol="/t/hold", behaviour="hold")
        await client.call("dial", address=server.address("tcp"))
        stream = (await client.call("open", peer_id=server.peer_id, protocol="/t/reset"))["stream"]
        await client.call("send", stream=stream, size=10)
        assert (await client.call("ended", stream=stream))["ended"] == "reset"

        held = (await client.call("open", peer_id=server.peer_id, protocol="/t/hold"))["stream"]
        await client.call("send", stream=held, size=10)
        await client.call("reset", stream=held)
        assert (await server.served("/t/hold"))["ended"] == "reset"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_circuit_through_a_js_relay(transport: str) -> None:
    async with (
        JsPeer(transports=[transport], relay_server=RELAY_LIMITS) as relay,
        JsPeer(transports=[transport], reserve_at=relay.address(transport)) as listener,
        JsPeer(transports=[transport], listen=False) as dialer,
    ):
        await listener.call("serve", protocol="/t/echo", behaviour="echo")
        assert await relay.call("reservations") == [listener.peer_id]
        with pytest.raises(JsError, match="NO_RESERVATION"):
            await dialer.call(
                "dial", address=f"{relay.address(transport)}/p2p-circuit/p2p/{NOBODY}"
            )
        connection = await dialer.call("dial", address=listener.circuit_address(transport))
        assert connection["peer_id"] == listener.peer_id
        assert connection["limits"]["bytes"] <= RELAY_LIMITS["data_bytes"]
        stream = (await dialer.call("open", peer_id=listener.peer_id, protocol="/t/echo"))["stream"]
        sent = await dialer.call("send", stream=stream, size=FOUR_MEGABYTES)
        await dialer.call("close_write", stream=stream)
        got = await dialer.call("ended", stream=stream)
        assert got == {"ended": "end", "length": FOUR_MEGABYTES, "sha256": sent["sent_sha256"]}

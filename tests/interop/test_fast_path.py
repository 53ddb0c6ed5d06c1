"""Bulk data from and to js-libp2p takes the short way through our QUIC (`quic.fast_path`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.interop import exchanges
from tests.interop.js_peer import JsPeer
from tests.packet_paths import AT_LEAST, PacketPaths

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.interop.conftest import OurNode

    StartOurs = Callable[..., Awaitable[OurNode]]

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


@pytest.mark.parametrize("we_dial", [True, False], ids=["we dial", "js dials"])
async def test_bulk_data_takes_the_short_way(ours: StartOurs, *, we_dial: bool) -> None:
    us = await ours("us")
    async with JsPeer(transports=["quic"]) as js:
        await exchanges.serve_all(js)
        if we_dial:
            await us.node.dial(js.address("quic"))
        else:
            await js.call("dial", address=us.address("quic"))
        before = await PacketPaths.of(us.node)
        await exchanges.we_half_close_first(us.node, js)
        sent = await PacketPaths.of(us.node)
        await exchanges.js_half_closes_first(us.node, js)
        received = await PacketPaths.of(us.node)
    assert (sent - before).share_sent >= AT_LEAST
    assert (received - sent).share_received >= AT_LEAST

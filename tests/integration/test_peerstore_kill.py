"""A peerstore survives `kill -9` in the middle of its writes."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from dep2p_daemon.swarm.peerstore import Peerstore

if TYPE_CHECKING:
    from pathlib import Path

WRITER = """
import pathlib, sys
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.peerstore import Peerstore

store = Peerstore(pathlib.Path(sys.argv[1]))
for number in range(1_000_000):
    peer = PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id
    store.add_addresses(peer, [Multiaddr.for_udp("10.0.0.1", 1)], ttl=3600, source="test")
    if number % 20 == 19:
        store.flush()
        print(number + 1, flush=True)
"""


def test_what_was_flushed_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    path = tmp_path / "peers.sqlite"
    for kills in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            # Killed right after a line, it is in the middle of the next batch.
            flushed = [int(writer.stdout.readline()) for _ in range(10 + kills)][-1]
            writer.send_signal(signal.SIGKILL)
        with capture_logs() as logs:
            store = Peerstore(path)
        assert len(store.peers()) >= flushed
        assert all(len(store.addresses(peer)) == 1 for peer in store.peers())
        assert logs == []
        store.close()

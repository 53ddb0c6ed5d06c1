"""Serves the metrics over HTTP, for a Prometheus server: `GET /metrics`."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Self

import structlog

from dep2p_daemon.errors import ConfigError

if TYPE_CHECKING:
    import threading
    from wsgiref.simple_server import WSGIServer

    from dep2p_daemon.ops.metrics import Metrics

_log = structlog.get_logger(__name__)


class MetricsServer:
    """prometheus-client's own server, in a thread of its own. An async context manager.

    Whoever can connect can read: there is no password, so it belongs on loopback.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Prepare to listen on `host` and `port`; 0 is any free port."""
        self._metrics = metrics
        self._host = host
        self._wanted_port = port
        self.port = 0
        """The real one."""

    async def __aenter__(self) -> Self:
        """Start serving.

        Raises:
            ConfigError: it cannot listen there.
        """
        try:
            # It looks its own name up, which may take the resolver's time.
            self._server, self._thread = await asyncio.to_thread(self._start)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served at {self._host}:{self._wanted_port}: {error.strerror}",
                reason="METRICS_ADDRESS_UNUSABLE",
                remedy="choose another with --metrics HOST:PORT",
            ) from error
        self.port = self._server.server_port
        if not ipaddress.ip_address(self._host).is_loopback:
            _log.warning(
                "metrics are served to everybody who can connect",
                host=self._host,
                remedy="serve them on 127.0.0.1, or keep others out with a firewall",
            )
        _log.info("serving metrics", url=f"http://{_in_url(self._host)}:{self.port}/metrics")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # In a thread: it waits for the server's, which may wait for a reading of this loop.
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)

    def _start(self) -> tuple[WSGIServer, threading.Thread]:
        from prometheus_client import start_http_server

        return start_http_server(self._wanted_port, self._host, self._metrics.registry)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host

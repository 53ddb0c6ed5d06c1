"""The daemon's life between start and stop: signals, systemd, the ready line."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.daemon import Daemon
from dep2p_daemon.ops.systemd import SystemdNotifier
from dep2p_daemon.rpc.server import RpcServer
from dep2pd.start import EXIT_FAILED, leave_at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from dep2p_daemon.ops.config import Config
    from dep2pd.start import Console

log = structlog.get_logger(__name__)

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
STOP_SECONDS: Final = 30.0
"""For an orderly end, after which it is forced; ours: a third of systemd's own patience."""


async def serve(config: Config, console: Console | None = None) -> None:
    """Start, stay until told to stop, and end in order.

    Raises:
        Dep2pError, OSError: it could not start; nothing is left behind.
    """
    notifier = SystemdNotifier.from_environment()
    stop = StopRequest()
    stop.watch_signals()
    starting = asyncio.current_task()
    assert starting is not None
    # A signal before the daemon is up ends the start.
    stop.on_request = lambda _reason: starting.cancel()
    try:
        async with Daemon(config) as daemon, RpcServer(daemon, config.socket):
            stop.on_request = daemon.request_stop
            _say_ready(daemon, config, notifier)
            await _stay(daemon, notifier, console)
            stop.begin()
            notifier.stopping()
            log.info("stopping", reason=daemon.stop_reason)
    except asyncio.CancelledError:
        if not stop.requested:
            raise
        starting.uncancel()
    finally:
        stop.end()
    log.info("stopped")


async def _stay(daemon: Daemon, notifier: SystemdNotifier, console: Console | None) -> None:
    """Until a stop is requested; the console and the watchdog run beside."""
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(notifier.run_watchdog(), name="watchdog")]
        if console is not None:
            beside.append(group.create_task(_guarded(console, daemon), name="console"))
        await daemon.wait_stop_requested()
        for task in beside:
            task.cancel()


async def _guarded(console: Console, daemon: Daemon) -> None:
    """A console that fails (its terminal went away) must not take the daemon along."""
    try:
        await console(daemon)
    except Exception as error:
        log.warning("the console ended", reason=type(error).__name__, error=str(error))


def _say_ready(daemon: Daemon, config: Config, notifier: SystemdNotifier) -> None:
    addresses = [str(address) for address in daemon.addresses()]
    log.info(
        "ready",
        peer_id=str(daemon.peer_id),
        addresses=addresses,
        socket=str(config.socket),
        preset=config.node.preset,
    )
    notifier.ready(f"{daemon.peer_id} on {len(addresses)} addresses")


class StopRequest:
    """Turns signals into an orderly stop, and a second one into an end at once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.requested = False
        self.on_request: Callable[[str], object] = _ignore

    def watch_signals(self) -> None:
        """From now on signals come here."""
        for number in STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._signalled, number)

    def begin(self) -> None:
        """The orderly end has begun, whoever asked: it has limited time, and signals end it."""
        self.requested = True
        if self._timer is None:
            self._timer = self._loop.call_later(STOP_SECONDS, self._too_long)

    def end(self) -> None:
        """All is closed."""
        if self._timer is not None:
            self._timer.cancel()
        for number in STOP_SIGNALS:
            self._loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals) -> None:
        if self.requested:
            log.warning("a second signal: ending at once", signal=number.name)
            leave_at_once(EXIT_FAILED)
        self.begin()
        self.on_request("signal")

    def _too_long(self) -> None:
        log.error("the orderly end took too long: ending at once", seconds=STOP_SECONDS)
        leave_at_once(EXIT_FAILED)


def _ignore(_reason: str) -> None:
    """Before there is anything to stop."""

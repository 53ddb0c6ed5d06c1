"""Telling systemd how the service does: sd_notify(3), without a library.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)


class SystemdNotifier:
    """Sends states to `$NOTIFY_SOCKET`; does nothing where systemd does not listen."""

    def __init__(self, env: Mapping[str, str], pid: int | None = None) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        self.watchdog_interval = _watchdog_interval(env, os.getpid() if pid is None else pid)
        """Seconds between two `watchdog` calls: half of what systemd allows; None: not asked."""

    @classmethod
    def from_environment(cls) -> SystemdNotifier:
        """The service's own, taken out of the environment: children must not notify."""
        env = {
            name: value
            for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
            if (value := os.environ.pop(name, None)) is not None
        }
        return cls(env)

    def ready(self, status: str) -> None:
        """The service has started."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The orderly end has begun."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")

    async def run_watchdog(self) -> None:
        """Call `watchdog` for ever, from the loop whose life it proves; returns if not asked."""
        if self.watchdog_interval is None:
            return
        while True:
            self.watchdog()
            await asyncio.sleep(self.watchdog_interval)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # A leading @ means the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd was not notified", reason=error.strerror, state=state)


def _watchdog_interval(env: Mapping[str, str], pid: int) -> float | None:
    microseconds = env.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or env.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(microseconds) / 2e6 or None

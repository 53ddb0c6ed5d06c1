"""Which IP addresses our listening sockets have exchanged packets with lately.

A NAT's or a firewall's filter lets in what comes from there. sans-IO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dep2p_daemon.multiaddr import Multiaddr

LIFETIME: Final = 600.0
"""Seconds after the last connection; RFC 4787 wants 2 minutes at least, many NATs keep more."""
MAX_CONTACTS: Final = 4096


class Contacts:
    """Remembers where connections went to or came from, by transport."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}

    def note(self, address: Multiaddr, now: float) -> None:
        """A connection with this remote address began, lives or ended; circuits do not count."""
        key = _key(address)
        if key is None:
            return
        self._last.pop(key, None)
        self._last[key] = now  # the latest is the last
        if len(self._last) > MAX_CONTACTS:
            del self._last[next(iter(self._last))]

    def knows(self, address: Multiaddr, now: float) -> bool:
        """Whether there was one lately; one that began long ago must have been noted since."""
        key = _key(address)
        at = None if key is None else self._last.get(key)
        return at is not None and now - at < LIFETIME


def _key(address: Multiaddr) -> tuple[str, str] | None:
    if address.is_circuit or address.ip is None or address.transport is None:
        return None
    return address.transport, str(address.ip)

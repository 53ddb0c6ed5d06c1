"""Keeps our ports mapped at one gateway: which protocol, when to renew, when to begin anew.

Each port has a lease. It is renewed after half of its life; while the gateway is silent, after
half of what remains, and so on (RFC 6887, 11.2.1; RFC 6886, 3.3). In between the gateway is asked
for its epoch, which tells that it was restarted and has lost everything.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import Dep2pError, UnreachableError
from dep2p_daemon.nat.port_mapping.clients import CLIENTS, Client, ClientKind
from dep2p_daemon.nat.port_mapping.protocol_search import ClientSearch
from dep2p_daemon.nat.port_mapping.status import GatewayStatus, PortMapping
from dep2p_daemon.nat.port_mapping.terms import SILENT, Endpoint, Granted, Port, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dep2p_daemon.nat.port_mapping.channel import Channel
    from dep2p_daemon.nat.port_mapping.gateway import Gateway

_log = structlog.get_logger(__name__)

MIN_RENEWAL: Final = 4.0
"""Seconds between two requests for one port (RFC 6887, 11.2.1)."""
RESTART_QUIET: Final = 3600.0
"""Seconds between two lines in the log on restarts: a broken clock looks like one each minute."""
RENEWAL_JITTER: Final = 1 / 8
"""Of the life: renewals fall between 1/2 and 5/8 of it, so that hosts do not come together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeeperSettings:
    """Times in seconds."""

    lifetime: int = 7200
    """To ask for; RFC 6886 recommends it (3.3)."""
    look_interval: float = 60.0
    """Between two questions for the gateway's epoch."""
    farewell_timeout: float = 1.0
    """For ending all mappings when the node stops."""


@dataclass(slots=True)
class _Lease:
    external: Endpoint | None = None
    """None: not mapped."""
    last: Endpoint | None = None
    """Where it was mapped last: what to ask for."""
    expires: float = 0.0
    expires_at: float = 0.0
    """The same in Unix time."""
    asked: float = 0.0
    due: float = 0.0
    """When to ask (again)."""
    error: str = ""

    @property
    def may_exist(self) -> bool:
        """Whether the gateway may have it: an answer may be under way, or lost."""
        return self.external is not None or (self.asked > 0 and self.error in ("", SILENT))


@dataclass(slots=True)
class GatewayKeeper:
    """One gateway. `run` ends with an error when there is nothing to be had; then make another."""

    gateway: Gateway
    channel: Channel
    settings: KeeperSettings
    on_change: Callable[[], None]
    """Called after the status has changed."""
    random: random.Random = field(default_factory=random.SystemRandom)
    client: Client | None = None
    """None until a protocol has worked."""
    clients: Sequence[ClientKind] = CLIENTS
    """The best first, which are also tried first."""
    retry_after: float = 0.0
    """Seconds in which to not ask the gateway again, if it refused; 0: it did not say."""
    _leases: dict[Port, _Lease] = field(default_factory=dict)
    _dropped: set[Port] = field(default_factory=set)
    """Not wanted any more, and to be unmapped."""
    _restart_told: float = -math.inf
    """When the log was last told of a restart."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def mappings(self) -> tuple[PortMapping, ...]:
        """The leases, as they are now."""
        return tuple(
            PortMapping(
                port=port,
                external=lease.external,
                expires_at=0.0 if lease.external is None else lease.expires_at,
                error=lease.error,
            )
            for port, lease in sorted(self._leases.items(), key=lambda item: item[0])
        )

    @property
    def status(self) -> GatewayStatus:
        """A snapshot."""
        return GatewayStatus(
            version=self.gateway.address.version,
            gateway=self.gateway.address,
            protocol=None if self.client is None else self.client.protocol,
            mappings=self.mappings,
        )

    def set_ports(self, ports: Iterable[Port]) -> None:
        """Say which ports are to be mapped; those left out are unmapped. Never blocks."""
        wanted = dict.fromkeys(ports)
        for port in wanted:
            self._dropped.discard(port)
            if port not in self._leases:
                self._leases[port] = _Lease(due=self._now())
                self._wake.set()
        for port in [port for port in self._leases if port not in wanted]:
            del self._leases[port]
            self._dropped.add(port)
            self._wake.set()
            self.on_change()

    def renew_all(self) -> None:
        """Ask for every port again: this may be another gateway at the same address.

        Never blocks.
        """
        for lease in self._leases.values():
            lease.due = self._now()
        self._wake.set()

    async def run(self) -> None:
        """Map and renew until cancelled.

        Raises:
            UnreachableError: no protocol works, or the gateway fell silent and all has expired.
            ProtocolNotSupportedError: the gateway speaks another protocol than before.
        """
        client = await self._choose()
        look_at = self._now() + self.settings.look_interval
        while True:
            self._wake.clear()
            self._expire()
            while self._dropped:
                await self._end(client, self._dropped.pop())
            for port in [p for p, lease in self._leases.items() if lease.due <= self._now()]:
                if port in self._leases:  # still wanted, after the renewals before it
                    await self._renew(client, port)
            if self._now() >= look_at:
                look_at = self._now() + self.settings.look_interval
                await self._look(client)
            if client.restarted:
                client.restarted = False
                self._all_lost()
            await self._sleep_until(
                min([look_at, *(self._next(lease) for lease in self._leases.values())])
            )

    async def remove_all(self) -> None:
        """End all mappings, as far as the gateway confirms it in time. Call it after `run`."""
        client = self.client
        mapped = [port for port, lease in self._leases.items() if lease.may_exist]
        mapped += self._dropped
        if client is None or not mapped:
            return
        try:
            async with asyncio.timeout(self.settings.farewell_timeout):
                results = await asyncio.gather(
                    *(client.unmap(port) for port in mapped), return_exceptions=True
                )
        except TimeoutError as error:
            results = [error]
        self._dropped.clear()
        for lease in self._leases.values():
            lease.external, lease.asked = None, 0.0
        failed = [repr(result) for result in results if result is not None]
        _log.info("port mappings removed", ports=len(mapped), failed=failed)

    # ------------------------------------------------------------------ steps

    async def _choose(self) -> Client:
        """Find the protocol that maps our first port."""
        version, port = self.gateway.address.version, next(iter(self._leases))
        search = ClientSearch(
            [
                kind.make(self.channel, self.gateway, self._now, self.random)
                for kind in self.clients
                if version in kind.versions
            ],
            self.gateway.address,
            self._now,
        )
        try:
            self.client, granted = await search.run(port, self.settings.lifetime)
        except Dep2pError:
            self.retry_after = search.retry_after
            raise
        except asyncio.CancelledError:
            self.client = search.mapping  # so that `remove_all` ends what it may have made
            if port in self._leases:
                self._leases[port].asked = self._now()
            raise
        self._take(port, granted)
        return self.client

    async def _renew(self, client: Client, port: Port) -> None:
        lease = self._leases[port]
        lease.asked = self._now()
        answer: Granted | Refused | UnreachableError
        try:
            answer = await client.map(port, self.settings.lifetime, lease.last)
        except UnreachableError as error:
            answer = error
        if isinstance(answer, Granted):
            self._take(port, answer)
            return
        now, before = self._now(), (lease.error, lease.external)
        if lease.external is not None and lease.expires <= now:
            lease.external = None
        lease.error = answer.reason
        if isinstance(answer, Refused):
            lease.due = now + answer.retry_after
        elif lease.external is not None:
            lease.due = now + max(MIN_RENEWAL, (lease.expires - now) / 2)
        elif all(other.external is None for other in self._leases.values()):
            raise answer
        else:
            lease.due = now + self.settings.look_interval
        if (lease.error, lease.external) == before:
            return
        _log.info(
            "a port is not mapped" if lease.external is None else "a mapping was not renewed",
            port=port.number,
            transport=port.transport.name,
            reason=answer.reason,
        )
        self.on_change()

    def _take(self, port: Port, granted: Granted) -> None:
        lease = self._leases.get(port)
        if lease is None:
            return
        now = self._now()
        moved = lease.external != granted.external
        lease.external = lease.last = granted.external
        lease.error = ""
        lease.expires = now + granted.lifetime
        lease.expires_at = time.time() + granted.lifetime
        part = 0.5 + RENEWAL_JITTER * self.random.random()
        lease.due = now + max(MIN_RENEWAL, granted.lifetime * part)
        if moved:
            _log.info(
                "port mapped",
                port=port.number,
                transport=port.transport.name,
                external=f"{granted.external.ip} {granted.external.port}",
                lifetime=granted.lifetime,
            )
        self.on_change()

    async def _end(self, client: Client, port: Port) -> None:
        """End a mapping that is not wanted any more: not all of them end by themselves."""
        try:
            await client.unmap(port)
        except UnreachableError as error:
            _log.debug("a mapping was not ended", port=port.number, error=error.message)

    async def _look(self, client: Client) -> None:
        try:
            await client.look()
        except UnreachableError as error:
            # The mappings may live on; their renewals and their ends decide.
            _log.debug("the gateway does not tell its epoch", error=error.message)

    def _all_lost(self) -> None:
        """Have all ports mapped anew, soon: what is not mapped again by then is gone."""
        now = self._now()
        if now >= self._restart_told + RESTART_QUIET:
            self._restart_told = now
            _log.info("the gateway was restarted", gateway=str(self.gateway.address))
        for lease in self._leases.values():
            # Not at once again: a gateway whose clock is broken must not keep us busy.
            lease.due = min(lease.due, max(now, lease.asked + MIN_RENEWAL))
            lease.expires = min(lease.expires, now + 2 * MIN_RENEWAL)

    def _expire(self) -> None:
        now = self._now()
        for lease in self._leases.values():
            if lease.external is not None and lease.expires <= now:
                lease.external = None
                lease.due = now
                self.on_change()

    def _next(self, lease: _Lease) -> float:
        return lease.due if lease.external is None else min(lease.due, lease.expires)

    async def _sleep_until(self, when: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, when - self._now())):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

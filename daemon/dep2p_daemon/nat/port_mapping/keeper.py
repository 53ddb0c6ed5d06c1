"""Keeps our ports mapped at one gateway: which protocol, when to renew, when to begin anew.

Each port has a lease. It is renewed after half of its life; while the gateway is silent, after
half of what remains, and so on (RFC 6887, 11.2.1; RFC 6886, 3.3). In between the gateway is asked
for its epoch, which tells that it was restarted and has lost everything.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import ProtocolNotSupportedError, UnreachableError
from dep2p_daemon.nat.port_mapping.clients import CLIENTS, Client, ClientKind
from dep2p_daemon.nat.port_mapping.status import GatewayStatus, PortMapping
from dep2p_daemon.nat.port_mapping.terms import (
    NO_OUTER_ADDRESS,
    SILENT,
    Endpoint,
    Granted,
    Port,
    Refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dep2p_daemon.nat.port_mapping.channel import Channel
    from dep2p_daemon.nat.port_mapping.gateway import Gateway
    from dep2p_daemon.nat.port_mapping.terms import Protocol

_log = structlog.get_logger(__name__)

MIN_RENEWAL: Final = 4.0
"""Seconds between two requests for one port (RFC 6887, 11.2.1)."""
RENEWAL_JITTER: Final = 1 / 8
"""Of the life: renewals fall between 1/2 and 5/8 of it, so that hosts do not come together."""

_REMEDY: Final = (
    "allow port mapping (UPnP, NAT-PMP, PCP) in the router's settings, or forward the port there "
    "by hand"
)


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
    clients: tuple[ClientKind, ...] = CLIENTS
    """In the order in which they are tried."""
    retry_after: float = 0.0
    """Seconds in which to not ask the gateway again, if it refused; 0: it did not say."""
    _leases: dict[Port, _Lease] = field(default_factory=dict)
    _dropped: set[Port] = field(default_factory=set)
    """Not wanted any more, and to be unmapped."""
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
            OSError: the network is gone.
        """
        client = await self._choose()
        look_at = self._now() + self.settings.look_interval
        while True:
            self._wake.clear()
            self._expire()
            while self._dropped:
                await self._end(client, self._dropped.pop())
            for port in [p for p, lease in self._leases.items() if lease.due <= self._now()]:
                await self._renew(client, port)
            if self._now() >= look_at:
                look_at = self._now() + self.settings.look_interval
                await self._look(client)
            if client.restarted:
                client.restarted = False
                _log.info("the gateway was restarted", gateway=str(self.gateway.address))
                self._all_lost()
            await self._sleep_until(
                min([look_at, *(self._next(lease) for lease in self._leases.values())])
            )

    async def remove_all(self) -> None:
        """End all mappings, as far as the gateway confirms it in time. Call it after `run`."""
        client = self.client
        mapped = [port for port, lease in self._leases.items() if lease.external is not None]
        if client is None or not mapped:
            return
        try:
            async with asyncio.timeout(self.settings.farewell_timeout):
                results = await asyncio.gather(
                    *(client.unmap(port) for port in mapped), return_exceptions=True
                )
        except TimeoutError as error:
            results = [error]
        for port in mapped:
            self._leases[port].external = None
        failed = [repr(result) for result in results if result is not None]
        _log.info("port mappings removed", ports=len(mapped), failed=failed)

    # ------------------------------------------------------------------ steps

    async def _choose(self) -> Client:
        """Find the protocol that maps our first port."""
        refusal: UnreachableError | None = None
        error: UnreachableError | ProtocolNotSupportedError | None = None
        port = next(iter(self._leases))
        for kind in self.clients:
            if self.gateway.address.version not in kind.versions:
                continue
            client = kind.make(self.channel, self.gateway, self._now, self.random)
            try:
                answer = await client.map(port, self.settings.lifetime, None)
            except (UnreachableError, ProtocolNotSupportedError) as failure:
                _log.debug("no port mapping", protocol=kind.protocol.value, error=failure.message)
                if error is None or error.reason == SILENT:
                    error = failure
                continue
            if isinstance(answer, Granted):
                self.client = client
                self._take(port, answer)
                return client
            self.retry_after = max(self.retry_after, answer.retry_after)
            if refusal is None or answer.reason == NO_OUTER_ADDRESS:  # that tells the most
                refusal = self._refusal(kind.protocol, answer)
        if refusal is not None:
            raise refusal
        if error is not None and error.reason != SILENT:
            raise error
        names = ", ".join(kind.protocol.word for kind in self.clients)
        raise UnreachableError(
            f"the gateway {self.gateway.address} does not answer to {names}",
            reason=SILENT,
            remedy=_REMEDY,
            gateway=self.gateway.address,
        )

    def _refusal(self, protocol: Protocol, answer: Refused) -> UnreachableError:
        why = f"{protocol.word}: {answer.reason}"
        if answer.reason == NO_OUTER_ADDRESS:
            why += "; it is offline, or behind another NAT"
        return UnreachableError(
            f"the gateway {self.gateway.address} refuses to map ports ({why})",
            reason=answer.reason,
            remedy=_REMEDY,
            gateway=self.gateway.address,
        )

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
        now = self._now()
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

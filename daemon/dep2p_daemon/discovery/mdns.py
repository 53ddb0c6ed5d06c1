"""Peers on the same network, by multicast DNS.

https://github.com/libp2p/specs/blob/master/discovery/mdns.md

We answer for a random name and ask for those of others. What they tell goes to the peerstore for
as long as they are there: dialling a peer by its id alone then finds it. Nobody is dialled
because of mDNS alone. Only addresses of the private networks that we are in are told and taken.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from dep2p_daemon.discovery.mdns_records import (
    SERVICE,
    decode_text,
    encode_text,
    is_local,
    random_name,
)
from dep2p_daemon.swarm.events import AddressesChanged, NetworkChanged

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

    from dep2p_daemon.events import EventBus
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)

SOURCE: Final = "mdns"
"""Of the addresses in the peerstore."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MdnsSettings:
    """Times in seconds."""

    address_ttl: float = 120.0
    """In the peerstore, from the last time the peer was seen."""
    refresh: float = 50.0
    """Between two notes in the peerstore that a peer is still there."""
    retry: float = 60.0
    """Until the next try when mDNS cannot be used (port 5353 is taken, no network)."""
    resolve_timeout: float = 3.0
    """For a name's TXT record."""
    max_peers: int = 128
    """Names remembered at a time; ours: more than a home or an office floor has."""
    max_resolving: int = 16
    """Names asked for at a time."""


class Mdns:
    """Tells the network of this node and learns of others. An async context manager."""

    def __init__(
        self, swarm: Swarm, events: EventBus, settings: MdnsSettings | None = None
    ) -> None:
        self._swarm = swarm
        self._events = events
        self._settings = settings or MdnsSettings()
        self._name = random_name()
        self._found: dict[str, dict[PeerId, list[Multiaddr]]] = {}
        """By the peers' random names; the one seen longest ago is first."""
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for work in (self._run(), self._watch(), self._refresh()):
            self._background.add(self._tasks.create_task(work, name="mdns"))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in (*self._background, *self._resolving.values()):
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    @property
    def peers(self) -> frozenset[PeerId]:
        """The peers that are on the network now, as far as they tell."""
        return frozenset(peer for told in self._found.values() for peer in told)

    def _local_addresses(self) -> tuple[Multiaddr, ...]:
        networks = self._swarm.networks()
        own = self._swarm.own_addresses
        return tuple(address for address in own if is_local(address, networks))

    async def _watch(self) -> None:
        """Notice that the addresses to tell have changed."""
        told = self._local_addresses()
        with self._events.subscribe() as subscription:
            while True:
                event = await subscription.next()
                if isinstance(event, AddressesChanged | NetworkChanged) or subscription.take_lost():
                    now = self._local_addresses()
                    # On another network with the same addresses nobody has heard of us.
                    if now != told or isinstance(event, NetworkChanged):
                        told = now
                        self._changed.set()

    async def _run(self) -> None:
        """Be on the network with the addresses of now; begin anew when they change."""
        while True:
            self._changed.clear()
            addresses = self._local_addresses()
            wait: float | None = None
            try:
                if addresses:
                    await self._serve(addresses)
                    continue
            except OSError as error:
                log.info("mDNS cannot be used", reason="MDNS_UNAVAILABLE", error=str(error))
                wait = self._settings.retry
            except Exception:
                # The library's defects must not take the daemon along.
                log.exception("mDNS failed")
                wait = self._settings.retry
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _serve(self, addresses: tuple[Multiaddr, ...]) -> None:
        """Tell and ask until the addresses change."""
        # It takes 0.1 s to import, and relays never need it.
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

        # It writes a traceback for each packet that an interface which went away does not take.
        logging.getLogger("zeroconf").setLevel(logging.ERROR)
        hosts = list(dict.fromkeys(str(address.ip) for address in addresses))
        v6 = any(":" in host for host in hosts)
        v4 = any(":" not in host for host in hosts)
        zeroconf = AsyncZeroconf(
            interfaces=hosts,
            ip_version=IPVersion.All if v4 and v6 else IPVersion.V6Only if v6 else IPVersion.V4Only,
        )
        try:
            info = AsyncServiceInfo(
                SERVICE,
                f"{self._name}.{SERVICE}",
                port=addresses[0].port or 0,
                properties=encode_text(addresses, self._swarm.local_peer),
                server=f"{self._name}.local.",
                parsed_addresses=hosts,
            )
            browser = AsyncServiceBrowser(
                zeroconf.zeroconf, SERVICE, handlers=[self._on_name(zeroconf)]
            )
            await zeroconf.async_register_service(info)
            log.info("mDNS: on the network", addresses=[str(address) for address in addresses])
            await self._changed.wait()
            await browser.async_cancel()
        finally:
            self._found.clear()
            # Says goodbye, so that others forget us at once.
            await zeroconf.async_close()

    def _on_name(self, zeroconf: AsyncZeroconf) -> Any:  # noqa: ANN401 - zeroconf's handler type
        def changed(
            zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
        ) -> None:
            if name == f"{self._name}.{SERVICE}":
                return
            if state_change.name == "Removed":
                self._found.pop(name, None)
            elif name not in self._resolving and len(self._resolving) < (
                self._settings.max_resolving
            ):
                task = self._tasks.create_task(self._resolve(owner, name), name=f"mdns {name}")
                self._resolving[name] = task
                task.add_done_callback(lambda _: self._resolving.pop(name, None))

        owner = zeroconf
        return changed

    async def _resolve(self, zeroconf: AsyncZeroconf, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(SERVICE, name)
        try:
            known = await info.async_request(
                zeroconf.zeroconf, self._settings.resolve_timeout * 1000
            )
        except Exception as error:
            # Whatever a stranger's packet makes of the library: it is that name's trouble only.
            log.debug("mDNS: a name was not resolved", name=name, error=repr(error))
            return
        if known:
            self._take(name, info.text)

    def _take(self, name: str, text: bytes) -> None:
        networks = self._swarm.networks()
        told = {
            peer: [address for address in addresses if is_local(address, networks)]
            for peer, addresses in decode_text(text).items()
            if peer != self._swarm.local_peer
        }
        told = {peer: addresses for peer, addresses in told.items() if addresses}
        self._found.pop(name, None)
        if not told:
            return
        self._found[name] = told
        if len(self._found) > self._settings.max_peers:
            del self._found[next(iter(self._found))]
        for peer, addresses in told.items():
            log.debug("mDNS: peer found", peer=str(peer), addresses=[str(a) for a in addresses])
        self._note(told)

    def _note(self, told: dict[PeerId, list[Multiaddr]]) -> None:
        for peer, addresses in told.items():
            self._swarm.peerstore.add_addresses(
                peer, addresses, ttl=self._settings.address_ttl, source=SOURCE
            )

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._settings.refresh)
            for told in tuple(self._found.values()):
                self._note(told)

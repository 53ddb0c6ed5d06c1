"""Relays that are named by `host:port` or `/dnsaddr/name`, without a peer id: finding out who.

libp2p dials a peer, not a place. For `host:port` the id comes from, in this order:

  1. what was learnt at an earlier connection (`RelayPins`), or
  2. the records of `/dnsaddr/host`, which name peers, or
  3. whoever proves an identity there at the first connection. It is pinned (trust on first use):
     from then on nobody else is taken for this relay. The log tells of it.

`/dnsaddr/name` stands for all relays that its records name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import structlog
from typing_extensions import override

from dep2p_daemon.circuit.addresses import ways_to_relay
from dep2p_daemon.errors import (
    AuthenticationError,
    ConfigError,
    Dep2pError,
    DialTimeoutError,
    MultiaddrError,
    PeerIdError,
    UnreachableError,
)
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from pathlib import Path

    from dep2p_daemon.swarm.dialing import DnsResolver
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)

LEARN_SECONDS: Final = 5.0
"""For one address, to prove who is there."""
MAX_RELAYS_PER_NAME: Final = 4
"""Peers of one name's records that are taken; ours."""
MAX_PINS: Final = 64
_MAX_PIN_FILE: Final = 64 * 1024

_HOST_AND_PORT: Final = re.compile(r"\[?(?P<host>[0-9A-Za-z.:_-]{1,253}?)\]?:(?P<port>[0-9]{1,5})")
_FORM: Final = "write relay.example.com:4001, 203.0.113.10:4001 or [2001:db8::1]:4001"


@dataclass(frozen=True, slots=True)
class RelayHost:
    """Where a relay is, but not who it is."""

    host: str
    port: int | None
    """UDP and TCP; None: all that the host's `/dnsaddr` records name."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `host:port` or `/dnsaddr/name`. Raises MultiaddrError."""
        text = text.strip()
        if text.startswith("/dnsaddr/"):
            address = Multiaddr.parse(text)
            if address.protocols == ("dnsaddr",):
                return cls(str(address.host), None)
        found = _HOST_AND_PORT.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise MultiaddrError(f'"{text[:300]}" is no host and port', remedy=_FORM)
        host = cls(found["host"].lower(), int(found["port"]))
        _ = host.address  # an IPv6 address without brackets, or another thing that is no host
        return host

    @staticmethod
    def looks_like_one(text: str) -> bool:
        """Whether `text` means a host, rather than a multiaddr with a mistake in it."""
        text = text.strip()
        return (
            _HOST_AND_PORT.fullmatch(text) is not None
            or re.fullmatch(r"/dnsaddr/[^/]+", text) is not None
        )

    @property
    def address(self) -> Multiaddr:
        """The QUIC address; the relay's TCP port is the same. Raises MultiaddrError."""
        if self.port is None:
            return Multiaddr.parse(f"/dnsaddr/{self.host}")
        kind = f"ip{ipaddress.ip_address(self.host).version}" if self.is_ip else "dns"
        return Multiaddr.parse(f"/{kind}/{self.host}/udp/{self.port}/quic-v1")

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address rather than a name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @override
    def __str__(self) -> str:
        if self.port is None:
            return f"/dnsaddr/{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RelayPins:
    """Who was found at which host: a small JSON file, host to peer id. None: kept in memory."""

    def __init__(self, path: Path | None) -> None:
        """Read the file. Raises ConfigError when it is there and cannot be read."""
        self._path = path
        self._pins: dict[str, PeerId] = {}
        self._load()

    def get(self, host: RelayHost) -> PeerId | None:
        """Return who was there at the first connection; None before it."""
        return self._pins.get(str(host))

    def pin(self, host: RelayHost, peer: PeerId) -> None:
        """Remember for ever that `peer` is the relay at `host`; of too many the oldest goes."""
        self._pins[str(host)] = peer
        while len(self._pins) > MAX_PINS:
            del self._pins[next(iter(self._pins))]
        self._write()

    def unpin(self, peer: PeerId) -> bool:
        """Forget where `peer` was found; False when it was nowhere."""
        hosts = [name for name, pinned in self._pins.items() if pinned == peer]
        for name in hosts:
            del self._pins[name]
        if hosts:
            self._write()
        return bool(hosts)

    def _write(self) -> None:
        if self._path is None:
            return
        text = json.dumps({name: str(pinned) for name, pinned in self._pins.items()}, indent=2)
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            log.warning("relay pins cannot be written", path=str(self._path), error=str(error))

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            with self._path.open(encoding="utf-8") as file:
                stored = json.loads(file.read(_MAX_PIN_FILE))
            pairs = list(stored.items())[:MAX_PINS]
            self._pins = {str(name): PeerId.parse(str(peer)) for name, peer in pairs}
        except FileNotFoundError:
            return
        except (OSError, ValueError, AttributeError, PeerIdError) as error:
            # Taking whoever answers now for the relay would undo what the file is for.
            raise ConfigError(
                f"the file of known relays, {self._path}, cannot be read: {error}",
                reason="RELAY_PINS_UNREADABLE",
                remedy="correct it, or remove it to trust whoever answers at the next start",
                path=self._path,
            ) from error


async def find_relays(
    host: RelayHost, swarm: Swarm, resolver: DnsResolver, pins: RelayPins
) -> tuple[Multiaddr, ...]:
    """Return the full addresses (with `/p2p`) of the relay, or relays, at `host`.

    Raises:
        UnreachableError: the name is not known, or nobody is there.
        AuthenticationError: who is there proves nothing.
    """
    pinned = pins.get(host)
    if pinned is not None:
        return (host.address.with_peer_id(pinned),)
    if not host.is_ip:
        try:
            if named := await _named(host, resolver):
                return named
        except Dep2pError:
            if host.port is None:
                raise
    if host.port is None:
        raise UnreachableError(
            f"no record at {host} names a relay",
            reason="NO_PEERS_AT_ADDRESS",
            remedy="each TXT record must be dnsaddr=<multiaddr>/p2p/<peer id>",
            address=host,
        )
    peer = await _who_is_there(host, swarm, resolver)
    pins.pin(host, peer)
    log.warning(
        "a relay is trusted at first use: whoever answered first is the relay from now on",
        host=str(host),
        relay=str(peer),
        remedy=f"compare the id with the relay's own, and write {host.address}/p2p/{peer}",
    )
    return (host.address.with_peer_id(peer),)


async def _named(host: RelayHost, resolver: DnsResolver) -> tuple[Multiaddr, ...]:
    found = await resolver.resolve(Multiaddr.parse(f"/dnsaddr/{host.host}"))
    named = [a for a in found if a.peer_id is not None and not a.is_circuit and a.transport]
    peers = list(dict.fromkeys(address.peer_id for address in named))[:MAX_RELAYS_PER_NAME]
    return tuple(address for address in named if address.peer_id in peers)


async def _who_is_there(host: RelayHost, swarm: Swarm, resolver: DnsResolver) -> PeerId:
    failed: Dep2pError = UnreachableError(f"nobody is at {host}")
    for address in ways_to_relay(await resolver.resolve(host.address)):
        transport = swarm.transport_for(address)
        if transport is None:
            continue
        try:
            # The handshake proves who is there before it is compared with whom we expect: with a
            # peer id that nobody has, it ends there, and says who it was.
            async with asyncio.timeout(LEARN_SECONDS):
                connection = await transport.dial(address, PrivateKey.generate().peer_id)
        except AuthenticationError as error:
            proven = error.metadata.get("actual_peer") or error.metadata.get("actual")
            if proven:
                return PeerId.parse(proven)
            failed = error
        except Dep2pError as error:
            failed = error
        except TimeoutError:
            failed = DialTimeoutError(f"no answer from {address} within {LEARN_SECONDS:g} s")
        except OSError as error:
            failed = UnreachableError(f"{address}: {error.strerror or error}")
        else:
            await connection.close()
    raise failed

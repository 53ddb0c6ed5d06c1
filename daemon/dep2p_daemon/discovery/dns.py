"""Names in multiaddrs become addresses: `/dns`, `/dns4`, `/dns6` and `/dnsaddr`.

https://github.com/multiformats/multiaddr/blob/master/protocols/DNSADDR.md

Flow: `/dnsaddr/D` stands for the multiaddrs in the TXT records of `_dnsaddr.D`, which may be
`/dnsaddr` again; of the others the host is replaced by each of its IP addresses. What follows
the name in a `/dnsaddr` (such as `/p2p/<id>`) must be what a result ends in.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from dep2p_daemon.errors import MultiaddrError, UnreachableError
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dns.asyncresolver import Resolver as DnspythonResolver

_log = structlog.get_logger(__name__)

_TXT_PREFIX: Final = "dnsaddr="
_RECORD_TYPES: Final = {"dns": ("A", "AAAA"), "dns4": ("A",), "dns6": ("AAAA",)}
_IP_PROTOCOLS: Final = {"A": "ip4", "AAAA": "ip6"}
_RESOLV_CONF: Final = Path("/etc/resolv.conf")


@dataclass(frozen=True, kw_only=True, slots=True)
class DnsSettings:
    """Bounds of one `resolve`, and who is asked."""

    nameserver: tuple[str, int] | None = None
    """IP address and port; None: those that the system is configured with."""
    hosts_file: Path | None = Path("/etc/hosts")
    """Names in it need no name server; None: there is none."""
    timeout: float = 2.0
    """Seconds until a name server is asked again, or the next one."""
    lifetime: float = 5.0
    """Seconds that one question may take."""
    max_depth: int = 4
    """How often a `/dnsaddr` may stand for another one (go-multiaddr-dns)."""
    max_results: int = 100
    """Addresses that one address may stand for (go-multiaddr-dns)."""
    max_questions: int = 64
    """Questions that one address may cause; ours, because a record costs its author nothing."""
    max_hosts_bytes: int = 1024 * 1024
    """A larger hosts file is not read."""


class _Lookup:
    """One `resolve`: what it has found, asked and failed at so far."""

    def __init__(self, settings: DnsSettings) -> None:
        self.settings = settings
        self.results: dict[Multiaddr, None] = {}
        self.asked = 0
        self.failures: dict[str, None] = {}

    @property
    def full(self) -> bool:
        return len(self.results) >= self.settings.max_results

    def add(self, address: Multiaddr) -> None:
        if not self.full:
            self.results[address] = None

    def fail(self, why: str) -> None:
        self.failures[why] = None


class Resolver:
    """Asks the name servers. Holds no sockets between questions: there is nothing to close."""

    def __init__(self, settings: DnsSettings | None = None) -> None:
        self._settings = settings or DnsSettings()
        self._resolver: DnspythonResolver | None = None
        self._configured_at: float | None = None
        self._questions = asyncio.Semaphore(8)

    async def resolve(self, address: Multiaddr) -> tuple[Multiaddr, ...]:
        """Return the addresses that `address` stands for, without names.

        An address without a name stands for itself. So does a circuit address: the name in it
        is the relay's, and whoever dials the relay resolves it.

        Raises:
            UnreachableError: the name stands for nothing; says what was asked, and the remedy.
        """
        if not address.is_dns or address.is_circuit:
            return (address,)
        lookup = _Lookup(self._settings)
        pending = [address]
        for _ in range(self._settings.max_depth + 1):
            found = await asyncio.gather(*(self._step(name, lookup) for name in pending))
            pending = []
            for result in itertools.chain.from_iterable(found):
                if result.is_dns and not result.is_circuit:
                    pending.append(result)
                else:
                    lookup.add(result)
            del pending[self._settings.max_results :]
            if not pending or lookup.full:
                break
        else:
            lookup.fail(f"more than {self._settings.max_depth} /dnsaddr in a row")
        if not lookup.results:
            raise _nothing_found(address, lookup)
        return tuple(lookup.results)

    async def _step(self, address: Multiaddr, lookup: _Lookup) -> list[Multiaddr]:
        """Replace the name of one address."""
        first, *rest = address.components
        suffix = "".join(map(str, rest))
        if first.protocol.name == "dnsaddr":
            texts = await self._ask(f"_dnsaddr.{first.text}", "TXT", lookup)
            return _linked(texts, suffix)
        kinds = _RECORD_TYPES[first.protocol.name]
        answers = await asyncio.gather(*(self._ask(first.text, kind, lookup) for kind in kinds))
        return [
            Multiaddr.parse(f"/{_IP_PROTOCOLS[kind]}/{ip}{suffix}")
            for kind, ips in zip(kinds, answers, strict=True)
            for ip in ips
        ]

    async def _ask(self, name: str, kind: str, lookup: _Lookup) -> list[str]:
        """Return the texts of the records of one kind; what failed is noted in `lookup`."""
        if known := _literal(name, kind) or self._from_hosts_file(name, kind):
            return known
        if lookup.asked >= lookup.settings.max_questions:
            lookup.fail(f"more than {lookup.settings.max_questions} questions")
            return []
        lookup.asked += 1
        # It takes 0.1 s to import, and most daemons never need it.
        import dns.exception
        import dns.resolver

        try:
            async with self._questions:
                answer = await self._dnspython().resolve(
                    name, kind, search=kind != "TXT", lifetime=self._settings.lifetime
                )
        except dns.resolver.NXDOMAIN:
            lookup.fail(f"{kind} of {name}: no such name")
        except dns.resolver.NoAnswer:
            lookup.fail(f"{kind} of {name}: no such record")
        except dns.exception.Timeout:
            lookup.failures[f"{kind} of {name}: no answer within {self._settings.lifetime:g} s"] = (
                None
            )
        except (dns.exception.DNSException, OSError, ValueError) as error:
            # Refused, malformed, no name server configured, or not a name at all.
            lookup.fail(f"{kind} of {name}: {_one_line(error)}")
        else:
            return _texts(answer, kind)[: self._settings.max_results]
        return []

    def _dnspython(self) -> DnspythonResolver:
        import dns.asyncresolver
        import dns.resolver

        configured_at = _modified_at(_RESOLV_CONF)
        if self._resolver is None or configured_at != self._configured_at:
            # The file changes when a laptop moves to another network.
            nameserver = self._settings.nameserver
            resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
            if nameserver is not None:
                resolver.nameservers, resolver.port = [nameserver[0]], nameserver[1]
            resolver.timeout = self._settings.timeout
            resolver.cache = dns.resolver.LRUCache(1024)
            self._resolver, self._configured_at = resolver, configured_at
        return self._resolver

    def _from_hosts_file(self, name: str, kind: str) -> list[str]:
        path = self._settings.hosts_file
        if kind == "TXT" or path is None:
            return []
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                lines = file.read(self._settings.max_hosts_bytes).splitlines()
        except OSError:
            return []
        return _hosts_entries(lines, name, kind)


def _literal(name: str, kind: str) -> list[str]:
    """Take `/dns4/127.0.0.1` for what it means."""
    try:
        version = ipaddress.ip_address(name).version
    except ValueError:
        return []
    return [name] if kind == ("A" if version == 4 else "AAAA") else []


def _hosts_entries(lines: Sequence[str], name: str, kind: str) -> list[str]:
    wanted = name.rstrip(".").lower()
    version = 4 if kind == "A" else 6
    found: list[str] = []
    for line in lines:
        ip, *names = line.partition("#")[0].split() or [""]
        if wanted not in (known.lower() for known in names):
            continue
        try:
            if ipaddress.ip_address(ip).version == version:
                found.append(ip)
        except ValueError:
            continue
    return found


def _texts(answer: object, kind: str) -> list[str]:
    """Return an answer's records as text."""
    import dns.rdtypes.ANY.TXT
    import dns.resolver

    assert isinstance(answer, dns.resolver.Answer)
    if kind != "TXT":
        return [record.to_text() for record in answer]
    # A record is made of strings of at most 255 bytes, which belong together.
    return [
        b"".join(record.strings).decode("utf-8", "replace")
        for record in answer
        if isinstance(record, dns.rdtypes.ANY.TXT.TXT)
    ]


def _linked(texts: Sequence[str], suffix: str) -> list[Multiaddr]:
    """Return the addresses of `dnsaddr=` records that end in `suffix`."""
    wanted = Multiaddr.parse(suffix).components if suffix else ()
    linked: list[Multiaddr] = []
    for text in texts:
        if not text.startswith(_TXT_PREFIX):
            continue
        try:
            address = Multiaddr.parse(text.removeprefix(_TXT_PREFIX))
        except MultiaddrError as error:
            _log.debug("dnsaddr record left out", reason=error.reason, error=error.message)
            continue
        if not wanted or address.components[-len(wanted) :] == wanted:
            linked.append(address)
    return linked


def _modified_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _nothing_found(address: Multiaddr, lookup: _Lookup) -> UnreachableError:
    host = address.host
    tried = "; ".join(itertools.islice(lookup.failures, 4))
    if address.protocols[0] == "dnsaddr":
        remedy = f"check `dig TXT _dnsaddr.{host}`: it must have a record dnsaddr=<multiaddr>" + (
            f" that ends in /p2p/{address.peer_id}" if address.peer_id else ""
        )
    else:
        remedy = f"check the spelling of {host}, and this machine's name servers"
    return UnreachableError(
        f"the name {host} in {address} stands for no address" + (f": {tried}" if tried else ""),
        reason="NAME_NOT_RESOLVED",
        remedy=remedy,
        host=host,
        address=address,
        tried=tried,
    )

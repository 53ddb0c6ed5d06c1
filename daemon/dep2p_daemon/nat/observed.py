"""What peers see as our address, per listening socket (identify's `observedAddr`).

https://github.com/libp2p/specs/blob/master/identify/README.md#observedaddr

One observer is a claim, several are knowledge. Observers are told apart by their IPv4 address or
IPv6 /56, so that one machine does not count as many. Only connections that leave from, or arrive
at, a listening socket count: the mapping of any other port is good for nothing. If all observers
see one address, the NAT's mapping is endpoint-independent (RFC 4787, section 4.1), and whoever
knows the address can use it; if each sees another, it is not.

sans-IO: times are seconds of one monotonic clock.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dep2p_daemon.nat.candidates import is_public

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.multiaddr import Multiaddr


class MappingBehaviour(enum.Enum):
    """RFC 4787, section 4.1, as far as observers can tell."""

    UNKNOWN = "UNKNOWN"
    """Fewer than two observers."""
    ENDPOINT_INDEPENDENT = "ENDPOINT_INDEPENDENT"
    ADDRESS_DEPENDENT = "ADDRESS_DEPENDENT"
    """Another address or port for each destination ("symmetric")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedSettings:
    """How much of observers' word is kept, and for how long. Times in seconds."""

    confirmations: int = 2
    """Distinct observers that make an address one to tell peers."""
    lifetime: float = 1800.0
    """An observation that nobody repeats is forgotten after this."""
    max_observers: int = 32
    """Observers remembered for one listening socket; the oldest goes first."""
    max_sockets: int = 16
    """Listening sockets."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one observer saw last."""

    address: Multiaddr
    at: float


@dataclass(frozen=True, slots=True)
class ObservedAddress:
    """An address of ours as seen from outside."""

    address: Multiaddr
    observers: int
    """Distinct observers that see it now."""
    last_at: float


class ObservedAddresses:
    """The observations of all listening sockets."""

    def __init__(
        self,
        settings: ObservedSettings | None = None,
        *,
        is_public: Callable[[Multiaddr], bool] = is_public,
    ) -> None:
        self._settings = settings or ObservedSettings()
        self._is_public = is_public
        self._listening: tuple[Multiaddr, ...] = ()
        self._seen: dict[Multiaddr, dict[str, Observation]] = {}

    def set_listening(self, addresses: Sequence[Multiaddr]) -> None:
        """Name the listening sockets; what was seen of others is forgotten."""
        self._listening = tuple(addresses[: self._settings.max_sockets])
        for gone in set(self._seen) - set(self._listening):
            del self._seen[gone]

    def observe(
        self, *, local: Multiaddr, remote: Multiaddr, observed: Multiaddr, now: float
    ) -> bool:
        """Take an observer's word; False when it tells nothing.

        Args:
            local: our end of the connection that the observer speaks of.
            remote: the observer's end.
            observed: what it sees as ours.
            now: the time.
        """
        socket = self._socket_of(local)
        observer = observer_key(remote)
        observed = observed.without_peer_id()
        if (
            socket is None
            or observer is None
            or remote.is_circuit
            or observed.transport != socket.transport
            or observed.ip is None
            or socket.ip is None
            or observed.ip.version != socket.ip.version
            or not observed.port
            or not self._is_public(observed)
            # An observer in our own network sees what is in front of the NAT.
            or not self._is_public(remote)
        ):
            return False
        seen = self._seen.setdefault(socket, {})
        seen.pop(observer, None)  # the latest is the last
        seen[observer] = Observation(observed, now)
        if len(seen) > self._settings.max_observers:
            del seen[next(iter(seen))]
        return True

    def forget_all(self) -> None:
        """The network changed: nothing that was seen holds any more."""
        self._seen.clear()

    def candidates(self, now: float) -> tuple[ObservedAddress, ...]:
        """All addresses seen, by one observer or more: most observers, then the latest, first."""
        found = [one for socket in self._listening for one in self._of_socket(socket, now)]
        found.sort(key=lambda one: (-one.observers, -one.last_at))
        return tuple(found)

    def confirmed(self, now: float) -> tuple[Multiaddr, ...]:
        """The addresses that enough observers see, to tell peers; of each socket at most one."""
        result: list[Multiaddr] = []
        for socket in self._listening:
            best = max(
                self._of_socket(socket, now),
                key=lambda one: (one.observers, one.last_at),
                default=None,
            )
            if best is not None and best.observers >= self._settings.confirmations:
                result.append(best.address)
        return tuple(dict.fromkeys(result))

    def mapping(self, transport: str, now: float) -> MappingBehaviour:
        """The NAT's mapping behaviour for "quic-v1" (UDP) or "tcp", over IPv4."""
        behaviour = MappingBehaviour.UNKNOWN
        for socket in self._listening:
            if socket.transport != transport or socket.ip is None or socket.ip.version != 4:
                continue
            fresh = self._fresh(socket, now)
            if len(fresh) < 2:
                continue
            if len({one.address for one in fresh}) > 1:
                return MappingBehaviour.ADDRESS_DEPENDENT
            behaviour = MappingBehaviour.ENDPOINT_INDEPENDENT
        return behaviour

    def _of_socket(self, socket: Multiaddr, now: float) -> list[ObservedAddress]:
        by_address: dict[Multiaddr, list[float]] = {}
        for one in self._fresh(socket, now):
            by_address.setdefault(one.address, []).append(one.at)
        return [
            ObservedAddress(address, len(times), max(times))
            for address, times in by_address.items()
        ]

    def _fresh(self, socket: Multiaddr, now: float) -> list[Observation]:
        seen = self._seen.get(socket)
        if not seen:
            return []
        oldest = now - self._settings.lifetime
        for observer in [key for key, one in seen.items() if one.at < oldest]:
            del seen[observer]
        return list(seen.values())

    def _socket_of(self, local: Multiaddr) -> Multiaddr | None:
        """The listening socket that a connection's local end belongs to."""
        ip = local.ip
        for socket in self._listening:
            if (
                socket.ip is not None
                and ip is not None
                and socket.transport == local.transport
                and socket.port == local.port
                and socket.ip.version == ip.version
                and (socket.is_unspecified or ip.is_unspecified or socket.ip == ip)
            ):
                return socket
        return None


def observer_key(remote: Multiaddr) -> str | None:
    """Return what tells observers apart: the IPv4 address, or the IPv6 /56."""
    ip = remote.ip
    if ip is None:
        return None
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, 56), strict=False))
    return str(ip)

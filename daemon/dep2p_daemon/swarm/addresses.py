"""The addresses under which peers may reach us: announced, observed, listening, circuits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dep2p_daemon.multiaddr import Multiaddr
from dep2p_daemon.swarm.interfaces import IPInterface, interface_addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.swarm.ranking import IPNetwork

MAX_OWN_ADDRESSES: Final = 64
"""Ours: identify has to fit into the 4 KiB that rust-libp2p reads."""

_UNSPECIFIED: Final = {"0.0.0.0": "ip4", "::": "ip6"}


def expand(address: Multiaddr, interfaces: Sequence[IPInterface]) -> tuple[Multiaddr, ...]:
    """Replace 0.0.0.0 or :: by the interfaces' addresses; others stay as they are.

    IPv6 link-local addresses mean nothing on another machine and are left out.
    """
    kind = _UNSPECIFIED.get(str(address.ip)) if address.is_unspecified else None
    if kind is None:
        return (address,)
    rest = str(address).split("/", 3)[3]
    version = 4 if kind == "ip4" else 6
    return tuple(
        Multiaddr.parse(f"/{kind}/{interface.ip}/{rest}")
        for interface in interfaces
        if interface.version == version and not interface.ip.is_link_local
    )


def addresses_to_tell(
    *,
    announced: Sequence[Multiaddr],
    listening: Sequence[Multiaddr],
    circuits: Sequence[Multiaddr],
    interfaces: Sequence[IPInterface],
    observed: Sequence[Multiaddr] = (),
    confirmed: Sequence[Multiaddr] = (),
    mapped: Sequence[Multiaddr] = (),
) -> tuple[Multiaddr, ...]:
    """All addresses to tell peers, without `/p2p` and duplicates, the most useful first."""
    expanded = [own for address in listening for own in expand(address, interfaces)]
    expanded.sort(key=lambda address: address.is_loopback)
    ordered = dict.fromkeys(
        [
            *announced,
            *confirmed,
            *mapped,
            *observed,
            *circuits[: MAX_OWN_ADDRESSES // 2],
            *expanded,
        ]
    )
    return tuple(ordered)[:MAX_OWN_ADDRESSES]


class OwnAddresses:
    """Keeps the addresses to tell peers, and says when they change."""

    def __init__(
        self,
        *,
        on_change: Callable[[tuple[Multiaddr, ...]], None],
        read_interfaces: Callable[[], tuple[IPInterface, ...]] = interface_addresses,
    ) -> None:
        self._on_change = on_change
        self._read_interfaces = read_interfaces
        self._announced: tuple[Multiaddr, ...] = ()
        self._listening: tuple[Multiaddr, ...] = ()
        self._circuits: tuple[Multiaddr, ...] = ()
        self._observed: tuple[Multiaddr, ...] = ()
        self._confirmed: tuple[Multiaddr, ...] = ()
        self._mapped: tuple[Multiaddr, ...] = ()
        self._interfaces = read_interfaces()
        self.current: tuple[Multiaddr, ...] = ()
        """All of them, without `/p2p`, the most useful first."""

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The networks that this machine has an interface in."""
        return tuple(interface.network for interface in self._interfaces)

    def set_announced(self, addresses: Sequence[Multiaddr]) -> None:
        """Take what the configuration says about our public addresses."""
        self._announced = _bare(addresses)
        self._update()

    def set_listening(self, addresses: Sequence[Multiaddr]) -> None:
        """Take what the listeners are bound to."""
        self._listening = _bare(addresses)
        self._update()

    def set_circuits(self, addresses: Sequence[Multiaddr]) -> None:
        """Take the addresses at relays, up to `/p2p-circuit`."""
        self._circuits = _bare(addresses)
        self._update()

    def set_observed(self, addresses: Sequence[Multiaddr]) -> None:
        """Take the public addresses under which peers see our listening sockets."""
        self._observed = _bare(addresses)
        self._update()

    def vouched_without_confirmation(self, address: Multiaddr) -> bool:
        """Whether `address` is told, or would be, also without `set_confirmed`.

        What AutoNAT once confirmed must not be the reason to go on believing in it.
        """
        return (
            address not in self._confirmed
            or any(address in others for others in (self._announced, self._observed, self._mapped))
            or any(address in expand(one, self._interfaces) for one in self._listening)
        )

    def set_confirmed(self, addresses: Sequence[Multiaddr]) -> None:
        """Take the addresses at which strangers have reached us (AutoNAT)."""
        self._confirmed = _bare(addresses)
        self._update()

    def set_mapped(self, addresses: Sequence[Multiaddr]) -> None:
        """Take the addresses that a gateway forwards to our listening sockets (port mapping)."""
        self._mapped = _bare(addresses)
        self._update()

    def read_interfaces(self) -> None:
        """Look at the machine's interfaces again."""
        self._interfaces = self._read_interfaces()
        self._update()

    def _update(self) -> None:
        before = self.current
        self.current = addresses_to_tell(
            announced=self._announced,
            listening=self._listening,
            circuits=self._circuits,
            interfaces=self._interfaces,
            observed=self._observed,
            confirmed=self._confirmed,
            mapped=self._mapped,
        )
        if self.current != before:
            self._on_change(self.current)


def _bare(addresses: Sequence[Multiaddr]) -> tuple[Multiaddr, ...]:
    return tuple(
        address if address.peer_id is None else address.without_peer_id() for address in addresses
    )

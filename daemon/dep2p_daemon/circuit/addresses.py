"""Which addresses go with a reservation, on both sides of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dep2p_daemon.circuit.messages import fitting_addresses
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.identity.peer_id import PeerId

MAX_CIRCUIT_ADDRESSES: Final = 8
"""Addresses that we tell others of for one relay; a relay that gives more cannot flood them."""


def reservation_addresses(
    own: Sequence[Multiaddr], *, relay: PeerId, over_loopback: bool
) -> tuple[Multiaddr, ...]:
    """Return what a relay hands out with a reservation: its addresses with its `/p2p`.

    The public ones; where none is known (a LAN, a laboratory) all but loopback; but loopback to
    a peer that came over loopback itself, which may have no other way.
    """
    direct = [address for address in own if not address.is_circuit]
    offered = [address for address in direct if _is_public(address)]
    if not offered:
        loopback = [address for address in direct if address.is_loopback]
        others = [address for address in direct if not address.is_loopback]
        offered = (loopback or others) if over_loopback else others
    return fitting_addresses([address.with_peer_id(relay) for address in offered])


def circuit_addresses(
    dialled: Sequence[Multiaddr], granted: Sequence[Multiaddr], *, relay: PeerId
) -> tuple[Multiaddr, ...]:
    """Return the addresses under which others reach a reservation's holder, without its `/p2p`.

    First the addresses by which we reach the relay ourselves, since they are known to work (and
    go-libp2p relays on private networks grant none), then those that the relay granted.
    """
    reached = [*dialled, *(address.without_peer_id() for address in granted)]
    return tuple(
        address.with_peer_id(relay) / "/p2p-circuit"
        for address in list(dict.fromkeys(reached))[:MAX_CIRCUIT_ADDRESSES]
    )


def ways_to_relay(addresses: Sequence[Multiaddr]) -> tuple[Multiaddr, ...]:
    """Return `addresses`, and for each QUIC one its TCP twin, for networks that drop UDP.

    A relay listens on one port number for both (ours do, and go-libp2p's by default). The swarm
    tries QUIC first.
    """
    twins = [twin for address in addresses if (twin := tcp_twin(address)) is not None]
    return tuple(dict.fromkeys([*addresses, *twins]))


def tcp_twin(address: Multiaddr) -> Multiaddr | None:
    """Return the TCP address of the host and port of a QUIC one; None for any other address."""
    if address.is_circuit or address.transport != "quic-v1":
        return None
    host = str(address).partition("/udp/")[0]
    return Multiaddr.parse(f"{host}/tcp/{address.port}")


def _is_public(address: Multiaddr) -> bool:
    return address.is_dns or (address.ip is not None and address.ip.is_global)

"""What a failed punch is most likely due to, from what both sides offered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dep2p_daemon.nat.nat_kind import NatKind, apparent_kind
from dep2p_daemon.nat.observed import MappingBehaviour
from dep2p_daemon.nat.trail import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.nat.trail import Trail

_DIALS_FROM_OTHER_PORTS: Final = "js-libp2p/"
"""What the agent version of such a peer begins with. js-libp2p (3.3, dcutr 3.0) never sends from
the socket it listens on, nor tells of an address that it was only seen from."""


def verdict(trail: Trail, accepted: Sequence[Multiaddr], agent: str = "") -> Reason:
    """Return the reason of a failure.

    `accepted` are those of the peer's addresses that may be used, `agent` what it says it is.
    """
    reason = _by_addresses(trail, accepted)
    if reason in (Reason.NO_PEER_ADDRESS, Reason.PUNCH_FAILED) and agent.startswith(
        _DIALS_FROM_OTHER_PORTS
    ):
        return Reason.PEER_CANNOT_PUNCH
    return reason


def _by_addresses(trail: Trail, accepted: Sequence[Multiaddr]) -> Reason:
    own = trail.own_candidates
    if not accepted:
        return Reason.NO_PEER_ADDRESS
    if not own:
        return Reason.NO_OWN_ADDRESS
    if not _kinds(accepted) & _kinds(own):
        common = {one.transport for one in accepted} & {one.transport for one in own}
        return Reason.NO_COMMON_IP_VERSION if common else Reason.NO_COMMON_TRANSPORT
    ours = trail.own_mapping is MappingBehaviour.ADDRESS_DEPENDENT
    theirs = NatKind.ADDRESS_DEPENDENT in (trail.peer_nat, apparent_kind(accepted))
    if ours and theirs:
        return Reason.BOTH_NATS_SYMMETRIC
    if ours:
        return Reason.OWN_NAT_SYMMETRIC
    return Reason.PEER_NAT_SYMMETRIC if theirs else Reason.PUNCH_FAILED


def _kinds(addresses: Sequence[Multiaddr]) -> set[tuple[str | None, int]]:
    return {(one.transport, one.ip.version) for one in addresses if one.ip is not None}

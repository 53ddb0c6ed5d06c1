"""The error of a dial that failed: each address, its cause, the time waited, what to check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from dep2p_daemon.errors import (
    AuthenticationError,
    Dep2pError,
    DialTimeoutError,
    LocalError,
    RelayRefusedError,
    UnreachableError,
)
from dep2p_daemon.swarm.connections import DialPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr

MAX_ADDRESSES_SHOWN: Final = 8
"""Addresses spelled out in the message; the metadata has all."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one address."""

    address: Multiaddr
    cause: Dep2pError
    waited: float | None = None
    """Seconds of the attempt; None when it was not tried at all."""

    @override
    def __str__(self) -> str:
        took = "" if self.waited is None else f" ({self.waited:.1f} s)"
        # A transport's own message names the address, too: once is enough.
        why = self.cause.message.removeprefix(f"cannot connect to {self.address}: ")
        return f"{self.address}: {why}{took}"


def dial_error(peer: PeerId, outcomes: Sequence[Outcome], waited: float) -> Dep2pError:
    """Build the error of a dial all of whose addresses failed; its class is the telling cause's.

    A relay's refusal tells more than direct addresses that do not answer: peers behind NATs never
    do. An identity that does not match, or a deadline, only stands for the whole when it is all
    there is.
    """
    causes = [outcome.cause for outcome in outcomes]
    metadata = _metadata(peer, outcomes, waited)
    refusal = next((cause for cause in causes if isinstance(cause, RelayRefusedError)), None)
    if refusal is not None:
        others = [outcome for outcome in outcomes if outcome.cause is not refusal]
        also = f"; also tried {_listed(others)}" if others else ""
        return RelayRefusedError(
            f"{refusal.message}{also}",
            reason=refusal.reason,
            remedy=refusal.remedy,
            status=refusal.status,
            **{**{k: v for k, v in refusal.metadata.items() if k != "status"}, **metadata},
        )
    if all(isinstance(cause, LocalError) for cause in causes):
        return causes[0]
    if all(outcome.waited is None for outcome in outcomes):
        return UnreachableError(
            f"cannot reach {peer}, whose addresses failed just now: {_listed(outcomes)}",
            reason="DIAL_BACKOFF",
            remedy="wait, or name an address to try it at once",
            **metadata,
        )
    message = (
        f"cannot reach {peer}: tried {_count(outcomes)} in {waited:.1f} s: {_listed(outcomes)}"
    )
    only = causes[0] if len(causes) == 1 else None
    kind = next(
        kind
        for kind in (AuthenticationError, DialTimeoutError, UnreachableError)
        if kind is UnreachableError or all(isinstance(cause, kind) for cause in causes)
    )
    if kind is AuthenticationError:
        check = "check the peer id at the end of the address: another node answers there"
    else:
        check = _what_to_check(outcomes)
    return kind(
        message,
        reason=only.reason if isinstance(only, kind) else None,
        remedy=(only.remedy if only is not None else "") or check,
        **metadata,
    )


def no_addresses(peer: PeerId, policy: DialPolicy, excluded: Sequence[Multiaddr]) -> Dep2pError:
    """Build the error of a dial that had nothing to try."""
    if excluded:
        kind = "circuit" if policy is DialPolicy.DIRECT else "direct"
        return UnreachableError(
            f"only {kind} addresses of {peer} are known, and the policy is {policy.value}",
            reason="NO_ADDRESSES",
            remedy="use the policy AUTO",
            peer=peer,
            addresses=" ".join(map(str, excluded)),
        )
    return UnreachableError(
        f"no address of {peer} is known",
        reason="NO_ADDRESSES",
        remedy="give its full address, such as /ip4/203.0.113.10/udp/4001/quic-v1/p2p/"
        f"{peer}, or connect to a relay that it uses",
        peer=peer,
    )


def dial_timeout(peer: PeerId, outcomes: Sequence[Outcome], waited: float) -> DialTimeoutError:
    """Build the error of a dial that its caller's deadline ended."""
    tried = f", tried {_listed(outcomes)}" if outcomes else ""
    return DialTimeoutError(
        f"cannot reach {peer} within the {waited:.1f} s that were given{tried}",
        remedy=_what_to_check(outcomes),
        **_metadata(peer, outcomes, waited),
    )


def _metadata(peer: PeerId, outcomes: Sequence[Outcome], waited: float) -> dict[str, str]:
    return {
        "peer": str(peer),
        "waited_seconds": f"{waited:.1f}",
        "addresses": "\n".join(map(str, outcomes)),
        "reasons": " ".join(dict.fromkeys(outcome.cause.reason for outcome in outcomes)),
    }


def _count(outcomes: Sequence[Outcome]) -> str:
    return "1 address" if len(outcomes) == 1 else f"{len(outcomes)} addresses"


def _listed(outcomes: Sequence[Outcome]) -> str:
    shown = "; ".join(map(str, outcomes[:MAX_ADDRESSES_SHOWN]))
    left = len(outcomes) - MAX_ADDRESSES_SHOWN
    return f"{shown}; and {left} more" if left > 0 else shown


def _what_to_check(outcomes: Sequence[Outcome]) -> str:
    ports = dict.fromkeys(
        f"{'UDP' if 'udp' in outcome.address.protocols else 'TCP'} port {outcome.address.port}"
        for outcome in outcomes
        if outcome.address.port is not None
    )
    allowed = " and ".join(list(ports)[:4]) or "its port"
    return (
        "check that the node runs, that the address and port are right, and that its "
        f"firewall or cloud security group lets {allowed} in"
    )

"""A relay's refusals in words for people: what happened, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dep2p_daemon.circuit.messages import Status, status_name
from dep2p_daemon.errors import RelayRefusedError

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId

_BUG: Final = (
    "one of the two sides breaks the protocol: report it with both sides' versions and debug logs"
)

_CONNECT: Final[dict[int, tuple[str, str]]] = {
    Status.NO_RESERVATION: (
        "target peer not connected to relay: {target} holds no reservation at the relay {relay}",
        "check that the listening node runs `dep2pctl relay connect <relay>` with this relay's "
        "address and that its `dep2pctl relay list` shows reserved",
    ),
    Status.PERMISSION_DENIED: (
        "the relay {relay} does not allow us a circuit to {target}",
        "ask the relay's operator to allow both peer ids; a relay also refuses when it is reached "
        "through another relay and while it shuts down",
    ),
    Status.RESOURCE_LIMIT_EXCEEDED: (
        "the relay {relay} has no place for another circuit to {target}",
        "close circuits that are not needed, or have its operator raise max_circuits, "
        "max_circuits_per_source or max_circuits_per_target; the relay's log names the limit",
    ),
    Status.CONNECTION_FAILED: (
        "the relay {relay} could not connect us: {target} did not take the circuit",
        "the target's connection to the relay may just have broken, or the target refused: "
        "try again, then look at the listening node's `dep2pctl relay list` and its log",
    ),
    Status.MALFORMED_MESSAGE: (
        "the relay {relay} could not read our request for a circuit to {target}",
        _BUG,
    ),
    Status.UNEXPECTED_MESSAGE: (
        "the relay {relay} did not expect our request for a circuit to {target}",
        _BUG,
    ),
}

_RESERVE: Final[dict[int, tuple[str, str]]] = {
    Status.RESERVATION_REFUSED: (
        "the relay {relay} has no reservation left for us",
        "use another relay, or have its operator raise max_reservations or "
        "max_reservations_per_ip; the relay's log names the limit",
    ),
    Status.PERMISSION_DENIED: (
        "the relay {relay} does not allow us a reservation",
        "ask the relay's operator to allow this node's peer id; a relay also refuses when it is "
        "reached through another relay and while it shuts down",
    ),
    Status.RESOURCE_LIMIT_EXCEEDED: (
        "the relay {relay} is at one of its limits",
        "try again later or use another relay; the relay's log names the limit",
    ),
    Status.MALFORMED_MESSAGE: ("the relay {relay} could not read our reservation request", _BUG),
    Status.UNEXPECTED_MESSAGE: ("the relay {relay} did not expect a reservation request", _BUG),
}


def connect_refused(status: int, *, relay: PeerId, target: PeerId) -> RelayRefusedError:
    """Return the error for a status other than OK to CONNECT."""
    message, remedy = _CONNECT.get(status) or (
        f"the relay {{relay}} refused a circuit to {{target}} with status {status}",
        "look at the relay's log",
    )
    return RelayRefusedError(
        message.format(relay=relay, target=target),
        status=status,
        reason=status_name(status),
        remedy=remedy,
        relay=relay,
        peer=target,
    )


def reserve_refused(status: int, *, relay: PeerId) -> RelayRefusedError:
    """Return the error for a status other than OK to RESERVE."""
    message, remedy = _RESERVE.get(status) or (
        f"the relay {{relay}} refused a reservation with status {status}",
        "look at the relay's log",
    )
    return RelayRefusedError(
        message.format(relay=relay),
        status=status,
        reason=status_name(status),
        remedy=remedy,
        relay=relay,
    )

"""The two roles of DCUtR, as state machines without sockets, clocks or dials.

https://github.com/libp2p/specs/blob/master/relay/DCUtR.md#the-protocol

A dialled B through a relay. B, the *initiator*, opens a stream over the relayed connection, sends
CONNECT, gets CONNECT, sends SYNC and waits half of the round trip it measured; A, the *receiver*,
acts on SYNC. So both act at about the same time. A is the QUIC client (or TCP's), B the server:
it sends random packets that open its NAT. When A has not come after a few round trips, B dials
too: A's packets have opened A's NAT, and only B's own get through a NAT of B's that maps each
destination elsewhere. In the last of three rounds B is a client from the start, as go-libp2p has
it, which helps with peers that have the roles the wrong way round.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from dep2p_daemon.errors import ProtocolViolationError
from dep2p_daemon.nat.dcutr_message import DcutrMessage, MessageType
from dep2p_daemon.nat.nat_kind import NatKind
from dep2p_daemon.nat.observed import MappingBehaviour

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dep2p_daemon.multiaddr import Multiaddr

MAX_ROUNDS: Final = 3
"""The spec: the first attempt and two more."""

MAX_RTT: Final = 10.0
"""Seconds; a slower answer is no basis for acting at the same time."""


class PunchRole(enum.Enum):
    """What a side does when it acts."""

    CLIENT = "CLIENT"
    """Dials."""
    SERVER = "SERVER"
    """Opens its NAT and waits to be dialled."""
    BOTH = "BOTH"
    """The same, and dials when nobody has come for a moment."""


def initiator_role(round_number: int, own_mapping: MappingBehaviour) -> PunchRole:
    """Return the initiator's role in a round, counted from 1.

    Behind a NAT whose port nobody can know beforehand only our own dials get through: then the
    first round is used for them too.
    """
    swapped = round_number == MAX_ROUNDS or (
        round_number == 1 and own_mapping is MappingBehaviour.ADDRESS_DEPENDENT
    )
    return PunchRole.CLIENT if swapped else PunchRole.SERVER


class State(enum.Enum):
    """Where one exchange is."""

    IDLE = "IDLE"
    AWAITING_CONNECT = "AWAITING_CONNECT"
    AWAITING_SYNC = "AWAITING_SYNC"
    ACTING = "ACTING"
    """The messages are through; the punch is under way."""
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class Send:
    """Write this message."""

    message: DcutrMessage


@dataclass(frozen=True, slots=True)
class ActAt:
    """Punch or dial the peer's addresses, at this time."""

    time: float
    addresses: tuple[Multiaddr, ...]
    """The peer's, unchecked."""
    rtt: float | None
    """Seconds; None for the receiver, who measures none."""
    nat: NatKind = NatKind.UNKNOWN
    """The peer's, where it tells."""


Action: TypeAlias = Send | ActAt


class Initiator:
    """B's part of one exchange. `start`, then `receive` what comes."""

    def __init__(
        self, own_addresses: Sequence[Multiaddr], own_nat: NatKind = NatKind.UNKNOWN
    ) -> None:
        self._connect = DcutrMessage(MessageType.CONNECT, tuple(own_addresses), own_nat)
        self._sent_at = 0.0
        self.state = State.IDLE

    def start(self, now: float) -> list[Action]:
        """Send CONNECT; the round trip counts from here."""
        _expect(self.state, State.IDLE)
        self.state = State.AWAITING_CONNECT
        self._sent_at = now
        return [Send(self._connect)]

    def receive(self, message: DcutrMessage, now: float) -> list[Action]:
        """Take the peer's message; answer CONNECT with SYNC, and act half a round trip later.

        Raises:
            ProtocolViolationError: it is not the one that is due, or came too late.
        """
        try:
            _require(self.state, State.AWAITING_CONNECT, message, MessageType.CONNECT)
            rtt = now - self._sent_at
            if rtt > MAX_RTT:
                raise ProtocolViolationError(
                    f"the peer took {rtt:.1f} s to answer CONNECT", reason="DCUTR_TOO_SLOW"
                )
        except ProtocolViolationError:
            self.state = State.BROKEN
            raise
        self.state = State.ACTING
        return [
            Send(DcutrMessage(MessageType.SYNC)),
            ActAt(now + rtt / 2, message.addresses, rtt, message.nat),
        ]


class Receiver:
    """A's part of one exchange: answers CONNECT with CONNECT, acts on SYNC at once."""

    def __init__(
        self, own_addresses: Sequence[Multiaddr], own_nat: NatKind = NatKind.UNKNOWN
    ) -> None:
        self._connect = DcutrMessage(MessageType.CONNECT, tuple(own_addresses), own_nat)
        self._peer = DcutrMessage(MessageType.CONNECT)
        self.state = State.AWAITING_CONNECT

    def receive(self, message: DcutrMessage, now: float) -> list[Action]:
        """Take the peer's message.

        Raises:
            ProtocolViolationError: it is not the one that is due.
        """
        kind = {
            State.AWAITING_CONNECT: MessageType.CONNECT,
            State.AWAITING_SYNC: MessageType.SYNC,
        }.get(self.state)
        try:
            _require(self.state, self.state, message, kind)
        except ProtocolViolationError:
            self.state = State.BROKEN
            raise
        if kind is MessageType.CONNECT:
            self.state = State.AWAITING_SYNC
            self._peer = message
            return [Send(self._connect)]
        self.state = State.ACTING
        return [ActAt(now, self._peer.addresses, None, self._peer.nat)]


def _expect(state: State, wanted: State) -> None:
    if state is not wanted:
        raise ProtocolViolationError(f"a DCUtR exchange is {state.value}", reason="DCUTR_ORDER")


def _require(state: State, wanted: State, message: DcutrMessage, kind: MessageType | None) -> None:
    _expect(state, wanted)
    if message.type is not kind:
        due = kind.name if kind is not None else "nothing"
        raise ProtocolViolationError(
            f"the peer sent {message.type.name} where {due} was due", reason="DCUTR_ORDER"
        )

"""The record of how a direct path was sought: what was tried, what came of it, and why.

A `Trail` is one attempt with one peer, from the relayed connection to a direct one or to the
reason why there is none. It is frozen; each step publishes a longer one as `TrailChanged`. A
`TrailBook` keeps the last few of each peer.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dep2p_daemon.nat.nat_kind import NatKind
from dep2p_daemon.nat.observed import MappingBehaviour

if TYPE_CHECKING:
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.nat.candidates import Candidate
    from dep2p_daemon.nat.dcutr import PunchRole

MAX_CANDIDATES: Final = 32
"""Of each side, in one trail."""
MAX_STEPS: Final = 16
"""Dials and rounds in one trail."""
MAX_TRAILS_PER_PEER: Final = 4
MAX_PEERS: Final = 256
"""Peers whose trails are kept; the one whose last trail is oldest goes first."""


class Side(enum.Enum):
    """Which part of DCUtR is ours."""

    INITIATOR = "INITIATOR"
    """The relayed connection came to us: we open the streams."""
    RECEIVER = "RECEIVER"
    """We dialled the relayed connection."""


class StepKind(enum.Enum):
    """What was tried."""

    DIRECT_DIAL = "DIRECT_DIAL"
    """A plain dial of addresses that the peer advertises ("connection reversal")."""
    PUNCH = "PUNCH"


class Outcome(enum.Enum):
    """How a step or a whole attempt ended."""

    DIRECT = "DIRECT"
    """A direct connection was made."""
    FAILED = "FAILED"
    ABANDONED = "ABANDONED"
    """The relayed connection ended, or this node did; of a step: another way was faster."""


class Reason(enum.Enum):
    """Why an attempt ended as it did. The names are a contract: `why` shows them."""

    DIRECT = "DIRECT"
    NO_OWN_ADDRESS = "NO_OWN_ADDRESS"
    NO_PEER_ADDRESS = "NO_PEER_ADDRESS"
    NO_COMMON_TRANSPORT = "NO_COMMON_TRANSPORT"
    NO_COMMON_IP_VERSION = "NO_COMMON_IP_VERSION"
    PEER_UNSUPPORTED = "PEER_UNSUPPORTED"
    PEER_CANNOT_PUNCH = "PEER_CANNOT_PUNCH"
    NOT_IDENTIFIED = "NOT_IDENTIFIED"
    PROTOCOL_ERROR = "PROTOCOL_ERROR"
    PUNCH_FAILED = "PUNCH_FAILED"
    OWN_NAT_SYMMETRIC = "OWN_NAT_SYMMETRIC"
    PEER_NAT_SYMMETRIC = "PEER_NAT_SYMMETRIC"
    BOTH_NATS_SYMMETRIC = "BOTH_NATS_SYMMETRIC"
    RELAYED_CONNECTION_CLOSED = "RELAYED_CONNECTION_CLOSED"
    DIRECT_LOST = "DIRECT_LOST"
    STOPPING = "STOPPING"
    UNDER_WAY = "UNDER_WAY"
    NO_ATTEMPT = "NO_ATTEMPT"
    HOLE_PUNCHING_OFF = "HOLE_PUNCHING_OFF"


_TEXTS: Final[dict[Reason, tuple[str, str]]] = {
    Reason.DIRECT: ("there is a direct connection", ""),
    Reason.NO_OWN_ADDRESS: (
        "this node knows no public address of its own to be reached at",
        "connect to a relay or peer outside of this network, or set node.announce",
    ),
    Reason.NO_PEER_ADDRESS: (
        "the peer named no public address to reach it at",
        "the peer needs a connection to somebody outside of its network",
    ),
    Reason.NO_COMMON_TRANSPORT: (
        "the two sides know addresses of different transports only (UDP here, TCP there)",
        "one of the networks may block UDP: allow outgoing UDP there",
    ),
    Reason.NO_COMMON_IP_VERSION: (
        "one side knows IPv4 addresses of its own only, the other IPv6 ones",
        "one of the networks needs the other kind of IP too, or stay relayed",
    ),
    Reason.PEER_UNSUPPORTED: (
        "the peer does not speak DCUtR, the protocol of hole punching",
        "turn hole punching on there, or give it a public address",
    ),
    Reason.PEER_CANNOT_PUNCH: (
        "the peer speaks DCUtR, but its program (js-libp2p) dials from other ports than the one "
        "it listens on: its NAT stays closed to us, and ours to it",
        "forward a port on one of the two routers (js-libp2p has to announce it), or stay relayed",
    ),
    Reason.NOT_IDENTIFIED: (
        "the peer did not say what it is (identify)",
        "look at the peer's log",
    ),
    Reason.PROTOCOL_ERROR: (
        "the exchange with the peer broke off",
        "look at both nodes' logs; the relay may have cut the circuit",
    ),
    Reason.PUNCH_FAILED: (
        "packets of neither side came through to the other",
        "one of the NATs may be symmetric, or a firewall drops UDP: forward a port on one side, "
        "or stay relayed",
    ),
    Reason.OWN_NAT_SYMMETRIC: (
        "our NAT gives every destination another port (symmetric), and the peer's lets in only "
        "the port that it expects",
        "forward a port on one of the two routers, or stay relayed",
    ),
    Reason.PEER_NAT_SYMMETRIC: (
        "the peer's NAT gives every destination another port (symmetric), and ours lets in only "
        "the port that it expects",
        "forward a port on one of the two routers, or stay relayed",
    ),
    Reason.BOTH_NATS_SYMMETRIC: (
        "both NATs give every destination another port (symmetric): neither side can tell the "
        "other where its packets will come from",
        "forward a port on one of the two routers, or stay relayed",
    ),
    Reason.RELAYED_CONNECTION_CLOSED: (
        "the relayed connection ended before a direct one was made",
        "dial the peer again",
    ),
    Reason.DIRECT_LOST: (
        "the direct connection that there was has ended, and no attempt has followed yet",
        "wait a moment; if it stays so, look at the peer's own `dep2pctl why`",
    ),
    Reason.STOPPING: ("this node is stopping", ""),
    Reason.UNDER_WAY: ("the attempt to get through directly is still under way", "wait longer"),
    Reason.NO_ATTEMPT: (
        "the peer has not begun to punch, which is its part: it was dialled through the relay",
        "look whether hole punching is turned on there, and at that node's log",
    ),
    Reason.HOLE_PUNCHING_OFF: (
        "hole punching is turned off on this node",
        "set nat.hole_punching = true in its configuration",
    ),
}


def reason_while_relayed(trail: Trail) -> Reason:
    """Return why the path is relayed now, after the last attempt."""
    if trail.reason is None:
        return Reason.UNDER_WAY
    return Reason.DIRECT_LOST if trail.reason is Reason.DIRECT else trail.reason


def explain(reason: Reason) -> tuple[str, str]:
    """Return what a reason means and what to do about it, both for people."""
    return _TEXTS[reason]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One dial or one round of punching."""

    kind: StepKind
    number: int
    """Counts the rounds from 1; 0 for a dial."""
    role: PunchRole | None
    """Ours in this round; None for a dial."""
    addresses: tuple[Multiaddr, ...]
    """Where our packets went."""
    started_at: float
    """Unix time in seconds."""
    rtt: float | None = None
    """Seconds from CONNECT to CONNECT, through the relay."""
    duration: float | None = None
    """Seconds; None while it runs."""
    probes: int = 0
    """Random packets that we sent."""
    outcome: Outcome | None = None
    """None while it runs."""
    detail: str = ""
    """What the last error said; empty when nobody answered at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trail:
    """One attempt to get from relayed to direct."""

    peer: PeerId
    side: Side
    relay: PeerId | None
    started_at: float
    """Unix time in seconds."""
    own_candidates: tuple[Multiaddr, ...] = ()
    """What we told the peer."""
    own_mapping: MappingBehaviour = MappingBehaviour.UNKNOWN
    own_nat: NatKind = NatKind.UNKNOWN
    peer_nat: NatKind = NatKind.UNKNOWN
    """What the peer says of itself, else what its addresses show."""
    peer_candidates: tuple[Candidate, ...] = ()
    """What the peer told us, and why we did not use some of it."""
    peer_rejected: int = 0
    """All that we did not use, those beyond `MAX_CANDIDATES` too."""
    steps: tuple[Step, ...] = ()
    ended_at: float | None = None
    """Unix time in seconds; None while it runs."""
    outcome: Outcome | None = None
    reason: Reason | None = None
    detail: str = ""
    connection_id: str = ""
    """The direct connection's."""
    rtt: float | None = None
    """The direct connection's round trip in seconds, where it is known."""

    @property
    def running(self) -> bool:
        """True until the attempt has ended."""
        return self.outcome is None


@dataclass(frozen=True, slots=True)
class TrailChanged:
    """An attempt began, went a step further, or ended. Published on the event bus."""

    trail: Trail


@dataclass(frozen=True, slots=True)
class TrailEnded:
    """An attempt ended; published once, after its last `TrailChanged`."""

    trail: Trail
    transport: str
    """Of the direct connection: "quic-v1" or "tcp"; empty when there is none."""


class TrailBook:
    """The last trails of each peer, bounded."""

    def __init__(
        self, *, max_peers: int = MAX_PEERS, max_per_peer: int = MAX_TRAILS_PER_PEER
    ) -> None:
        self._max_peers = max_peers
        self._max_per_peer = max_per_peer
        self._trails: dict[PeerId, deque[Trail]] = {}

    def of(self, peer: PeerId) -> tuple[Trail, ...]:
        """The trails with `peer`, the latest last."""
        return tuple(self._trails.get(peer, ()))

    def latest(self, peer: PeerId) -> Trail | None:
        """The trail that runs, or ended last."""
        trails = self._trails.get(peer)
        return trails[-1] if trails else None

    def begin(self, trail: Trail) -> None:
        """Keep a new trail."""
        trails = self._trails.pop(trail.peer, None) or deque(maxlen=self._max_per_peer)
        self._trails[trail.peer] = trails  # the peer with the latest trail is the last
        trails.append(trail)
        if len(self._trails) > self._max_peers:
            del self._trails[next(iter(self._trails))]

    def replace(self, old: Trail, new: Trail) -> None:
        """Keep `new` for `old`, where `old` is still kept."""
        trails = self._trails.get(old.peer, ())
        for index, trail in enumerate(trails):
            if trail is old:
                self._trails[old.peer][index] = new
                return


def with_step(trail: Trail, step: Step) -> Trail:
    """Add a step, or put it in place of the same one as it was before."""
    steps = list(trail.steps)
    for index, one in enumerate(steps):
        if (one.kind, one.number) == (step.kind, step.number):
            steps[index] = step
            break
    else:
        steps.append(step)
    return dataclasses.replace(trail, steps=tuple(steps[-MAX_STEPS:]))

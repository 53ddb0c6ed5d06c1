"""Hole punching with DCUtR, in both roles.

https://github.com/libp2p/specs/blob/master/relay/DCUtR.md

A relayed connection that came to us: wait for identify; dial the public addresses that the peer
advertises; if that takes longer than a moment, begin up to three rounds of punching beside it.
A relayed connection that we dialled: answer the rounds that the peer begins. The first direct
connection ends all of it, whichever way it came. `trail.py` records each step.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from dep2p_daemon.errors import Dep2pError, StreamResetError
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.nat.attempt import Attempt, Prober, SimultaneousDialer
from dep2p_daemon.nat.candidates import CandidateFilter, CandidateLimits, is_public
from dep2p_daemon.nat.dcutr import MAX_ROUNDS, PunchRole, initiator_role
from dep2p_daemon.nat.dcutr_message import PROTOCOL
from dep2p_daemon.nat.exchange import answer, initiate
from dep2p_daemon.nat.network_news import changed_within
from dep2p_daemon.nat.punch_settings import PunchSettings, RoundLimiter
from dep2p_daemon.nat.reversal import dial_advertised
from dep2p_daemon.nat.trail import (
    Outcome,
    Reason,
    Side,
    Step,
    StepKind,
    Trail,
    TrailBook,
)
from dep2p_daemon.nat.verdict import verdict
from dep2p_daemon.swarm.dialing import DialPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Stream
    from dep2p_daemon.nat.address_watch import AddressWatch
    from dep2p_daemon.nat.dcutr_message import DcutrMessage
    from dep2p_daemon.protocols.identify import Identify
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

ROUND_TRIPS_PER_ROUND: Final = 5
ROUND_TRIPS_BEFORE_DIAL: Final = 2.5
"""For the peer's dial: its first packet and ours cross, its handshake is over after two."""
ROUND_TRIPS_OF_HEAD_START: Final = 4
PAUSE_AFTER_LOSS: Final = 0.1
"""Seconds after a direct connection's end; the swarm takes it off its table meanwhile."""
ASSUMED_RTT: Final = 0.1
"""Seconds, where the relayed connection has not measured any."""


class HolePuncher:
    """Turns relayed connections into direct ones. An async context manager; a SwarmObserver."""

    def __init__(
        self,
        swarm: Swarm,
        identify: Identify,
        addresses: AddressWatch,
        settings: PunchSettings | None = None,
        *,
        prober: Prober | None,
        tcp: SimultaneousDialer | None,
        is_public: Callable[[Multiaddr], bool] = is_public,
    ) -> None:
        """Prepare.

        Args:
            swarm: whose relayed connections are upgraded.
            identify: tells what a peer is before it is punched.
            addresses: what we offer.
            settings: None: the defaults.
            prober: sends random packets from the UDP listening socket; None: QUIC cannot.
            tcp: dials from the TCP listening socket; None: TCP dials are ordinary ones.
            is_public: a parameter because tests run on one machine.
        """
        self._swarm = swarm
        self._identify = identify
        self._addresses = addresses
        self._settings = settings or PunchSettings()
        self._prober = prober
        self._tcp = tcp
        self._is_public = is_public
        self._attempts: dict[PeerId, Attempt] = {}
        self._limiter = RoundLimiter(self._settings)
        self._tasks = asyncio.TaskGroup()
        self._open = False
        self.trails = TrailBook()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._open = True
        self._swarm.set_handler(PROTOCOL, self._serve)
        self._swarm.observe(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._open = False
        self._swarm.remove_handler(PROTOCOL)
        for attempt in tuple(self._attempts.values()):
            attempt.end(Outcome.ABANDONED, Reason.STOPPING)
        await self._tasks.__aexit__(None, None, None)

    # The swarm tells

    async def connection_opened(self, connection: Connection) -> None:
        """Upgrade a relayed connection; end the attempt that led to a direct one."""
        if not self._open:
            return
        peer = connection.remote_peer
        if not connection.relayed:
            if (attempt := self._attempts.get(peer)) is not None:
                attempt.found(connection)
            return
        self._addresses.learn_mapping()
        if connection.direction is Direction.INBOUND:
            await self._upgrade(connection)
        else:
            # The peer is about to ask for our addresses: see that they are right.
            await self._addresses.refresh(apart_from=peer)

    def connection_closed(self, connection: Connection) -> None:
        """An attempt notices by itself when its relayed connection ends."""

    def node_changed(self) -> None:
        """The next attempt takes what is then."""

    # Both sides

    def _direct(self, peer: PeerId) -> Connection | None:
        return self._swarm.best_connection(peer, DialPolicy.DIRECT)

    def _begin(self, connection: Connection, side: Side) -> Attempt:
        own, settings = self._addresses.candidates(), self._settings
        peer = connection.remote_peer
        relays = {other.remote_address for other in self._swarm.connections(connection.relay)} | {
            address.split_circuit()[0].without_peer_id() for address in _circuits(self._swarm)
        }
        attempt = Attempt(
            self._swarm,
            self._tasks,
            self.trails,
            settings,
            CandidateFilter(
                peer,
                CandidateLimits(
                    max_addresses=settings.max_addresses,
                    max_ips_per_family=settings.max_ips_per_family,
                ),
                is_public=self._is_public,
                own=frozenset((*own, *self._swarm.own_addresses)),
                relays=frozenset(relays),
            ),
            Trail(
                peer=peer,
                side=side,
                relay=connection.relay,
                started_at=time.time(),
                own_candidates=own,
                own_mapping=self._addresses.mapping("quic-v1"),
                own_nat=self._addresses.nat_kind(),
            ),
            prober=self._prober,
            tcp=self._tcp,
        )
        self._attempts[peer] = attempt
        return attempt

    def _end(self, attempt: Attempt, outcome: Outcome, reason: Reason, detail: str = "") -> None:
        if self._attempts.get(attempt.peer) is attempt:
            del self._attempts[attempt.peer]
        attempt.end(outcome, reason, detail)

    def _offer(self, attempt: Attempt) -> tuple[Multiaddr, ...]:
        own = self._addresses.candidates()
        attempt.record_offer(own, self._addresses.mapping("quic-v1"), self._addresses.nat_kind())
        return own

    def _limit_reached(self, peer: PeerId, *, rounds: int) -> str | None:
        """Count rounds that a peer causes, whoever begins them; why they must not be."""
        if peer not in self._attempts and len(self._attempts) >= self._settings.max_attempts:
            return "TOO_MANY_ATTEMPTS"
        now = asyncio.get_running_loop().time()
        return None if self._limiter.allows(peer, now, rounds=rounds) else "RATE_LIMITED"

    # The initiator: the relayed connection came to us

    async def _upgrade(self, connection: Connection) -> None:
        """Try whenever there is no direct connection; cancelled with the relayed one."""
        peer, delays = connection.remote_peer, self._settings.retry_delays
        failures = 0
        while self._open:
            if (direct := self._direct(peer)) is not None:
                # It may be dead already without our knowing: the peer came through the relay.
                await direct.wait_closed()
                await asyncio.sleep(PAUSE_AFTER_LOSS)
                continue
            running = self._attempts.get(peer)
            if running is not None:
                # One attempt per peer: another relayed connection's, or the peer's own.
                await running.ended.wait()
                continue
            if (refusal := self._limit_reached(peer, rounds=MAX_ROUNDS)) is None:
                await self._attempt(connection)
            else:
                _log.debug("direct upgrade put off", peer=str(peer), reason=refusal)
            if self._direct(peer) is None and delays:
                if await changed_within(self._swarm, peer, delays[min(failures, len(delays) - 1)]):
                    failures = 0
                    # Until both sides have learnt how they look from outside now.
                    await asyncio.sleep(self._settings.change_settle)
                else:
                    failures += 1
            elif not delays:
                return

    async def _attempt(self, connection: Connection) -> None:
        attempt = self._begin(connection, Side.INITIATOR)
        outcome, reason, detail = Outcome.ABANDONED, Reason.RELAYED_CONNECTION_CLOSED, ""
        try:
            reason = await self._seek(attempt, connection)
            outcome = Outcome.FAILED
        except Dep2pError as error:
            outcome, reason, detail = Outcome.FAILED, Reason.PROTOCOL_ERROR, error.message
        finally:
            self._end(attempt, outcome, reason, detail)

    async def _seek(self, attempt: Attempt, connection: Connection) -> Reason:
        """Dial, then punch. Returns why there is no direct connection, or DIRECT."""
        peer = attempt.peer
        identified, _ = await asyncio.gather(
            self._identify.wait_identified(connection),
            self._addresses.refresh(apart_from=peer),
        )
        if not identified:
            return Reason.NOT_IDENTIFIED
        dial = dial_advertised(self._swarm, attempt, timeout=self._settings.dial_timeout)
        if dial is None:
            reason = await self._punch(attempt, connection)
        else:
            either: set[asyncio.Future[Any]] = {dial, attempt.direct}
            await asyncio.wait(
                either,
                timeout=self._head_start(connection),
                return_when=asyncio.FIRST_COMPLETED,
            )
            reason = await self._punch(attempt, connection)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return Reason.DIRECT if attempt.direct.done() else reason

    def _head_start(self, connection: Connection) -> float:
        rtt = connection.rtt or ASSUMED_RTT
        return max(self._settings.dial_head_start, ROUND_TRIPS_OF_HEAD_START * rtt)

    async def _punch(self, attempt: Attempt, connection: Connection) -> Reason:
        """Run up to three rounds, each with fresh CONNECT and SYNC."""
        reason = Reason.PUNCH_FAILED
        supported = PROTOCOL in self._swarm.peerstore.protocols(attempt.peer)
        await self._match_transports(attempt.peer)
        for number in range(1, MAX_ROUNDS + 1):
            if attempt.direct.done() or attempt.ended.is_set():
                break
            if not supported:
                return Reason.PEER_UNSUPPORTED
            if not self._offer(attempt):
                return Reason.NO_OWN_ADDRESS
            try:
                act = await initiate(
                    self._swarm,
                    connection,
                    attempt.trail.own_candidates,
                    attempt.trail.own_nat,
                    timeout=self._settings.exchange_timeout,
                )
            except StreamResetError:
                if number == 1:
                    raise
                # js-libp2p takes no round while it still dials for the last one.
                await asyncio.wait({attempt.direct}, timeout=self._settings.act_timeout)
                break
            accepted = attempt.judge(act.addresses, act.nat)
            reason = self._verdict(attempt, accepted)
            usable = self._usable(accepted)
            if not usable:
                await self._let_peer_dial(attempt)
                return reason
            attempt.rounds = number
            rtt = act.rtt or ASSUMED_RTT
            role = initiator_role(number, attempt.trail.own_mapping)
            self._see_to_tcp(reason, accepted)
            # Nothing to punch with: what one round does not reach, none does.
            last = number == MAX_ROUNDS or reason is Reason.NO_COMMON_IP_VERSION
            window = self._settings.act_timeout
            if not last:
                window = min(
                    max(self._settings.round_time, ROUND_TRIPS_PER_ROUND * rtt),
                    self._settings.act_timeout,
                )
            await asyncio.sleep(max(0.0, act.time - asyncio.get_running_loop().time()))
            await attempt.act(
                _round(attempt, role, usable, act.rtt),
                window=window,
                dial_after=max(self._settings.late_dial, ROUND_TRIPS_BEFORE_DIAL * rtt),
            )
            if last:
                break
        return reason

    # The receiver: we dialled the relayed connection

    async def _serve(self, stream: Stream) -> None:
        connection = stream.connection
        peer = connection.remote_peer
        refusal = self._refusal(connection)
        if refusal is not None:
            _log.info("DCUtR stream refused", peer=str(peer), reason=refusal)
            stream.reset(CloseCode.GATED)
            return
        attempt = self._attempts.get(peer) or self._begin(connection, Side.RECEIVER)
        attempt.users += 1
        reason, detail, outcome = Reason.RELAYED_CONNECTION_CLOSED, "", Outcome.ABANDONED
        try:
            reason = await self._answer(attempt, stream)
            outcome = Outcome.FAILED
        except Dep2pError as error:
            stream.reset(CloseCode.PROTOCOL_VIOLATION)
            reason, detail, outcome = Reason.PROTOCOL_ERROR, error.message, Outcome.FAILED
        finally:
            attempt.users -= 1
            if not attempt.users and attempt.trail.side is Side.RECEIVER:
                self._end(attempt, outcome, reason, detail)

    def _refusal(self, connection: Connection) -> str | None:
        """Why a peer may not make us punch now; None when it may."""
        if not self._open:
            return "STOPPING"
        if not connection.relayed:
            return "NOT_RELAYED"
        if connection.direction is not Direction.OUTBOUND:
            # Only who was dialled through the relay begins (the spec, and go-libp2p).
            return "NOT_DIALLED_BY_US"
        return self._limit_reached(connection.remote_peer, rounds=1)

    async def _answer(self, attempt: Attempt, stream: Stream) -> Reason:
        await self._identify.wait_identified(stream.connection)
        await self._match_transports(attempt.peer)
        own = self._offer(attempt)
        accepted: tuple[Multiaddr, ...] = ()

        def prepare(connect: DcutrMessage) -> None:
            nonlocal accepted
            accepted = attempt.judge(connect.addresses, connect.nat)
            attempt.expect(self._usable(accepted))

        await answer(
            stream,
            own,
            attempt.trail.own_nat,
            prepare=prepare,
            timeout=self._settings.exchange_timeout,
        )
        usable = self._usable(accepted)
        self._see_to_tcp(self._verdict(attempt, accepted), accepted)
        if usable:
            attempt.rounds += 1
            await attempt.act(
                _round(attempt, PunchRole.CLIENT, usable, None),
                window=self._settings.act_timeout,
            )
        elif attempt.trail.own_candidates:
            await self._let_peer_dial(attempt)
        return self._verdict(attempt, accepted)

    async def _let_peer_dial(self, attempt: Attempt) -> None:
        """Send nothing, and give the peer the time to get through to us by itself.

        So js-libp2p does behind a NAT, where it knows no address of its own.
        """
        await asyncio.wait({attempt.direct}, timeout=self._settings.peer_dial)

    def _verdict(self, attempt: Attempt, accepted: Sequence[Multiaddr]) -> Reason:
        known = self._swarm.peerstore.get(attempt.peer)
        return verdict(attempt.trail, accepted, "" if known is None else known.agent_version)

    async def _match_transports(self, peer: PeerId) -> None:
        """For a peer that has TCP alone, know a TCP address of ours: it takes no offer without."""
        known = self._swarm.peerstore.addresses(peer)
        if {one.transport for one in known if not one.is_circuit} == {"tcp"}:
            await self._addresses.wait_tcp()

    def _see_to_tcp(self, reason: Reason, accepted: Sequence[Multiaddr]) -> None:
        """For a peer without UDP: have our TCP address by the next round."""
        if reason is Reason.NO_COMMON_TRANSPORT and accepted[0].transport == "tcp":
            self._addresses.learn_tcp()

    def _usable(self, accepted: Sequence[Multiaddr]) -> tuple[Multiaddr, ...]:
        """Those that one of our transports dials."""
        return tuple(one for one in accepted if self._swarm.transport_for(one) is not None)


def _round(
    attempt: Attempt, role: PunchRole, usable: tuple[Multiaddr, ...], rtt: float | None
) -> Step:
    return Step(
        kind=StepKind.PUNCH,
        number=attempt.rounds,
        role=role,
        addresses=usable,
        started_at=time.time(),
        rtt=rtt,
    )


def _circuits(swarm: Swarm) -> list[Multiaddr]:
    return [address for address in swarm.own_addresses if address.is_circuit]

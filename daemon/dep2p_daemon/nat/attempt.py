"""One attempt to get from relayed to direct: its budget, its dials, its trail.

Shared by all rounds with a peer, whichever side opened their streams: what a peer makes us send
is bounded by the attempt.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from dep2p_daemon.errors import AuthenticationError, Dep2pError, ResourceLimitError
from dep2p_daemon.muxed import CloseCode, Direction
from dep2p_daemon.nat.dcutr import PunchRole
from dep2p_daemon.nat.nat_kind import NatKind, apparent_kind
from dep2p_daemon.nat.trail import (
    MAX_CANDIDATES,
    Outcome,
    Reason,
    Side,
    Step,
    StepKind,
    Trail,
    TrailBook,
    TrailChanged,
    TrailEnded,
    with_step,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Transport
    from dep2p_daemon.nat.candidates import Candidate, CandidateFilter
    from dep2p_daemon.nat.observed import MappingBehaviour
    from dep2p_daemon.nat.punch_settings import PunchSettings
    from dep2p_daemon.swarm.swarm import Swarm

_log = structlog.get_logger(__name__)

PROBE_BYTES: Final = 64
"""Of one random packet (go-libp2p's)."""
REDIAL_PAUSE: Final = 0.2
"""Seconds after a dial that failed at once: the other side's NAT may not be open yet."""
MAX_DIALS_PER_ADDRESS: Final = 4
"""In one round."""


class Prober(Protocol):
    """Sends datagrams from the listening UDP socket (`quic.transport`)."""

    def send_probe(self, address: Multiaddr, data: bytes) -> bool:
        """Send one datagram; never blocks."""
        ...


class SimultaneousDialer(Protocol):
    """Connects from the listening TCP socket (`tcp.transport`)."""

    def expect_simultaneous(self, address: Multiaddr, *, seconds: float) -> None:
        """Keep what comes from `address` for a dial that begins the handshake."""
        ...

    async def dial_simultaneously(
        self, address: Multiaddr, peer: PeerId, *, initiator: bool
    ) -> Connection:
        """Connect; `initiator` says who begins the handshake."""
        ...


class Attempt:
    """Made by `HolePuncher`, which ends it with `end`."""

    def __init__(
        self,
        swarm: Swarm,
        tasks: asyncio.TaskGroup,
        book: TrailBook,
        settings: PunchSettings,
        candidates: CandidateFilter,
        trail: Trail,
        *,
        prober: Prober | None,
        tcp: SimultaneousDialer | None,
    ) -> None:
        self.peer = trail.peer
        self.trail = trail
        self.candidates = candidates
        self.direct: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        """Done with the direct connection as soon as there is one."""
        self.ended = asyncio.Event()
        self.users = 0
        """Exchanges that belong to this attempt and are not over."""
        self.rounds = 0
        self._swarm = swarm
        self._tasks = tasks
        self._book = book
        self._settings = settings
        self._prober = prober
        self._tcp = tcp
        self._probes_left = settings.max_addresses * settings.probes_per_address
        self._probes_sent = 0
        self._running: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()
        self._last_error = ""
        book.begin(trail)
        swarm.events.publish(TrailChanged(trail))

    # Records

    def record_offer(
        self, own: tuple[Multiaddr, ...], mapping: MappingBehaviour, kind: NatKind
    ) -> None:
        """Note what we tell the peer, and what is known of our NAT."""
        self._replace(
            dataclasses.replace(self.trail, own_candidates=own, own_mapping=mapping, own_nat=kind)
        )

    def record_step(self, step: Step) -> None:
        """Add a step, or what became of it."""
        self._replace(with_step(self.trail, step))

    def judge(
        self, addresses: Sequence[Multiaddr], nat: NatKind = NatKind.UNKNOWN
    ) -> tuple[Multiaddr, ...]:
        """Return those of the peer's addresses that may be used, and record all.

        `nat` is what the peer says of its own.
        """
        judged = self.candidates.judge(addresses)
        known = {one.address: one for one in self.trail.peer_candidates}
        fresh = [one for one in judged if one.address not in known]
        kept: tuple[Candidate, ...] = (*self.trail.peer_candidates, *fresh)
        # What is used must be seen; of what is not, some.
        kept = tuple(sorted(kept, key=lambda one: one.rejection is not None))[:MAX_CANDIDATES]
        refused = sum(one.rejection is not None for one in fresh)
        accepted = tuple(dict.fromkeys(one.address for one in judged if one.rejection is None))
        self._replace(
            dataclasses.replace(
                self.trail,
                peer_candidates=kept,
                peer_rejected=self.trail.peer_rejected + refused,
                peer_nat=apparent_kind(accepted) if nat is NatKind.UNKNOWN else nat,
            )
        )
        return accepted

    def found(self, connection: Connection) -> None:
        """There is a direct connection."""
        if not self.direct.done():
            self.direct.set_result(connection)

    def end(self, outcome: Outcome, reason: Reason, detail: str = "") -> None:
        """Stop what runs, and close the trail. The first end counts."""
        for task in self._running:
            task.cancel()
        if self.ended.is_set():
            return
        self.ended.set()
        connection = self.direct.result() if self.direct.done() else None
        if connection is not None:
            outcome, reason = Outcome.DIRECT, Reason.DIRECT
        for step in self.trail.steps:
            if step.outcome is None:
                became = outcome if connection is None else self._led_to(step, connection)
                self.record_step(dataclasses.replace(step, outcome=became))
        self._replace(
            dataclasses.replace(
                self.trail,
                ended_at=time.time(),
                outcome=outcome,
                reason=reason,
                detail=detail,
                connection_id="" if connection is None else connection.id,
                rtt=None if connection is None else connection.rtt,
            )
        )
        _log.info(
            "direct upgrade ended",
            peer=str(self.peer),
            side=self.trail.side.value,
            outcome=outcome.value,
            reason=reason.value,
            rounds=self.rounds,
            probes=self._probes_sent,
            seconds=round(time.monotonic() - self._began, 3),
            detail=detail,
        )
        transport = "" if connection is None else connection.remote_address.transport or ""
        self._swarm.events.publish(TrailEnded(self.trail, transport))

    def _led_to(self, step: Step, connection: Connection) -> Outcome:
        """What became of a step that still ran when there was a direct connection."""
        if step.kind is StepKind.PUNCH:
            return Outcome.DIRECT
        ours = connection.direction is Direction.OUTBOUND
        punched = any(
            connection.remote_address in other.addresses
            and (other.role is not PunchRole.SERVER or connection.remote_address.transport == "tcp")
            for other in self.trail.steps
            if other.kind is StepKind.PUNCH
        )
        dialled = ours and connection.remote_address in step.addresses and not punched
        return Outcome.DIRECT if dialled else Outcome.ABANDONED

    def _replace(self, trail: Trail) -> None:
        self._book.replace(self.trail, trail)
        self.trail = trail
        self._swarm.events.publish(TrailChanged(trail))

    # Packets

    def expect(self, addresses: Sequence[Multiaddr]) -> None:
        """Be ready for a peer that gets our addresses now and connects before its SYNC is here."""
        if self._tcp is None or self.trail.side is not Side.RECEIVER:
            return
        for address in addresses:
            if address.transport == "tcp":
                self._tcp.expect_simultaneous(address, seconds=self._settings.exchange_timeout)

    async def act(self, step: Step, *, window: float, dial_after: float = 0.0) -> bool:
        """Punch `step.addresses` until there is a direct connection, for `window` seconds.

        As QUIC's server, open our NAT with random packets and wait to be dialled, but dial too
        when nobody has come for `dial_after` seconds; otherwise dial. TCP is dialled either way,
        and DCUtR's initiator never begins its handshake. Dials go on after the window, until the
        attempt ends or their time is up.
        """
        if self.ended.is_set():
            return False
        now = asyncio.get_running_loop().time
        began = now()
        self._last_error = ""
        sent_before = self._probes_sent
        self.record_step(step)
        probes: list[asyncio.Task[None]] = []
        for address in step.addresses:
            if address.transport == "tcp":
                self.spawn(self._dial(address, simultaneous=True))
            elif step.role is PunchRole.SERVER:
                probes.append(self.spawn(self._send_probes(address)))
            else:
                self.spawn(self._dial(address, simultaneous=False))
        if probes:
            await asyncio.wait({self.direct}, timeout=dial_after)
            if not self.direct.done() and not self.ended.is_set():
                step = dataclasses.replace(step, role=PunchRole.BOTH)
                self.record_step(step)
                for address in step.addresses:
                    if address.transport != "tcp":
                        self.spawn(self._dial(address, simultaneous=False))
        await asyncio.wait({self.direct}, timeout=max(0.0, window - (now() - began)))
        for task in probes:
            task.cancel()
        done = self.direct.done()
        self.record_step(
            dataclasses.replace(
                step,
                duration=now() - began,
                probes=self._probes_sent - sent_before,
                outcome=Outcome.DIRECT if done else Outcome.FAILED,
                detail="" if done else self._last_error,
            )
        )
        return done

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` until it ends, or the attempt does. Its defects are logged."""
        task = self._tasks.create_task(self._contained(work))
        task.add_done_callback(lambda _: work.close())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _contained(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            _log.exception("a punch failed by a defect", peer=str(self.peer))

    async def _send_probes(self, address: Multiaddr) -> None:
        if self._prober is None:
            return
        shortest, longest = self._settings.probe_interval
        for _ in range(self._settings.probes_per_address):
            if self._probes_left <= 0:
                return
            self._probes_left -= 1
            self._probes_sent += 1
            self._prober.send_probe(address, os.urandom(PROBE_BYTES))
            await asyncio.sleep(random.uniform(shortest, longest))

    async def _dial(self, address: Multiaddr, *, simultaneous: bool) -> None:
        try:
            async with asyncio.timeout(self._settings.act_timeout):
                for _ in range(MAX_DIALS_PER_ADDRESS):
                    try:
                        connection = await self._connect(address, simultaneous=simultaneous)
                    except AuthenticationError as error:
                        self._last_error = error.message
                        return  # somebody else lives there
                    except Dep2pError as error:
                        self._last_error = error.message
                        await asyncio.sleep(REDIAL_PAUSE)
                    else:
                        await self._take(connection)
                        return
        except TimeoutError:
            return  # nobody answered: the step says so

    async def _connect(self, address: Multiaddr, *, simultaneous: bool) -> Connection:
        if simultaneous and self._tcp is not None:
            client = self.trail.side is Side.RECEIVER
            return await self._tcp.dial_simultaneously(address, self.peer, initiator=client)
        transport: Transport | None = self._swarm.transport_for(address)
        if transport is None:
            raise Dep2pError(f"no transport for {address}", reason="NO_TRANSPORT")
        return await transport.dial(address, self.peer)

    async def _take(self, connection: Connection) -> None:
        """Hand a dialled connection to the swarm, unless another one was faster."""
        if self.direct.done() and not self.direct.result().is_closed:
            await connection.close(CloseCode.SUPPLANTED, "another path was faster")
            return
        try:
            self._swarm.adopt(connection)
        except ResourceLimitError as error:
            self._last_error = error.message
            return
        self.found(connection)

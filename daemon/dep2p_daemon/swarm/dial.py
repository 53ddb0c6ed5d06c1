"""One dial to one peer: drives a `DialPlan` (the sans-IO schedule) against the transports.

Flow: addresses come in (`add`), names are resolved, the plan says which attempt starts when; the
first connection wins, the others are ended. Each step is a log line at debug.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from dep2p_daemon.errors import (
    AuthenticationError,
    Dep2pError,
    DialTimeoutError,
    InvalidArgumentError,
    MultiaddrError,
    PeerError,
    PreconditionError,
    RelayRefusedError,
    UnreachableError,
)
from dep2p_daemon.muxed import CloseCode
from dep2p_daemon.swarm.connections import DialPolicy
from dep2p_daemon.swarm.dial_errors import Outcome, dial_error, dial_timeout
from dep2p_daemon.swarm.dial_plan import DialPlan
from dep2p_daemon.swarm.dial_trail import (
    MAX_ATTEMPTS,
    MAX_DETAIL_CHARS,
    AttemptOutcome,
    DialAttempt,
    DialBook,
    DialTrail,
)
from dep2p_daemon.swarm.ranking import Candidate, IPNetwork, rank

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.multiaddr import Multiaddr
    from dep2p_daemon.muxed import Connection, Transport
    from dep2p_daemon.swarm.backoff import Backoff
    from dep2p_daemon.swarm.settings import DialSettings

_log = structlog.get_logger(__name__)


class DnsResolver(Protocol):
    """Turns a `/dns*` address into such with IP addresses."""

    async def resolve(self, address: Multiaddr) -> tuple[Multiaddr, ...]:
        """Return what `address` stands for; raises UnreachableError when nothing."""
        ...


class DialContext(Protocol):
    """What the swarm gives the dialer."""

    def transport_for(self, address: Multiaddr) -> Transport | None:
        """Who can dial `address`."""
        ...

    def adopt(self, connection: Connection, *, wanted: bool) -> None:
        """Take a new connection over. Raises ResourceLimitError, and closes it then."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the swarm's task group."""
        ...

    async def dial(
        self, peer: PeerId, addresses: Sequence[Multiaddr] = (), *, policy: DialPolicy = ...
    ) -> Connection:
        """Dial a relay."""
        ...

    def networks(self) -> Sequence[IPNetwork]:
        """The networks that this machine has an interface in."""
        ...


class Dial:
    """A dial, shared by all who wait for it.

    It is decided by its first connection, by the failure of its last address, or when nobody
    waits any more. Direct attempts that run when a circuit wins may finish and improve on it.
    """

    def __init__(
        self,
        peer: PeerId,
        *,
        policy: DialPolicy,
        wanted: bool,
        context: DialContext,
        resolver: DnsResolver | None,
        backoff: Backoff,
        settings: DialSettings,
        book: DialBook,
        on_decided: Callable[[Dial], None],
    ) -> None:
        self.peer = peer
        self._book = book
        self._trail: DialTrail | None = None
        self._tried: list[DialAttempt] = []
        self._began_at = time.time()
        self.policy = policy
        self._wanted = wanted
        self._context = context
        self._resolver = resolver
        self._backoff = backoff
        self._settings = settings
        self._on_decided = on_decided
        self._time = asyncio.get_running_loop().time
        self._began = self._time()
        self._ended = self._began
        self._plan = DialPlan(settings)
        self._outcomes: dict[Multiaddr, Outcome] = {}
        self._relays: dict[PeerId, list[Multiaddr]] = {}
        """The addresses of each relay that has circuits to the peer."""
        self._unresolved: list[tuple[Multiaddr, bool]] = []
        self._resolutions: set[asyncio.Task[None]] = set()
        self._attempts: dict[Candidate, tuple[asyncio.Task[None], float]] = {}
        self._changed = asyncio.Event()
        self._decided = asyncio.Event()
        self._winner: Connection | None = None
        self._waiters = 0
        self._log = _log.bind(peer=str(peer))
        self._task = context.spawn(self._run())

    def add(self, addresses: Sequence[Multiaddr], *, explicit: bool) -> None:
        """Take more addresses in. `explicit` ones are tried whatever their past."""
        ready: list[Multiaddr] = []
        for address in addresses:
            # The relay's part of a circuit address is resolved by the dial to the relay.
            if address.is_circuit and not self._is_first_of_relay(address):
                continue
            if address.is_dns and not address.is_circuit and self._resolver is not None:
                self._unresolved.append((address, explicit))
                self._plan.resolving()
            else:
                ready.append(address)
        self._plan.add(self._candidates(ready, explicit=explicit), self._time())
        self._changed.set()

    async def wait(self, timeout: float | None) -> Connection:
        """Return the connection. The dial is given up once nobody waits for it any more.

        Raises:
            DialTimeoutError: after `timeout` seconds.
            Dep2pError: as `dial_error` has it.
        """
        self._waiters += 1
        try:
            async with asyncio.timeout(timeout):
                await self._decided.wait()
        except TimeoutError:
            raise dial_timeout(self.peer, self._so_far(), self._time() - self._began) from None
        finally:
            self._waiters -= 1
            if not self._waiters and not self._decided.is_set():
                self._decide()
                self._task.cancel()
        if self._winner is None:
            raise self._failure()
        return self._winner

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._changed.clear()
                    self._start_due(tasks)
                    if self._plan.exhausted:
                        if not self._decided.is_set():
                            self._decide()
                        return
                    await self._wait_for_change()
        finally:
            if not self._decided.is_set():
                self._decide()
            self._record()  # with what ended after the decision

    def _start_due(self, tasks: asyncio.TaskGroup) -> None:
        for address, explicit in self._unresolved:
            task = tasks.create_task(self._resolve(address, explicit=explicit))
            self._resolutions.add(task)
            task.add_done_callback(self._resolutions.discard)
        self._unresolved.clear()
        now = self._time()
        while (candidate := self._plan.due(now)) is not None:
            self._attempts[candidate] = tasks.create_task(self._attempt(candidate)), now

    async def _wait_for_change(self) -> None:
        try:
            async with asyncio.timeout_at(self._plan.deadline()):
                await self._changed.wait()
        except TimeoutError:
            return  # the next attempt is due

    def _candidates(self, addresses: Sequence[Multiaddr], *, explicit: bool) -> list[Candidate]:
        usable: list[Multiaddr] = []
        now = self._time()
        for address in addresses:
            failure = None if explicit else self._backoff.waiting(self.peer, address, now)
            if failure is None:
                usable.append(address)
                continue
            error = UnreachableError(
                f"not tried, next try in {failure.until - now:.0f} s; the last failure of "
                f"{failure.count}: {failure.cause}",
                reason="DIAL_BACKOFF",
            )
            self._outcomes.setdefault(address, Outcome(address, error))
            self._note(address, AttemptOutcome.NOT_TRIED, now, error)
            self._log.debug("dial: address left out", address=str(address), reason=error.reason)
        return rank(usable, networks=self._context.networks(), settings=self._settings)

    def _is_first_of_relay(self, address: Multiaddr) -> bool:
        """Note the relay's address: one circuit per relay, however many ways lead to it."""
        way = _relay_of(address)
        relay = way.peer_id if way is not None else None
        if way is None or relay is None:
            return True
        known = relay in self._relays
        ways = self._relays.setdefault(relay, [])
        if way.without_peer_id() != way and way not in ways:
            ways.append(way)
        return not known

    async def _resolve(self, address: Multiaddr, *, explicit: bool) -> None:
        candidates: list[Candidate] = []
        try:
            found = await self._lookup(address)
            candidates = self._candidates(found, explicit=explicit)
            self._log.debug("dial: resolved", address=str(address), found=[str(a) for a in found])
        except Dep2pError as error:
            self._outcomes[address] = Outcome(address, error, self._time() - self._began)
            self._note(address, AttemptOutcome.NOT_TRIED, self._began, error)
            self._log.debug("dial: not resolved", address=str(address), reason=error.reason)
        finally:
            self._plan.resolved(candidates, self._time())
            self._changed.set()

    async def _lookup(self, address: Multiaddr) -> list[Multiaddr]:
        assert self._resolver is not None
        try:
            async with asyncio.timeout(self._settings.resolve_timeout):
                # With the peer id, /dnsaddr gives this peer's addresses only.
                found = await self._resolver.resolve(address.with_peer_id(self.peer))
        except TimeoutError:
            raise DialTimeoutError("no answer from the name service") from None
        usable: list[Multiaddr] = []
        for result in found:
            try:
                bare = without_peer(result, self.peer)
            except InvalidArgumentError:
                continue  # another peer's address under the same name
            if self.policy.allows(relayed=bare.is_circuit):
                usable.append(bare)
        if not usable:
            raise UnreachableError(
                "the name stands for no address of this peer", reason="NO_ADDRESSES"
            )
        return usable

    async def _attempt(self, candidate: Candidate) -> None:
        address, began = candidate.address, self._time()
        log = self._log.bind(address=str(address), transport=address.transport)
        log.debug("dial: attempt started", timeout_seconds=candidate.timeout)
        try:
            connection = await self._connect(candidate)
            self._note(address, AttemptOutcome.CONNECTED, began)
            self._take(candidate, connection)
            log.debug(
                "dial: connected",
                connection=connection.id,
                ms=round((self._time() - began) * 1000, 1),
            )
        except asyncio.CancelledError:
            self._note(address, AttemptOutcome.GIVEN_UP, began)
            log.debug("dial: attempt given up", ms=round((self._time() - began) * 1000, 1))
            raise
        except Dep2pError as error:
            now = self._time()
            self._outcomes[address] = Outcome(address, error, now - began)
            self._note(address, AttemptOutcome.FAILED, began, error)
            # A relay's refusal may be over any moment, and asking it is cheap.
            if isinstance(error, PeerError) and not isinstance(error, RelayRefusedError):
                self._backoff.failed(self.peer, address, error.message, now)
            log.debug(
                "dial: attempt failed",
                reason=error.reason,
                error=error.message,
                ms=round((now - began) * 1000, 1),
            )
        finally:
            del self._attempts[candidate]
            self._plan.failed(candidate, self._time())
            self._changed.set()

    async def _connect(self, candidate: Candidate) -> Connection:
        transport = self._context.transport_for(candidate.address)
        if transport is None:
            raise PreconditionError(
                f"this node has no transport for {candidate.address}",
                reason="NO_TRANSPORT",
                remedy="use an address with /udp/<port>/quic-v1 or /tcp/<port>",
                address=candidate.address,
            )
        try:
            async with asyncio.timeout(candidate.timeout):
                await self._reach_relay(candidate.address)
                connection = await transport.dial(candidate.address, self.peer)
        except (Dep2pError, asyncio.CancelledError):
            raise
        except TimeoutError:
            raise DialTimeoutError("no answer") from None
        except OSError as error:
            raise UnreachableError(error.strerror or str(error)) from error
        except Exception as error:
            # One transport's defect must not take the others' attempts along.
            self._log.exception("dial: a transport failed", address=str(candidate.address))
            raise UnreachableError(
                f"internal error: {type(error).__name__}", reason="INTERNAL"
            ) from error
        if connection.remote_peer != self.peer:
            await connection.close(CloseCode.GATED)
            raise AuthenticationError(f"{connection.remote_peer} answered there")
        return connection

    async def _reach_relay(self, address: Multiaddr) -> None:
        """Race the ways to a circuit's relay, where there are several, before the circuit."""
        way = _relay_of(address)
        relay = way.peer_id if way is not None else None
        ways = self._relays.get(relay, []) if relay is not None else []
        if relay is None or len(ways) < 2:
            return
        try:
            await self._context.dial(relay, ways, policy=DialPolicy.DIRECT)
        except PeerError as error:
            raise UnreachableError(
                f"the relay could not be reached: {error.message}",
                reason="RELAY_UNREACHABLE",
                remedy=error.remedy,
            ) from error

    def _take(self, candidate: Candidate, connection: Connection) -> None:
        """Take the connection over and end the attempts that cannot improve on it."""
        first = not self._decided.is_set()
        self._context.adopt(connection, wanted=self._wanted and first)
        for loser in self._plan.stop(keep_direct=connection.relayed):
            if loser is not candidate:
                self._attempts[loser][0].cancel()
        for resolution in self._resolutions:
            resolution.cancel()
        if first:
            self._winner = connection
            self._decide()

    def _decide(self) -> None:
        self._ended = self._time()
        self._decided.set()
        self._record()
        self._on_decided(self)

    def _note(
        self,
        address: Multiaddr,
        outcome: AttemptOutcome,
        began: float,
        error: Dep2pError | None = None,
    ) -> None:
        """Remember for `why` what came of an address."""
        if len(self._tried) < MAX_ATTEMPTS:
            self._tried.append(
                DialAttempt(
                    address=address,
                    outcome=outcome,
                    began_after=began - self._began,
                    duration=self._time() - began,
                    reason=error.reason if error is not None else "",
                    detail=error.message[:MAX_DETAIL_CHARS] if error is not None else "",
                )
            )

    def _record(self) -> None:
        """Put the dial into the book, or its longer record in place of the shorter one."""
        winner = self._winner
        error = None if winner is not None else self._failure()
        trail = DialTrail(
            peer=self.peer,
            policy=self.policy,
            started_at=self._began_at,
            duration=self._ended - self._began,
            attempts=tuple(self._tried),
            connection_id=winner.id if winner is not None else "",
            relayed=winner is not None and winner.relayed,
            reason=error.reason if error is not None else "",
            detail=error.message if error is not None else "",
            remedy=error.remedy if error is not None else "",
        )
        if self._trail is None:
            self._book.add(trail)
        else:
            self._book.replace(self._trail, trail)
        self._trail = trail

    def _failure(self) -> Dep2pError:
        if not self._outcomes:
            return PreconditionError("the node is stopping", reason="STOPPING")
        return dial_error(self.peer, list(self._outcomes.values()), self._ended - self._began)

    def _so_far(self) -> list[Outcome]:
        now = self._time()
        unfinished = [
            Outcome(candidate.address, DialTimeoutError("no answer yet"), now - began)
            for candidate, (_task, began) in self._attempts.items()
        ]
        return [*self._outcomes.values(), *unfinished]


def _relay_of(address: Multiaddr) -> Multiaddr | None:
    """The relay's address with its `/p2p`; None for what is no circuit, or names no relay."""
    try:
        return address.split_circuit()[0] if address.is_circuit else None
    except MultiaddrError:
        return None  # the circuit transport will say what is wrong with it


def without_peer(address: Multiaddr, peer: PeerId) -> Multiaddr:
    """Cut a trailing `/p2p/<peer>` off. Raises InvalidArgumentError for another peer's."""
    if address.peer_id is None:
        return address
    if address.peer_id != peer:
        raise InvalidArgumentError(
            f"{address} is the address of another peer than {peer}",
            reason="PEER_ID_MISMATCH",
            remedy=f"end the address with /p2p/{peer}, or dial the peer that it names",
            address=address,
            peer=peer,
        )
    return address.without_peer_id()

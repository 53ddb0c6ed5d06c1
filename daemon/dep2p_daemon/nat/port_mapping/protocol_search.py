"""Which protocol a gateway speaks: all are tried, one soon after the other, and one maps.

Looking for a protocol maps nothing (RFC 6887's ANNOUNCE, RFC 6886's address request, UPnP's
GetExternalIPAddress), so the looks may overlap: a gateway that drops the first protocol's packets
costs a second, not all its retransmissions. Mapping is done by one protocol at a time, and by the
next only if the last one was refused or got no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from dep2p_daemon.errors import ProtocolNotSupportedError, UnreachableError
from dep2p_daemon.nat.port_mapping.terms import (
    NO_OUTER_ADDRESS,
    SILENT,
    Granted,
    Port,
    Protocol,
    Refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dep2p_daemon.nat.port_mapping.clients import Client
    from dep2p_daemon.nat.port_mapping.terms import IPAddress

_log = structlog.get_logger(__name__)

HEAD_START: Final = 1.0
"""Seconds that a protocol has to answer before the next one is tried beside it."""
GRACE: Final = 0.5
"""Seconds that a better protocol has left to answer once a worse one has."""

_REMEDY: Final = (
    "allow port mapping (UPnP, NAT-PMP, PCP) in the router's settings, or forward the port there "
    "by hand"
)


class State(enum.Enum):
    """How far one protocol got."""

    WAITING = enum.auto()
    LOOKING = enum.auto()
    ANSWERED = enum.auto()
    """The gateway speaks it; it maps, or is about to."""
    OVER = enum.auto()
    """Silent, not spoken, or refuses to map."""


class Signal(enum.Enum):
    """What happens to one protocol."""

    BEGIN = enum.auto()
    ANSWER = enum.auto()
    FAIL = enum.auto()


TRANSITIONS: Final[dict[tuple[State, Signal], State]] = {
    (State.WAITING, Signal.BEGIN): State.LOOKING,
    (State.LOOKING, Signal.ANSWER): State.ANSWERED,
    (State.LOOKING, Signal.FAIL): State.OVER,
    (State.ANSWERED, Signal.FAIL): State.OVER,
}
"""Anything else is a defect."""


class ProtocolSearch:
    """The order of one search at one gateway, sans-IO. Times are seconds of any one clock."""

    def __init__(self, order: Iterable[Protocol]) -> None:
        """`order`: the best first; they begin in it, too."""
        self._states = dict.fromkeys(order, State.WAITING)
        self._begun_at = 0.0
        self._answered_at: dict[Protocol, float] = {}

    @property
    def is_over(self) -> bool:
        """Whether no protocol is left."""
        return all(state is State.OVER for state in self._states.values())

    def begin(self, now: float) -> Protocol | None:
        """The protocol that is to be looked for from now on, if it is one's turn."""
        due = self._next_at()
        if due is None or now < due:
            return None
        protocol = self._in(State.WAITING)[0]
        self._note(protocol, Signal.BEGIN)
        self._begun_at = now
        return protocol

    def answered(self, protocol: Protocol, now: float) -> None:
        """The gateway speaks it."""
        self._note(protocol, Signal.ANSWER)
        self._answered_at[protocol] = now

    def failed(self, protocol: Protocol) -> None:
        """Nothing will be mapped by it."""
        self._note(protocol, Signal.FAIL)

    def choose(self, now: float) -> Protocol | None:
        """The protocol to map by now, if there is one; `failed` says that it came to nothing."""
        due = self._choice_at()
        return None if due is None or now < due else self._in(State.ANSWERED)[0]

    def deadline(self) -> float | None:
        """When to call `begin` and `choose` again, unless something happens before."""
        return self._next_at() if (choice := self._choice_at()) is None else choice

    def _next_at(self) -> float | None:
        """When the next protocol's turn is; None: not before something happens."""
        if not self._in(State.WAITING) or self._in(State.ANSWERED):
            return None
        return self._begun_at + HEAD_START if self._in(State.LOOKING) else 0.0

    def _choice_at(self) -> float | None:
        """When the best that has answered need not wait for better ones any more."""
        answered = self._in(State.ANSWERED)
        if not answered:
            return None
        order = list(self._states)
        better = order[: order.index(answered[0])]
        if not any(self._states[protocol] is State.LOOKING for protocol in better):
            return 0.0
        return min(self._answered_at[protocol] for protocol in answered) + GRACE

    def _in(self, state: State) -> list[Protocol]:
        return [protocol for protocol, one in self._states.items() if one is state]

    def _note(self, protocol: Protocol, signal: Signal) -> None:
        self._states[protocol] = TRANSITIONS[self._states[protocol], signal]


Failure: TypeAlias = Refused | UnreachableError | ProtocolNotSupportedError
"""Why a protocol maps nothing."""


class ClientSearch:
    """Runs a `ProtocolSearch` with the protocols' clients. One search only."""

    def __init__(
        self, clients: Sequence[Client], gateway: IPAddress, now: Callable[[], float]
    ) -> None:
        """`clients`: one for each protocol, the best first."""
        self._clients = {client.protocol: client for client in clients}
        self._gateway = gateway
        self._now = now
        self._search = ProtocolSearch(self._clients)
        self._looks: dict[asyncio.Task[None], Protocol] = {}
        self._failures: dict[Protocol, Failure] = {}
        self.mapping: Client | None = None
        """What maps, or is about to; if the search is cancelled, it may have a mapping to end."""

    @property
    def retry_after(self) -> float:
        """Seconds in which asking again is of no use, as those say that refused; 0: nobody did."""
        refusals = [one for one in self._failures.values() if isinstance(one, Refused)]
        return max((one.retry_after for one in refusals), default=0.0)

    async def run(self, port: Port, lifetime: int) -> tuple[Client, Granted]:
        """Have `port` mapped for `lifetime` seconds, and return what did it.

        Raises:
            UnreachableError: no protocol does: the gateway is silent, or refuses.
            ProtocolNotSupportedError: it says that it speaks another protocol, and is else silent.
        """
        try:
            while True:
                self._take_looks()
                if self._search.is_over:
                    raise self._why()
                while (protocol := self._search.begin(self._now())) is not None:
                    look = asyncio.create_task(self._clients[protocol].look())
                    self._looks[look] = protocol
                if (protocol := self._search.choose(self._now())) is None:
                    await self._wait()
                elif (granted := await self._map(protocol, port, lifetime)) is not None:
                    return self._clients[protocol], granted
        finally:
            for look in self._looks:
                look.cancel()
            await asyncio.gather(*self._looks, return_exceptions=True)

    async def _wait(self) -> None:
        deadline = self._search.deadline()
        timeout = None if deadline is None else max(0.0, deadline - self._now())
        await asyncio.wait(self._looks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    def _take_looks(self) -> None:
        """Note how the looks ended that did."""
        for look in [look for look in self._looks if look.done()]:
            protocol = self._looks.pop(look)
            try:
                look.result()
            except (UnreachableError, ProtocolNotSupportedError) as error:
                self._fail(protocol, error)
            else:
                self._search.answered(protocol, self._now())

    async def _map(self, protocol: Protocol, port: Port, lifetime: int) -> Granted | None:
        client = self.mapping = self._clients[protocol]
        try:
            answer = await client.map(port, lifetime, None)
        except (UnreachableError, ProtocolNotSupportedError) as error:
            # It may be that only the answer was lost, and another protocol shall map the port.
            with contextlib.suppress(UnreachableError, ProtocolNotSupportedError):
                await client.unmap(port)
            self._fail(protocol, error)
            return None
        if isinstance(answer, Granted):
            return answer
        self._fail(protocol, answer)
        return None

    def _fail(self, protocol: Protocol, why: Failure) -> None:
        _log.debug("no port mapping", protocol=protocol.word, reason=why.reason)
        self._search.failed(protocol)
        self.mapping = None
        self._failures[protocol] = why

    def _why(self) -> UnreachableError | ProtocolNotSupportedError:
        """What of all that went wrong tells the most."""
        failures = [(one, self._failures[one]) for one in self._clients if one in self._failures]
        refusals = [(one, why) for one, why in failures if isinstance(why, Refused)]
        refusals.sort(key=lambda refusal: refusal[1].reason != NO_OUTER_ADDRESS)
        for protocol, refusal in refusals:
            return self._refusal(protocol, refusal)
        for _, error in failures:
            if not isinstance(error, Refused) and error.reason != SILENT:
                return error
        names = ", ".join(protocol.word for protocol in self._clients)
        return UnreachableError(
            f"the gateway {self._gateway} does not answer to {names}",
            reason=SILENT,
            remedy=_REMEDY,
            gateway=self._gateway,
        )

    def _refusal(self, protocol: Protocol, answer: Refused) -> UnreachableError:
        why = f"{protocol.word}: {answer.reason}"
        if answer.reason == NO_OUTER_ADDRESS:
            why += "; it is offline, or behind another NAT"
        return UnreachableError(
            f"the gateway {self._gateway} refuses to map ports ({why})",
            reason=answer.reason,
            remedy=_REMEDY,
            gateway=self._gateway,
        )

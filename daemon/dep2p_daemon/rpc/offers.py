"""Streams that peers opened and that wait for a program to accept them.

Flow: a program listens on a protocol; a peer's stream becomes an offer with an unguessable id;
the program accepts it by that id, in a call of its own, within `ACCEPT_SECONDS`. What is not
accepted is reset. Until then nothing is read from the stream: its peer stops at the window.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final, Self

import structlog

from dep2p_daemon.errors import NotFoundError, ResourceLimitError
from dep2p_daemon.muxed import CloseCode

if TYPE_CHECKING:
    from collections.abc import Collection

    from dep2p_daemon.errors import Dep2pError
    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.muxed import Stream
    from dep2p_daemon.swarm.swarm import Swarm

log = structlog.get_logger(__name__)

ACCEPT_SECONDS: Final = 10.0
"""Part of the API's contract: an offer lives so long."""
MAX_PENDING: Final = 64
"""Offers of one listener that wait; further streams are reset. Ours."""
MAX_LISTENERS: Final = 256
"""Protocols that programs serve at once; ours."""

_ID_BYTES: Final = 16


class Offer:
    """One peer's stream. Whoever takes it owns the stream and calls `finish` when it is done."""

    def __init__(self, stream: Stream) -> None:
        self.offer_id = secrets.token_urlsafe(_ID_BYTES)
        self.stream = stream
        self.decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True: taken; False: its listener left."""
        self._finished = asyncio.Event()

    def decide(self, taken: bool) -> None:
        """Settle it, unless it is settled."""
        if not self.decided.done():
            self.decided.set_result(taken)

    def finish(self) -> None:
        """The stream has ended and is nobody's any more."""
        self._finished.set()

    async def wait_finished(self) -> None:
        """Wait until who took it is done."""
        await self._finished.wait()


class Offers:
    """All listeners and all offers of the daemon."""

    def __init__(self, swarm: Swarm, *, accept_seconds: float = ACCEPT_SECONDS) -> None:
        self.swarm = swarm
        self.accept_seconds = accept_seconds
        self.pending: dict[str, Offer] = {}
        self._listeners: set[ProtocolListener] = set()
        self._stopped: Dep2pError | None = None

    def listen(self, protocol: str, allowed: Collection[PeerId]) -> ProtocolListener:
        """Return a listener for `protocol`; serving begins and ends with its `with` block."""
        return ProtocolListener(self, protocol, frozenset(allowed))

    def take(self, offer_id: str) -> Offer:
        """Take an offer. Raises NotFoundError when it expired or was taken."""
        offer = self.pending.pop(offer_id, None)
        if offer is None or offer.decided.done():
            raise NotFoundError(
                "there is no such offer: it expired, was taken, or its peer gave it up",
                reason="OFFER_NOT_FOUND",
                remedy=f"accept an offer within {self.accept_seconds:g} seconds, and once only",
            )
        offer.decide(taken=True)
        return offer

    def stop(self, error: Dep2pError) -> None:
        """End all listeners with `error`, and those to come."""
        self._stopped = error
        for listener in self._listeners:
            listener.wake()

    @property
    def stopped(self) -> Dep2pError | None:
        """Why no listener goes on, once `stop` was called."""
        return self._stopped

    def add(self, listener: ProtocolListener) -> None:
        """Serve a listener's protocol; called by the listener.

        Raises:
            AlreadyExistsError: somebody serves the protocol.
            InvalidArgumentError: it is not a protocol id.
            ResourceLimitError: too many listeners.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise ResourceLimitError(
                f"programs serve {MAX_LISTENERS} protocols already, which is the most",
                remedy="end a listener that is not needed",
                limit="max_listeners",
            )
        self.swarm.set_handler(listener.protocol, listener.handle)
        self._listeners.add(listener)

    def remove(self, listener: ProtocolListener) -> None:
        """Stop serving a listener's protocol; called by the listener."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            self.swarm.remove_handler(listener.protocol)


class ProtocolListener:
    """One program's serving of one protocol. A context manager; streams it gave away live on."""

    def __init__(self, offers: Offers, protocol: str, allowed: frozenset[PeerId]) -> None:
        self.protocol = protocol
        self._offers = offers
        self._allowed = allowed
        self._waiting: deque[Offer] = deque()
        self._unsettled: set[Offer] = set()
        self._wakeup = asyncio.Event()

    def __enter__(self) -> Self:
        self._offers.add(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._offers.remove(self)
        for offer in self._unsettled:
            offer.decide(taken=False)

    def wake(self) -> None:
        """Look again: there is an offer, or the end."""
        self._wakeup.set()

    async def next(self) -> Offer:
        """Wait for the next offer to tell the program of. Raises what `Offers.stop` was given."""
        while not self._waiting:
            if self._offers.stopped is not None:
                raise self._offers.stopped
            self._wakeup.clear()
            await self._wakeup.wait()
        return self._waiting.popleft()

    async def handle(self, stream: Stream) -> None:
        """Offer an inbound stream, and stay with it until it has ended (the swarm's handler)."""
        peer = stream.connection.remote_peer
        if self._allowed and peer not in self._allowed:
            self._refuse(stream, CloseCode.GATED, "PEER_NOT_ALLOWED")
            return
        if len(self._unsettled) >= MAX_PENDING:
            self._refuse(stream, CloseCode.RESOURCE_LIMIT_EXCEEDED, "TOO_MANY_OFFERS")
            return
        offer = Offer(stream)
        if await self._offer(offer):
            await offer.wait_finished()
        elif not stream.closed:
            self._refuse(stream, CloseCode.GARBAGE_COLLECTED, "OFFER_NOT_ACCEPTED")

    async def _offer(self, offer: Offer) -> bool:
        self._offers.pending[offer.offer_id] = offer
        self._unsettled.add(offer)
        self._waiting.append(offer)
        self.wake()
        try:
            async with asyncio.timeout(self._offers.accept_seconds):
                return await offer.decided
        except TimeoutError:
            # The deadline and the taking may come in one turn of the loop: then it is taken.
            return not offer.decided.cancelled() and offer.decided.result()
        finally:
            self._offers.pending.pop(offer.offer_id, None)
            self._unsettled.discard(offer)
            if offer in self._waiting:
                self._waiting.remove(offer)

    def _refuse(self, stream: Stream, code: CloseCode, reason: str) -> None:
        log.info(
            "stream refused",
            peer=str(stream.connection.remote_peer),
            protocol=self.protocol,
            reason=reason,
        )
        stream.reset(code)

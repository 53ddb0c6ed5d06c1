"""Which protocols are served here, and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from dep2p_daemon.errors import AlreadyExistsError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dep2p_daemon.muxed import Stream

Handler: TypeAlias = "Callable[[Stream], Awaitable[None]]"
"""Serves one inbound stream and owns it: ends it, or hands it on, before it returns."""

MAX_PROTOCOL_BYTES: Final = 1000
"""Length of a protocol id; go-multistream's token is at most 1024 bytes, newline included."""


class ProtocolRegistry:
    """Protocol id to handler, by exact match."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._handlers: dict[str, Handler] = {}
        self._on_change = on_change

    @property
    def protocols(self) -> tuple[str, ...]:
        """What is served, sorted."""
        return tuple(sorted(self._handlers))

    def is_supported(self, protocol: str) -> bool:
        """Whether somebody serves `protocol`."""
        return protocol in self._handlers

    def get(self, protocol: str) -> Handler | None:
        """Who serves `protocol`."""
        return self._handlers.get(protocol)

    def set(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol` from now on.

        Raises:
            InvalidArgumentError: not a protocol id.
            AlreadyExistsError: somebody serves it already.
        """
        check_protocol(protocol)
        if protocol in self._handlers:
            raise AlreadyExistsError(
                f"{protocol} is already served by this node",
                reason="PROTOCOL_TAKEN",
                remedy="end the other listener, or choose another protocol id",
                protocol=protocol,
            )
        self._handlers[protocol] = handler
        self._on_change()

    def remove(self, protocol: str) -> None:
        """Stop serving `protocol`; streams that run live on. Idempotent."""
        if self._handlers.pop(protocol, None) is not None:
            self._on_change()


def check_protocol(protocol: str) -> None:
    """Raise InvalidArgumentError unless `protocol` can go over multistream-select."""
    if (
        not protocol.startswith("/")
        or not protocol.isprintable()
        or len(protocol.encode()) > MAX_PROTOCOL_BYTES
        or len(protocol) < 2
    ):
        raise InvalidArgumentError(
            f"{protocol[:80]!r} is not a protocol id",
            reason="PROTOCOL_INVALID",
            remedy=f"a protocol id looks like /my-app/1.0.0: it begins with a slash, is printable "
            f"and at most {MAX_PROTOCOL_BYTES} bytes long",
            protocol=protocol[:80],
        )

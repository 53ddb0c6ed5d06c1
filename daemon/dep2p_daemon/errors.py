"""The one exception tree of the daemon.

Every error a user can meet carries four things: a message for people, a `reason`
(UPPER_SNAKE, the machine's contract), a `remedy` (what to do about it) and `metadata`
(every variable of the message, as text). `rpc/errors.py` maps the classes to gRPC codes;
nothing else does.

`PeerError` is the other side's doing, `LocalError` ours or our user's.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override


class Dep2pError(Exception):
    """Base of all errors that are meant to reach a user."""

    default_reason: ClassVar[str] = "INTERNAL"
    default_remedy: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        remedy: str | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason if reason is not None else self.default_reason
        self.remedy = remedy if remedy is not None else self.default_remedy
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @override
    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class LocalError(Dep2pError):
    """The mistake or the limit is on our side of the wire."""


class ConfigError(LocalError):
    """A setting is wrong; the message names the key."""

    default_reason = "CONFIG_INVALID"


class InvalidArgumentError(LocalError):
    """A caller's argument cannot be right, whatever the state of the daemon."""

    default_reason = "INVALID_ARGUMENT"


class MultiaddrError(InvalidArgumentError):
    """A multiaddr does not parse, or lacks a component that this use of it needs."""

    default_reason = "MULTIADDR_INVALID"


class PeerIdError(InvalidArgumentError):
    """A text or byte string is not a peer id."""

    default_reason = "PEER_ID_INVALID"


class NotFoundError(LocalError):
    """The thing that was named does not exist here."""

    default_reason = "NOT_FOUND"


class AlreadyExistsError(LocalError):
    """The name is taken: somebody else serves this protocol, or has made this thing."""

    default_reason = "ALREADY_EXISTS"


class PermissionDeniedError(LocalError):
    """The caller of the API may not do this."""

    default_reason = "PERMISSION_DENIED"


class PreconditionError(LocalError):
    """The daemon is not in the state that the call needs."""

    default_reason = "FAILED_PRECONDITION"


class ResourceLimitError(LocalError):
    """A limit of ours bites; `metadata["limit"]` names it."""

    default_reason = "RESOURCE_LIMIT"


class ProtocolNotSupportedError(LocalError):
    """Neither side's protocols overlap, or nobody serves the one that was asked for."""

    default_reason = "PROTOCOL_NOT_SUPPORTED"


class PeerError(Dep2pError):
    """The peer, or the way to it, failed."""

    default_reason = "PEER_FAILED"


class UnreachableError(PeerError):
    """No address of the peer could be connected to; `metadata` says what was tried."""

    default_reason = "PEER_UNREACHABLE"


class DialTimeoutError(UnreachableError):
    """The dial's deadline passed."""

    default_reason = "DIAL_TIMEOUT"


class ProtocolViolationError(PeerError):
    """The peer sent what the protocol does not allow."""

    default_reason = "PROTOCOL_VIOLATION"


class AuthenticationError(PeerError):
    """The peer could not prove the identity that was expected, or any."""

    default_reason = "AUTHENTICATION_FAILED"


class ConnectionClosedError(PeerError):
    """The connection ended; `code` is the application's close code where there is one."""

    default_reason = "CONNECTION_CLOSED"

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        remote: bool = False,
        reason: str | None = None,
        remedy: str | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message, reason=reason, remedy=remedy, **metadata)
        self.code = code
        self.remote = remote


class StreamResetError(PeerError):
    """A stream was reset, by the peer (`remote`) or by us; `code` is the reset code."""

    default_reason = "STREAM_RESET"

    def __init__(
        self,
        message: str = "the stream was reset",
        *,
        code: int = 0,
        remote: bool = True,
        reason: str | None = None,
        remedy: str | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message, reason=reason, remedy=remedy, code=code, **metadata)
        self.code = code
        self.remote = remote


class RelayRefusedError(PeerError):
    """A relay answered with a status other than OK (circuit v2); `status` is its number."""

    default_reason = "RELAY_REFUSED"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        reason: str | None = None,
        remedy: str | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message, reason=reason, remedy=remedy, status=status, **metadata)
        self.status = status

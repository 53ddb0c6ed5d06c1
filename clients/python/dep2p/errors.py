"""What a call can raise. `reason` is the contract for programs, the message is for people.

The daemon sends `google.rpc.ErrorInfo{reason, domain "dep2p", metadata}` with each status; here
it becomes one of these classes again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grpc import StatusCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc.aio

DOMAIN: Final = "dep2p"
_DETAILS_KEY: Final = "grpc-status-details-bin"


class Dep2pError(Exception):
    """Base of all errors of this package.

    Attributes:
        message: what happened, for people.
        reason: the same as a code, UPPER_SNAKE.
        remedy: what to do about it, for people; may be empty.
        metadata: every variable of the message, as text.
        code: gRPC's status code.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        remedy: str = "",
        metadata: Mapping[str, str] | None = None,
        code: StatusCode = StatusCode.UNKNOWN,
    ) -> None:
        super().__init__(f"{message} ({remedy})" if remedy else message)
        self.message = message
        self.reason = reason
        self.remedy = remedy
        self.metadata: dict[str, str] = dict(metadata or {})
        self.code = code


class DaemonNotReachableError(Dep2pError):
    """No daemon answers at the socket, or it went away during the call."""


class DaemonStoppingError(DaemonNotReachableError):
    """The daemon is about to end and takes no new calls."""


class DaemonError(Dep2pError):
    """The daemon failed inside; `metadata["error_id"]` finds it in the daemon's log."""


class InvalidArgumentError(Dep2pError):
    """An argument cannot be right: a malformed address, peer id or protocol id."""


class NotFoundError(Dep2pError):
    """What was named does not exist."""


class AlreadyExistsError(Dep2pError):
    """Somebody else has it: another program serves this protocol."""


class PreconditionError(Dep2pError):
    """The daemon or the peer is not in the state that the call needs."""


class NoReservationError(PreconditionError):
    """The target peer is not connected to the relay."""


class ProtocolNotSupportedError(PreconditionError):
    """The peer does not serve any of the protocols."""


class RefusedError(Dep2pError):
    """Somebody may but will not: the caller lacks a permission, or a limit is reached."""


class PermissionDeniedError(RefusedError):
    """The daemon or the relay does not allow it."""


class LimitError(RefusedError):
    """A limit of the daemon or the relay is reached; metadata names it."""


class UnreachableError(Dep2pError):
    """The peer, or the way to it, is not there; metadata lists what was tried."""


class DeadlineError(Dep2pError):
    """The deadline passed first."""


class PeerFailedError(Dep2pError):
    """The peer did what the protocol does not allow."""


class StreamResetError(PeerFailedError):
    """The stream was reset, by the peer or by us (`metadata["by"]`: "peer" or "local")."""

    @property
    def reset_code(self) -> int:
        """The application's reset code; 0 when none was given."""
        return int(self.metadata.get("code", "0"))


class UnsupportedError(Dep2pError):
    """The daemon does not know this method: it is older than this client."""


_BY_REASON: Final[dict[str, type[Dep2pError]]] = {
    "STOPPING": DaemonStoppingError,
    "NO_RESERVATION": NoReservationError,
    "PROTOCOL_NOT_SUPPORTED": ProtocolNotSupportedError,
    "STREAM_RESET": StreamResetError,
}

_BY_CODE: Final[dict[StatusCode, type[Dep2pError]]] = {
    StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    StatusCode.NOT_FOUND: NotFoundError,
    StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    StatusCode.FAILED_PRECONDITION: PreconditionError,
    StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    StatusCode.UNAUTHENTICATED: PermissionDeniedError,
    StatusCode.RESOURCE_EXHAUSTED: LimitError,
    StatusCode.UNAVAILABLE: UnreachableError,
    StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    StatusCode.ABORTED: PeerFailedError,
    StatusCode.UNIMPLEMENTED: UnsupportedError,
    StatusCode.INTERNAL: DaemonError,
}


def error_of(
    code: StatusCode, message: str, trailing_metadata: grpc.aio.Metadata | None
) -> Dep2pError:
    """Return the error that a status stands for."""
    for key, value in trailing_metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            error = _detailed(code, message, value)
            if error is not None:
                return error
    # Not said by the daemon but by gRPC: on this channel only the daemon itself can be missing.
    if code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
        return DaemonNotReachableError(message, reason="DAEMON_NOT_REACHABLE", code=code)
    if code is StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(
            "the daemon did not answer in time",
            reason="DEADLINE_EXCEEDED",
            remedy="give it more time; if it stays so, look at the daemon's log",
            code=code,
        )
    return _BY_CODE.get(code, DaemonError)(message, reason=code.name, code=code)


def _detailed(code: StatusCode, message: str, status: bytes) -> Dep2pError | None:
    # Only here: importing them takes longer than a call does.
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    info = error_details_pb2.ErrorInfo()
    try:
        details = status_pb2.Status.FromString(status).details
        found = any(detail.Unpack(info) and info.domain == DOMAIN for detail in details)
    except DecodeError:
        return None
    if not found:
        return None
    metadata = dict(info.metadata)
    cls = _BY_REASON.get(info.reason) or _BY_CODE.get(code, DaemonError)
    return cls(
        message,
        reason=info.reason,
        remedy=metadata.pop("remedy", ""),
        metadata=metadata,
        code=code,
    )

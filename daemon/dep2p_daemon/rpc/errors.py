"""The one place where the daemon's errors become gRPC statuses.

Every status of ours carries `google.rpc.ErrorInfo{reason, domain, metadata}`: (domain, reason) is
the machine's contract, the message is for people, and `metadata["remedy"]` says what to do.
https://google.aip.dev/193
"""

from __future__ import annotations

import secrets
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from dep2p_daemon.errors import (
    AlreadyExistsError,
    AuthenticationError,
    ConfigError,
    ConnectionClosedError,
    Dep2pError,
    DialTimeoutError,
    InvalidArgumentError,
    LocalError,
    NotFoundError,
    PeerError,
    PermissionDeniedError,
    PreconditionError,
    ProtocolNotSupportedError,
    ProtocolViolationError,
    RelayRefusedError,
    ResourceLimitError,
    StreamResetError,
    UnreachableError,
)

DOMAIN: Final = "dep2p"

MAX_MESSAGE_BYTES: Final = 1024
MAX_VALUE_BYTES: Final = 512
MAX_METADATA_BYTES: Final = 2048
"""A status travels in HTTP/2 trailers, the message twice, and the details base64 coded: more than
gRPC's soft limit of 8 KiB for all trailers, and a client would get RESOURCE_EXHAUSTED instead."""

CODES: Final[dict[type[Dep2pError], grpc.StatusCode]] = {
    Dep2pError: grpc.StatusCode.INTERNAL,
    LocalError: grpc.StatusCode.INTERNAL,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    ResourceLimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ProtocolNotSupportedError: grpc.StatusCode.FAILED_PRECONDITION,
    PeerError: grpc.StatusCode.UNAVAILABLE,
    UnreachableError: grpc.StatusCode.UNAVAILABLE,
    DialTimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    ProtocolViolationError: grpc.StatusCode.ABORTED,
    AuthenticationError: grpc.StatusCode.ABORTED,
    ConnectionClosedError: grpc.StatusCode.UNAVAILABLE,
    StreamResetError: grpc.StatusCode.ABORTED,
    # A status the circuit v2 specification does not name; the named ones are below.
    RelayRefusedError: grpc.StatusCode.UNAVAILABLE,
}
"""Class to code; a class without a row takes its nearest base's."""

RELAY_STATUSES: Final[dict[int, tuple[str, grpc.StatusCode]]] = {
    200: ("RESERVATION_REFUSED", grpc.StatusCode.RESOURCE_EXHAUSTED),
    201: ("RESOURCE_LIMIT_EXCEEDED", grpc.StatusCode.RESOURCE_EXHAUSTED),
    202: ("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED),
    203: ("CONNECTION_FAILED", grpc.StatusCode.UNAVAILABLE),
    204: ("NO_RESERVATION", grpc.StatusCode.FAILED_PRECONDITION),
    400: ("MALFORMED_MESSAGE", grpc.StatusCode.INTERNAL),
    401: ("UNEXPECTED_MESSAGE", grpc.StatusCode.INTERNAL),
}
"""The relay's answer to reason and code, one to one (circuit v2, "Status codes")."""


def code_of(error: Dep2pError) -> grpc.StatusCode:
    """Return the gRPC code of an error of ours."""
    if isinstance(error, RelayRefusedError) and error.status in RELAY_STATUSES:
        return RELAY_STATUSES[error.status][1]
    return next(CODES[base] for base in type(error).__mro__ if base in CODES)


def reason_of(error: Dep2pError) -> str:
    """Return the reason that goes out: a relay's refusal is named by its status."""
    if isinstance(error, RelayRefusedError) and error.status in RELAY_STATUSES:
        return RELAY_STATUSES[error.status][0]
    return error.reason


def to_status(error: Dep2pError) -> grpc.Status:
    """Return the status, with details, that tells a caller of `error`."""
    metadata = dict(error.metadata)
    if isinstance(error, StreamResetError | ConnectionClosedError):
        metadata["by"] = "peer" if error.remote else "local"
        if error.code is not None:
            metadata["code"] = str(error.code)
    return _status(code_of(error), reason_of(error), error.message, error.remedy, metadata)


def internal_status() -> tuple[grpc.Status, str]:
    """Return a status that says nothing of what went wrong inside, and the id to log it under."""
    error_id = secrets.token_hex(8)
    status = _status(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"internal error {error_id}",
        f"look for error_id={error_id} in the daemon's log and report it",
        {"error_id": error_id},
    )
    return status, error_id


def _status(
    code: grpc.StatusCode, reason: str, message: str, remedy: str, metadata: dict[str, str]
) -> grpc.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    if remedy:
        info.metadata["remedy"] = _cut(remedy, MAX_VALUE_BYTES)
    room = MAX_METADATA_BYTES - info.ByteSize()
    for key, value in metadata.items():
        value = _cut(value, MAX_VALUE_BYTES)
        room -= len(key.encode()) + len(value.encode()) + 8
        if room < 0:
            info.metadata["truncated"] = "true"
            break
        info.metadata[key] = value
    detail = any_pb2.Any()
    detail.Pack(info)
    return rpc_status.to_status(
        status_pb2.Status(
            code=code.value[0], message=_cut(message, MAX_MESSAGE_BYTES), details=[detail]
        )
    )


def _cut(text: str, size: int) -> str:
    """Return `text` within `size` bytes, on a character's border, showing that some is missing."""
    data = text.encode("utf-8", "replace")
    if len(data) <= size:
        return data.decode()
    return data[: size - 3].decode(errors="ignore") + "…"

"""The table of errors: every class has a code, every status its details, and all of it fits."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon import errors
from dep2p_daemon.errors import (
    ConnectionClosedError,
    Dep2pError,
    MultiaddrError,
    RelayRefusedError,
    StreamResetError,
    UnreachableError,
)
from dep2p_daemon.rpc.errors import (
    DOMAIN,
    RELAY_STATUSES,
    code_of,
    internal_status,
    to_status,
)

TRAILERS_SOFT_LIMIT = 8 * 1024


def details(status: grpc.Status) -> error_details_pb2.ErrorInfo:
    ((key, value),) = status.trailing_metadata
    assert key == "grpc-status-details-bin"
    assert isinstance(value, bytes)
    rich = status_pb2.Status.FromString(value)
    assert rich.code == status.code.value[0]
    assert rich.message == status.details
    info = error_details_pb2.ErrorInfo()
    (detail,) = rich.details
    assert detail.Unpack(info)
    return info


def all_classes(base: type[Dep2pError]) -> list[type[Dep2pError]]:
    return [base, *(found for sub in base.__subclasses__() for found in all_classes(sub))]


def make(cls: type[Dep2pError]) -> Dep2pError:
    return RelayRefusedError("no", status=999) if cls is RelayRefusedError else cls("no")


@pytest.mark.parametrize("cls", all_classes(Dep2pError))
def test_every_class_has_a_code_and_a_reason(cls: type[Dep2pError]) -> None:
    status = to_status(make(cls))
    assert status.code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    info = details(status)
    assert info.domain == DOMAIN
    assert info.reason == info.reason.upper()
    assert info.reason


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MultiaddrError("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFoundError("x"), grpc.StatusCode.NOT_FOUND),
        (errors.AlreadyExistsError("x"), grpc.StatusCode.ALREADY_EXISTS),
        (errors.PreconditionError("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ResourceLimitError("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (UnreachableError("x"), grpc.StatusCode.UNAVAILABLE),
        (errors.DialTimeoutError("x"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.ProtocolViolationError("x"), grpc.StatusCode.ABORTED),
        (StreamResetError(), grpc.StatusCode.ABORTED),
    ],
)
def test_the_codes_that_callers_rely_on(error: Dep2pError, code: grpc.StatusCode) -> None:
    assert code_of(error) is code


@pytest.mark.parametrize(
    ("number", "reason", "code"),
    [
        (200, "RESERVATION_REFUSED", grpc.StatusCode.RESOURCE_EXHAUSTED),
        (201, "RESOURCE_LIMIT_EXCEEDED", grpc.StatusCode.RESOURCE_EXHAUSTED),
        (202, "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED),
        (203, "CONNECTION_FAILED", grpc.StatusCode.UNAVAILABLE),
        (204, "NO_RESERVATION", grpc.StatusCode.FAILED_PRECONDITION),
        (400, "MALFORMED_MESSAGE", grpc.StatusCode.INTERNAL),
        (401, "UNEXPECTED_MESSAGE", grpc.StatusCode.INTERNAL),
    ],
)
def test_a_relays_statuses_map_one_to_one(number: int, reason: str, code: grpc.StatusCode) -> None:
    status = to_status(RelayRefusedError("refused", status=number))
    assert (status.code, details(status).reason) == (code, reason)
    assert details(status).metadata["status"] == str(number)


def test_the_relay_table_names_each_reason_once() -> None:
    reasons = [reason for reason, _ in RELAY_STATUSES.values()]
    assert len(set(reasons)) == len(reasons)


def test_message_remedy_and_metadata_arrive() -> None:
    error = UnreachableError("tried 2 addresses", remedy="check the firewall", peer="P", tried=2)
    status = to_status(error)
    assert status.details == "tried 2 addresses"
    assert dict(details(status).metadata) == {
        "remedy": "check the firewall",
        "peer": "P",
        "tried": "2",
    }


@pytest.mark.parametrize(("remote", "by"), [(True, "peer"), (False, "local")])
def test_a_reset_tells_its_code_and_whose_doing_it_was(remote: bool, by: str) -> None:
    info = details(to_status(StreamResetError(code=0x1008, remote=remote)))
    assert (info.metadata["code"], info.metadata["by"]) == (str(0x1008), by)
    closed = details(to_status(ConnectionClosedError("gone", code=7, remote=remote)))
    assert (closed.metadata["code"], closed.metadata["by"]) == ("7", by)


def test_an_internal_error_says_nothing_but_its_id() -> None:
    status, error_id = internal_status()
    assert status.code is grpc.StatusCode.INTERNAL
    assert status.details == f"internal error {error_id}"
    assert details(status).metadata["error_id"] == error_id


@given(
    message=st.text(max_size=4000),
    remedy=st.text(max_size=2000),
    metadata=st.dictionaries(
        st.text("abcdefghijklmnop", min_size=5, max_size=30), st.text(max_size=1500), max_size=40
    ),
)
def test_a_status_never_outgrows_the_trailers(
    message: str, remedy: str, metadata: dict[str, str]
) -> None:
    status = to_status(Dep2pError(message, remedy=remedy, **metadata))
    ((_, value),) = status.trailing_metadata
    # On the wire the details are base64, the message percent-coded.
    assert len(value) * 4 / 3 + len(status.details.encode()) * 3 < TRAILERS_SOFT_LIMIT - 256
    info = details(status)
    lost = set(metadata) - set(info.metadata)
    assert bool(lost) == ("truncated" in info.metadata)


def test_a_cut_message_shows_that_it_is_cut() -> None:
    status = to_status(Dep2pError("é" * 5000))
    assert status.details.endswith("é…")

"""The table of roles has a row for every method that the server serves, and no other."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from dep2p.v1 import (
    node_service_pb2,
    peer_service_pb2,
    relay_service_pb2,
    stream_service_pb2,
)
from dep2p_daemon.errors import PermissionDeniedError
from dep2p_daemon.rpc.roles import METHODS, Role, check_role

FILES = (
    node_service_pb2,
    peer_service_pb2,
    relay_service_pb2,
    stream_service_pb2,
    health_pb2,
    reflection_pb2,
)


def served() -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_every_method_has_a_role_and_every_role_a_method() -> None:
    assert set(METHODS) == served()


def test_every_service_file_is_looked_at() -> None:
    from pathlib import Path

    import dep2p.v1

    stubs = {path.stem for path in Path(dep2p.v1.__path__[0]).glob("*_service_pb2.py")}
    assert stubs <= {file.__name__.rpartition(".")[2] for file in FILES}


def test_reading_methods_change_nothing() -> None:
    reading = {name.rpartition("/")[2] for name, role in METHODS.items() if role is Role.READ}
    assert all(
        name.startswith(("Get", "List", "Watch", "Check", "Explain", "ServerReflection"))
        for name in reading
    )


def test_a_method_without_a_row_is_refused() -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        check_role("/dep2p.v1.NodeService/Forgotten", Role.ADMIN)
    assert caught.value.reason == "METHOD_NOT_LISTED"


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("role", list(Role))
def test_a_role_includes_those_before_it(method: str, role: Role) -> None:
    if role >= METHODS[method]:
        check_role(method, role)
    else:
        with pytest.raises(PermissionDeniedError) as caught:
            check_role(method, role)
        assert caught.value.metadata["needed"] == METHODS[method].name.lower()

"""Whether a key is registered is found out without any trace, from Flower's own way in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from flwr.proto.fleet_pb2_grpc import add_FleetServicer_to_server
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.supercore.interceptors import RpcErrorTranslationServerInterceptor
from flwr.supercore.interceptors.runtime_version_interceptor import create_fleet_runtime_version_server_interceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from client import registered
from client.keys import KEY, make_key
from client.registered import is_registered
from common.errors import FederationError
from common.privacy.keys import load_private
from server.certificates import Certificates, make_certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("north", "south"):
        (folder / name).mkdir()
        make_key(folder / name, name)
    return make_certificates(folder, ["127.0.0.1"])


@pytest.fixture(scope="module")
def address(files: Certificates) -> Iterator[str]:
    """A SuperLink's way in, with Flower's own checks, which knows north."""
    known = public_key_to_bytes(load_private(files.ca.parent / "north" / KEY).public_key())
    state = SimpleNamespace(get_node_id_by_public_key=lambda key: 7 if key == known else None)
    factory: Any = SimpleNamespace(state=lambda: state)
    interceptors = [RpcErrorTranslationServerInterceptor(), NodeAuthServerInterceptor(factory)]
    interceptors.append(create_fleet_runtime_version_server_interceptor())
    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=interceptors)
    add_FleetServicer_to_server(FleetServicer(factory, factory, True), server)
    pair = (files.server_key.read_bytes(), files.server.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(("name", "known"), [("north", True), ("south", False)])
def test_a_key_is_known_or_not(name: str, known: bool, address: str, files: Certificates) -> None:
    assert is_registered(address, files.ca.read_bytes(), files.ca.parent / name / KEY) is known


def test_a_clock_that_is_wrong_is_said(address: str, files: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    late = SimpleNamespace(now=lambda _: datetime.now(UTC) + timedelta(hours=1))
    monkeypatch.setattr(registered, "datetime", late)
    with pytest.raises(FederationError, match="set this machine's clock"):
        is_registered(address, files.ca.read_bytes(), files.ca.parent / "north" / KEY)


def test_something_else_at_that_address_is_said(files: Certificates) -> None:
    with pytest.raises(FederationError, match="is it a coordinator of this release"):
        is_registered("127.0.0.1:1", files.ca.read_bytes(), files.ca.parent / "north" / KEY)

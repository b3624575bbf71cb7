"""The clock is compared with the coordinator's by Flower's own check of signed times."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from flwr.proto.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor

from client.clock import measure_skew
from client.keys import KEY, make_key
from common.errors import FederationError
from server.certificates import Certificates, make_certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    make_key(folder, "north")
    return make_certificates(folder, ["127.0.0.1"])


@pytest.fixture(scope="module")
def address(files: Certificates) -> Iterator[str]:
    """A SuperLink's way in: TLS, and Flower's own check of keys and times; it knows no node."""
    state: Any = SimpleNamespace(state=lambda: SimpleNamespace(get_node_id_by_public_key=lambda _: None))
    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[NodeAuthServerInterceptor(state)])
    add_FleetServicer_to_server(FleetServicer(), server)  # type: ignore[abstract]
    pair = (files.server_key.read_bytes(), files.server.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("ahead_s", "accepted"),
    [(0.0, True), (2.5, True), (-100.0, True), (30.0, False), (-1000.0, False), (2000.0, False)],
)
def test_the_difference_of_clocks_is_found(ahead_s: float, accepted: bool, address: str, files: Certificates) -> None:
    key = files.ca.parent / KEY
    found = measure_skew(
        address, files.ca.read_bytes(), key, now=lambda: datetime.now(UTC) + timedelta(seconds=ahead_s)
    )
    assert found.ahead_s is not None
    assert abs(found.ahead_s - ahead_s) <= found.exact_to_s < 2
    assert found.accepted == accepted


def test_more_than_an_hour_is_said(address: str, files: Certificates) -> None:
    key = files.ca.parent / KEY
    found = measure_skew(address, files.ca.read_bytes(), key, now=lambda: datetime(2020, 1, 1, tzinfo=UTC))
    assert (found.ahead_s, found.accepted) == (None, False)


def test_who_does_not_answer_as_a_coordinator_does_is_named(files: Certificates, tmp_path: Path) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    pair = (files.server_key.read_bytes(), files.server.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        with pytest.raises(FederationError, match="UNIMPLEMENTED"):
            measure_skew(f"127.0.0.1:{port}", files.ca.read_bytes(), files.ca.parent / KEY)
    finally:
        server.stop(0).wait()

"""The runtime port on the loopback hands out tasks to who has the secret, and to nobody else."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.run_superexec import _SUPEREXEC_AUTH_METHODS
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from client.node_folder import programs
from common.ports import free_port
from common.runtime_secret import OPTION, SECRET, make_secret, secret_options
from tests.node_files import node_config
from tests.processes import wait_until


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A SuperNode's runtime port, as Flower serves it."""
    make_secret(tmp_path)
    chosen = free_port()
    state = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    app = create_app(state_factory=state, superexec_auth_secret=load_superexec_auth_secret(str(tmp_path / SECRET)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=chosen, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started, 30)
    yield chosen
    server.should_exit = True
    thread.join()


def ask(port: int, secret: bytes | None) -> object:
    interceptors: list[ProtobufClientInterceptor] = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    if secret is not None:
        interceptors.append(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_SUPEREXEC_AUTH_METHODS)
        )
    client = RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}",
        insecure=True,
        root_certificates=None,
        interceptors=interceptors,
    )
    try:
        return client.AcquireTask(AcquireTaskRequest(supported_task_types={"flwr-clientapp"}))
    finally:
        client.close()


def test_only_who_has_the_secret_is_handed_tasks(port: int, tmp_path: Path) -> None:
    assert ask(port, (tmp_path / SECRET).read_bytes()) is not None
    for wrong in (None, b"x" * 32):
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            ask(port, wrong)


def test_it_is_for_its_owner_only_and_kept(tmp_path: Path) -> None:
    make_secret(tmp_path)
    before = (tmp_path / SECRET).read_bytes()
    (tmp_path / SECRET).chmod(0o644)
    make_secret(tmp_path)
    assert len(before) == 32
    assert (tmp_path / SECRET).read_bytes() == before
    assert stat.S_IMODE((tmp_path / SECRET).stat().st_mode) == 0o600
    (tmp_path / SECRET).write_bytes(b"")  # Flower takes no empty one
    make_secret(tmp_path)
    assert (tmp_path / SECRET).read_bytes() not in (b"", before)


def test_both_programs_of_a_node_are_given_it(tmp_path: Path) -> None:
    config = node_config(tmp_path)
    for program in programs(tmp_path, config, 5):
        assert [OPTION, str(tmp_path / SECRET)] == secret_options(tmp_path) == list(program.command)[-2:]

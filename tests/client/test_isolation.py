"""The confined app: it reaches the SuperNode and nothing else, and writes to its own folders only."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import isolation, keys, own_records
from client.isolation import SOCKET, check_alone, check_possible, confined, relay, with_isolation
from client.node_config import NodeConfig
from client.secagg_record import SECAGG_RECORDS
from common import health
from common.errors import ConfigError
from common.ports import free_port
from tests.confining import can_confine
from tests.node_files import node_config
from tests.processes import PATIENCE_S

needs_bubblewrap = pytest.mark.skipif(
    not can_confine(), reason="bubblewrap is not installed, or may make no namespaces"
)

TRY = """
import json, os, socket, sys
folder, runtime, other, data = sys.argv[1:]

def reaches(address):
    try:
        with socket.create_connection(address, 5) as one:
            one.sendall(b"app")
            return one.recv(99).decode()
    except OSError as error:
        return type(error).__name__

def writes(path):
    try:
        open(path, "a").close()
        return True
    except OSError:
        return False

def reads(path):
    try:
        return open(path).read()
    except OSError:
        return None

print(json.dumps({
    "runtime": reaches(("127.0.0.1", int(runtime))),
    "other": reaches(("127.0.0.1", int(other))),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "socket file": os.path.exists(folder + "/../obeyed.sock"),
    "writes": {name: writes(os.path.join(folder, name)) for name in
               ("anchor/x", "cache/x", "flwr/x", "index/x", "ledgers/x", "secagg/x", "keys/x", "x", "node.toml",
                "approved.json", data)},
    "keys": os.listdir(folder + "/keys"),
    "record": open(data).read(),
    "rights": [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")][0],
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
}))
"""


class Listener:
    """A program on some port of this machine, which answers everybody with its name."""

    def __init__(self, name: str) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._name = name.encode()
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                one, _ = self._socket.accept()
            except OSError:
                return
            with one:
                one.sendall(one.recv(99) + b" meets " + self._name)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def node(tmp_path: Path) -> tuple[Path, NodeConfig]:
    folder, data = tmp_path / "node", tmp_path / "records.csv"
    folder.mkdir(mode=0o700)
    data.write_text("a record")
    for name in ("node.toml", "approved.json", keys.KEY):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("kept")
    return folder, with_isolation(node_config(folder, source=str(data)), "process")


@pytest.fixture
def listeners() -> Iterator[tuple[Listener, Listener]]:
    both = Listener("the SuperNode"), Listener("the coordinator")
    yield both
    for one in both:
        one.close()


@pytest.fixture
def carried(node: tuple[Path, NodeConfig], listeners: tuple[Listener, Listener]) -> Iterator[None]:
    """The relay outside, as the node's supervisor keeps it."""
    command = relay(SOCKET, f"127.0.0.1:{listeners[0].port}")
    process = subprocess.Popen(command, cwd=node[0])
    while not (node[0] / SOCKET).exists():
        assert process.poll() is None
    yield
    process.terminate()
    process.wait(30)


def tried(command: list[str], cwd: Path) -> dict[str, object]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@needs_bubblewrap
@pytest.mark.usefixtures("carried")
def test_a_confined_app_reaches_the_supernode_alone_and_writes_its_own_folders_alone(
    node: tuple[Path, NodeConfig], listeners: tuple[Listener, Listener], tmp_path: Path
) -> None:
    folder, config = node
    inside, other = free_port(), listeners[1].port
    (tmp_path / "obeyed.sock").touch()  # below /tmp, where such things are
    script = [sys.executable, "-c", TRY, str(folder), str(inside), str(other), config.data.source]
    found = tried(confined(relay(f"127.0.0.1:{inside}", SOCKET, script), folder, config), folder)
    free = tried([*script[:4], str(listeners[0].port), *script[5:]], folder)
    assert found["runtime"] == "app meets the SuperNode"
    assert found["other"] == "ConnectionRefusedError"
    assert found["interfaces"] == ["lo"]
    assert str(tmp_path).startswith(isolation.EMPTIED) is not found["socket file"]
    own = {"anchor/x", "cache/x", "flwr/x", "index/x", "ledgers/x", "secagg/x"}
    writes = found["writes"]
    assert isinstance(writes, dict)
    assert {name for name, could in writes.items() if could} == own
    assert (found["keys"], found["record"]) == ([], "a record")
    assert found["rights"] == "0" * 16
    assert int(str(found["processes"])) <= 4
    # without it, the same script does all of that
    assert free["other"] == "app meets the coordinator"
    assert free["socket file"]
    assert isinstance(free["writes"], dict)
    assert all(free["writes"].values())
    assert free["keys"] == [Path(keys.KEY).name, "x"]


def test_without_bubblewrap_a_node_that_wants_it_is_refused(
    node: tuple[Path, NodeConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="install this system's package bubblewrap"):
        check_possible(*node)
    check_possible(node[0], with_isolation(node[1], "none"))


def test_namespaces_that_cannot_be_made_are_no_reason_to_go_on(
    node: tuple[Path, NodeConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ConfigError, match=r"does not work here .*No permissions.*user\.max_user_namespaces"):
        check_possible(*node)


def test_an_unknown_isolation_is_refused(node: tuple[Path, NodeConfig]) -> None:
    with pytest.raises(ConfigError, match="expected --isolation none, process or container, got 'docker'"):
        with_isolation(node[1], "docker")


def test_a_container_for_apps_must_have_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    with pytest.raises(ConfigError, match="got eth0"):
        check_alone()
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    check_alone()


def test_the_names_that_isolation_repeats_are_those_of_their_owners() -> None:
    assert isolation.KEYS == keys.PRIVATE_KEYS
    assert {own_records.INDEX, SECAGG_RECORDS} <= set(isolation.OWN)


@pytest.mark.usefixtures("carried")
def test_a_relay_closes_what_nobody_answers_and_ends_with_its_program(node: tuple[Path, NodeConfig]) -> None:
    port = free_port()
    script = f"import socket; print(socket.create_connection(('127.0.0.1', {port})).recv(9)); raise SystemExit(3)"
    command = relay(f"127.0.0.1:{port}", str(node[0] / "none.sock")[-90:], [sys.executable, "-c", script])
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (3, "b''\n")


def test_what_does_not_serve_is_not_healthy() -> None:
    assert not health.serves(free_port(), 2.0)

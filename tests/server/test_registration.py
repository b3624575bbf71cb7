"""Letting nodes in and out: no crash loses a key. The SuperLink is a stand-in here; tests/deployment has a real one."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP

from common.errors import ConfigError
from common.privacy.keys import fingerprint, openssh
from server import control, registration
from server.coordinator_folder import NODES, Place, ServerConfig
from server.registration import PENDING, admit, remove, removed_nodes
from server.run_folder import NODES as RUN_NODES
from server.run_folder import named_nodes
from server.submission import _reach_registered


class StandIn:
    """What Flower's client does at a SuperLink, done to a file instead."""

    stopping = ApiErrorCode.RUN_ALREADY_FINISHED

    def __init__(self, path: Path) -> None:
        self._path = path

    def RegisterNode(self, request: RegisterNodeRequest) -> RegisterNodeResponse:  # noqa: N802 (Flower's name)
        with self._nodes() as nodes:
            key = request.public_key.hex()
            if key in [one["key"] for one in nodes.values()]:
                raise refusal(ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE)
            node_id = 100 + len(nodes)
            nodes[str(node_id)] = {"key": key, "status": "registered"}
        return RegisterNodeResponse(node_id=node_id)

    def UnregisterNode(self, request: UnregisterNodeRequest) -> None:  # noqa: N802 (Flower's name)
        with self._nodes() as nodes:
            if nodes.get(str(request.node_id), {}).get("status") != "registered":
                raise refusal(ApiErrorCode.NODE_NOT_FOUND)
            nodes[str(request.node_id)]["status"] = "unregistered"

    def ListNodes(self, request: ListNodesRequest) -> ListNodesResponse:  # noqa: N802 (Flower's name)
        with self._nodes() as nodes:
            listed = [NodeInfo(node_id=int(name), status=one["status"]) for name, one in nodes.items()]
        return ListNodesResponse(nodes_info=listed)

    def StopRun(self, request: StopRunRequest) -> None:  # noqa: N802 (Flower's name)
        raise refusal(self.stopping)

    def close(self) -> None:
        pass

    @contextmanager
    def _nodes(self) -> Iterator[dict[str, dict[str, str]]]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            nodes = json.loads(self._path.read_text()) if self._path.exists() else {}
            yield nodes
            self._path.write_text(json.dumps(nodes))


def refusal(code: ApiErrorCode) -> httpx.HTTPStatusError:
    """What Flower's client raises."""
    told = API_ERROR_MAP[code]
    request = httpx.Request("POST", "https://127.0.0.1")
    body = FlowerError(code, "").to_json(told.public_message)
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(int(told.http_status_code), json=body))


class CrashError(BaseException):
    """Stands for a power cut."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    there = StandIn(tmp_path / "state.json")
    monkeypatch.setattr(ControlHttpClient, "from_server_address", lambda *_, **__: there)
    made = Place(tmp_path, ServerConfig(names=["127.0.0.1"]))
    made.certificates.ca.parent.mkdir()
    made.certificates.ca.touch()
    return made


def key(place: Place, name: str) -> Path:
    path = place.folder / f"{name}.pub"
    path.write_text(openssh(ec.generate_private_key(ec.SECP384R1()).public_key()) + "\n")
    return path


def statuses(place: Place) -> dict[int, str]:
    return control.nodes_seen(place)


def test_a_node_gets_another_key_and_the_old_one_is_shut_out(place: Place) -> None:
    first = admit(place, "north", key(place, "one"))
    second = admit(place, "north", key(place, "two"), replace=True)
    assert place.nodes() == {"north": second}
    assert second.fingerprint == fingerprint((place.folder / "two.pub").read_text())
    assert statuses(place) == {first.node_id: "unregistered", second.node_id: "registered"}
    assert [(one.name, one.node_id) for one in removed_nodes(place)] == [("north", first.node_id)]
    assert admit(place, "north", place.folder / "two.pub", replace=True) == second  # typed again
    with pytest.raises(ConfigError, match="already in use"):
        admit(place, "north", place.folder / "one.pub", replace=True)
    assert place.nodes() == {"north": second}
    assert not (place.folder / PENDING).exists()


@pytest.mark.parametrize("name", ["../x", "", "a b", "north\n", "x" * 65])
def test_a_name_that_no_node_can_have_is_refused_before_the_superlink_is_asked(place: Place, name: str) -> None:
    with pytest.raises(ConfigError, match=r"in the hospital's node\.toml"):
        admit(place, name, key(place, "one"))
    assert not statuses(place)


def test_a_removed_node_is_shut_out_and_comes_back_with_a_new_key_only(place: Place) -> None:
    entry = admit(place, "north", key(place, "one"))
    remove(place, "north")
    assert statuses(place) == {entry.node_id: "unregistered"}
    assert not place.nodes()
    with pytest.raises(ConfigError, match="there is no 'north'"):
        remove(place, "north")
    with pytest.raises(ConfigError, match="already in use"):
        admit(place, "north", place.folder / "one.pub")
    assert admit(place, "north", key(place, "two")).node_id != entry.node_id


def test_a_run_that_ended_before_it_was_stopped_is_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    control.stop_run(place, 7)
    monkeypatch.setattr(StandIn, "stopping", ApiErrorCode.RUN_ID_NOT_FOUND)
    with pytest.raises(ConfigError, match="the SuperLink refused"):
        control.stop_run(place, 7)


STEPS = ("register", "_note_removed", "keep_nodes", "unregister", "unlink")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_replacement_that_crashes_is_finished_by_the_same_command(
    step: str, after: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = admit(place, "north", key(place, "one"))
    other = key(place, "two")
    owner = {"keep_nodes": Place, "unlink": Path}.get(step, registration)
    real = getattr(owner, step)

    def crash(*arguments: object, **options: object) -> None:
        if after:
            real(*arguments, **options)
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, crash)
        with pytest.raises(CrashError):
            admit(place, "north", other, replace=True)
    second = admit(place, "north", other, replace=True)
    assert place.nodes() == {"north": second}
    assert statuses(place) == {first.node_id: "unregistered", second.node_id: "registered"}
    assert not (place.folder / PENDING).exists()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["_note_removed", "unregister", "keep_nodes"])
def test_a_removal_that_crashes_is_finished_by_the_same_command(
    step: str, after: bool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = admit(place, "north", key(place, "one"))
    owner = Place if step == "keep_nodes" else registration
    real = getattr(owner, step)

    def crash(*arguments: object, **options: object) -> None:
        if after:
            real(*arguments, **options)
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, crash)
        with pytest.raises(CrashError):
            remove(place, "north")
    if place.nodes():
        remove(place, "north")
    assert statuses(place) == {entry.node_id: "unregistered"}


def test_of_nodes_let_in_at_once_none_is_lost(place: Place) -> None:
    keys = {name: key(place, name) for name in ("a", "b", "c", "d")}
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=admit, args=(place, name, path)) for name, path in keys.items()]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert set(json.loads((place.folder / NODES).read_text())) == set(keys)
    assert {one.node_id for one in place.nodes().values()} == set(statuses(place))


def test_a_resumed_run_reaches_its_nodes_by_their_keys_of_now(place: Place) -> None:
    north, _ = (admit(place, name, key(place, name)) for name in ("north", "south"))
    folder = place.folder / "run"
    folder.mkdir()
    (folder / RUN_NODES).write_text(json.dumps({name: entry.node_id for name, entry in place.nodes().items()}))
    other = admit(place, "north", key(place, "two"), replace=True)
    remove(place, "south")
    _reach_registered(place, folder)
    assert named_nodes(folder) == {other.node_id: "north"}
    assert other.node_id != north.node_id
    remove(place, "north")
    with pytest.raises(ConfigError, match="north were removed; start a new run"):
        _reach_registered(place, folder)

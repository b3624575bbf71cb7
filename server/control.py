"""What the coordinator's commands ask of its SuperLink, through Flower's own client of it (flwr is pinned for it).

Flower's command line would start a Python of its own for each question: more than a second of a processor, also every
few seconds of a run that is followed. Only a run is submitted by it, as it builds and checks the app's bundle.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.errors import ConfigError, FederationError
from common.privacy.keys import load_public
from common.supervisor import without_proxy
from server.coordinator_folder import Place

TIMEOUT_S = 120.0
UNKNOWN = "unknown"


def register(place: Place, name: str, public_key: Path) -> int:
    """Let a node in; returns Flower's id of it.

    Raises:
        ConfigError: the key is no public key, or in use already.
        FederationError: the SuperLink cannot be reached.
    """
    with _superlink(place) as superlink:
        key = public_key_to_bytes(load_public(public_key))
        return int(superlink.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)


def unregister(place: Place, node_id: int) -> None:
    """Let a node in no longer; errors as in ``register``."""
    with _superlink(place) as superlink:
        superlink.UnregisterNode(UnregisterNodeRequest(node_id=node_id))


def nodes_seen(place: Place) -> dict[int, str]:
    """``registered``, ``online``, ``offline`` or ``unregistered``, of every node that ever was, by Flower's id of it.

    Errors as in ``register``.
    """
    with _superlink(place) as superlink:
        return {node.node_id: node.status.lower() for node in superlink.ListNodes(ListNodesRequest()).nodes_info}


def run_status(place: Place, run_id: int) -> str:
    """How a run stands, in Flower's words, such as ``running`` or ``finished:completed``; errors as in ``register``."""
    with _superlink(place) as superlink:
        try:
            runs = superlink.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        except httpx.HTTPStatusError as error:
            if _code(error) == ApiErrorCode.RUN_ID_NOT_FOUND:
                return UNKNOWN
            raise
    if run_id not in runs:
        return UNKNOWN
    status = runs[run_id].status
    return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)


def stop_run(place: Place, run_id: int) -> None:
    """Stop a run, if it has not ended by itself just now; errors as in ``register``."""
    with _superlink(place) as superlink:
        try:
            superlink.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPStatusError as error:
            if _code(error) != ApiErrorCode.RUN_ALREADY_FINISHED:
                raise


def submit(place: Place, app: Path, config: Path) -> int:
    """Start a run of an app folder with a flat run configuration; returns Flower's id of the run.

    Errors as in ``register``.
    """
    return int(_flwr(place, "run", str(app), "coordinator", "--run-config", str(config))["run-id"])


@contextmanager
def _superlink(place: Place) -> Iterator[ControlHttpClient]:
    address, ca = f"127.0.0.1:{place.config.control_port}", place.certificates.ca
    try:
        with _direct():
            superlink = ControlHttpClient.from_server_address(
                address, insecure=False, root_certificates=ca.read_bytes(), interceptors=()
            )
    except OSError as error:
        raise ConfigError(
            f"expected the certificate of a CA in {ca}, it cannot be used ({error}); restore it"
        ) from error
    try:
        yield superlink
    except httpx.HTTPStatusError as error:
        told = FlowerError.from_json(error.response.text)
        raise ConfigError(f"the SuperLink refused: {told.message if told else error}"[:300]) from error
    except httpx.TimeoutException as error:
        raise FederationError("the SuperLink did not answer in time; see `fedgraft server status`") from error
    except httpx.RequestError as error:
        raise FederationError("the SuperLink cannot be reached; start it with `fedgraft server start`") from error
    finally:
        superlink.close()


@contextmanager
def _direct() -> Iterator[None]:
    """No proxy in the environment for a while, which is where Flower's client looks for one when it is made."""
    before = dict(os.environ)
    os.environ.update(without_proxy(os.environ))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _code(error: httpx.HTTPStatusError) -> int | None:
    told = FlowerError.from_json(error.response.text)
    return None if told is None else told.code


def _flwr(place: Place, *arguments: str) -> dict[str, Any]:
    environment = place.environment()
    program = shutil.which("flwr", path=environment["PATH"])
    if program is None:
        raise ConfigError("expected the command flwr beside Python, but there is none; reinstall fedgraft")
    try:
        answer = subprocess.run(
            [program, *arguments, "--format", "json"],
            env=environment,
            cwd=place.folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FederationError("the SuperLink did not answer in time; see `fedgraft server status`") from None
    try:
        said = json.loads(answer.stdout[answer.stdout.index("{") :])
    except ValueError:
        said = {}
    if answer.returncode == 0 and said.get("success"):
        return dict(said)
    words = str(said.get("error-message") or answer.stderr or answer.stdout).strip().splitlines() or ["it said nothing"]
    if any("refused" in line.lower() or "connect" in line.lower() for line in words):
        raise FederationError("the SuperLink cannot be reached; start it with `fedgraft server start`")
    raise ConfigError(f"the SuperLink refused: {' '.join(word.strip() for word in words)[:300]}")

"""What the coordinator's commands ask of its SuperLink, through Flower's own command line."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError, FederationError
from server.place import Place

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Seen:
    """How the SuperLink sees a node.

    Attributes:
        status: ``registered``, ``online``, ``offline`` or ``unregistered``.
        since: when it became so, as Flower says it.
    """

    status: str
    since: str


def register(place: Place, name: str, public_key: Path) -> int:
    """Let a node in; returns Flower's id of it.

    Raises:
        ConfigError: the key is no public key, or in use already.
        FederationError: the SuperLink cannot be reached.
    """
    return int(_flwr(place, "supernode", "register", str(public_key), "--name", name)["node-id"])


def unregister(place: Place, node_id: int) -> None:
    """Let a node in no longer; errors as in ``register``."""
    _flwr(place, "supernode", "unregister", str(node_id))


def nodes_seen(place: Place) -> dict[int, Seen]:
    """All registered nodes by Flower's id; errors as in ``register``."""
    found = _flwr(place, "supernode", "list")["nodes"]
    return {int(one["node-id"]): Seen(str(one["status"]).lower(), str(one.get("elapsed", ""))) for one in found}


def submit(place: Place, app: Path, config: Path) -> int:
    """Start a run of an app folder with a flat run configuration; returns Flower's id of the run."""
    return int(_flwr(place, "run", str(app), "coordinator", "--run-config", str(config))["run-id"])


def run_status(place: Place, run_id: int) -> str:
    """How a run stands, in Flower's words, such as ``running`` or ``finished:completed``."""
    found = _flwr(place, "list", "coordinator", "--run-id", str(run_id))["runs"]
    return str(found[0]["status"]) if found else "unknown"


def stop_run(place: Place, run_id: int) -> None:
    """Stop a run."""
    _flwr(place, "stop", str(run_id), "coordinator")


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

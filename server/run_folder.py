"""The run folder: which run lives in it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context

from common import durable, paths
from common.config import RunConfig, config_digest, dump_toml, load_config
from common.errors import ConfigError
from common.locks import lock
from server.coordinator_folder import folder_of_run

CONFIG = "config.toml"
FAILURE = "failure.json"
IDENTITY = "run.json"
NODES = "nodes.json"
LOCK = "lock"


def run_folder(context: Context) -> Path:
    """Where a ServerApp keeps its run: told by the process around it, never by a message.

    Args:
        context: of the ServerApp; an in-process engine names the folder in its ``node_config``.
    """
    own, home = context.node_config.get("run-folder"), paths.server_folder()
    if own is None and home is not None:
        return folder_of_run(home, context.run_id)
    folder = Path(str(own)) if own else paths.run_folder(context.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def named_nodes(folder: Path) -> dict[int, str] | None:
    """The nodes that a deployed run may reach, Flower's id to name; None in simulations, which reach all.

    Raises:
        ConfigError: the file that lists them is damaged.
    """
    path = folder / NODES
    if not path.exists():
        return None
    try:
        return {int(node_id): str(name) for name, node_id in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"expected the nodes of a run in {path}, got a damaged file; submit the run anew") from error


def expected_nodes(context: Context) -> int | None:
    """How many nodes an in-process engine plays, which may be fewer than configured; None if unsaid."""
    nodes = context.node_config.get("nodes")
    return None if nodes is None else int(nodes)


def last_round(context: Context) -> int | None:
    """The round after which an in-process engine ends the run, which may be before the last planned; None if unsaid."""
    round_ = context.node_config.get("last-round")
    return None if round_ is None else int(round_)


@contextmanager
def alone_in(folder: Path, timeout_s: float = 120.0) -> Iterator[None]:
    """Keep every other server app out of a run's folder; one that lost its SuperLink takes a while to end.

    Raises:
        ConfigError: another one stays.
    """
    with (folder / LOCK).open("a") as file:
        if not lock(file.fileno(), timeout_s):
            raise ConfigError(
                f"expected to be alone in {folder}, another server app is at work there; stop it, then resume"
            )
        yield


def is_held(folder: Path) -> bool:
    """Whether a server app is at work in a run's folder."""
    with (folder / LOCK).open("a") as file:
        return not lock(file.fileno())


def keep_config(folder: Path, config: RunConfig) -> None:
    """Write a run's configuration into its folder, unless what started it did: ``flwr run`` alone does not.

    Raises:
        ConfigError: the run in that folder was started with another one, or the file was changed since.
    """
    path = folder / CONFIG
    if not path.exists():
        durable.write_bytes(path, dump_toml(config).encode())
    elif config_digest(load_config(path)) != config_digest(config):
        raise ConfigError(
            f"the configuration differs from the one that {folder} was started with; use that one, or another folder"
        )
    _identity(folder, config)
    check_unchanged(folder, config)


def check_unchanged(folder: Path, config: RunConfig) -> None:
    """Make sure that a folder's configuration is the one that its run began with.

    Raises:
        ConfigError: its file was changed since.
    """
    began = _identity(folder, None).get("config_sha256") if (folder / IDENTITY).exists() else None
    if began is not None and began != config_digest(config):
        raise ConfigError(
            f"{folder / CONFIG} was changed since its run began; put it back as it was, or start a new run with it"
        )


def check_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    """Make sure that a run goes on with what it began with, or keep what that is.

    Args:
        folder: of the run.
        inputs: what to call a thing -> what it is, a digest say.

    Raises:
        ConfigError: one of them is another.
    """
    facts = _identity(folder, None)
    began = facts.setdefault("inputs", dict(inputs))
    changed = [name for name, value in inputs.items() if began.get(name) != value]
    if changed:
        raise ConfigError(
            f"expected {' and '.join(changed)} to be what the run in {folder} began with, found a change; put things "
            "back as they were, or start a new run"
        )
    durable.write_json(folder / IDENTITY, facts)


def run_identity(folder: Path) -> str:
    """Our own id of the run in a folder, made on first use; Flower's changes when a run is resumed.

    Raises:
        ConfigError: the file that holds it is damaged.
    """
    return str(_identity(folder, None)["run_id"])


def _identity(folder: Path, config: RunConfig | None) -> dict[str, Any]:
    path = folder / IDENTITY
    if not path.exists():
        began = {} if config is None else {"config_sha256": config_digest(config)}
        durable.write_json(path, {"run_id": uuid.uuid4().hex, **began})
    try:
        facts = json.loads(path.read_text())
        return {**facts, "run_id": str(facts["run_id"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"expected the id of a run in {path}, got a damaged file; restore it from a backup"
        ) from error

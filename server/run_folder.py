"""The run folder: which run lives in it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from flwr.app import Context

from common import durable, places
from common.config import RunConfig, config_digest, dump_toml, load_config
from common.errors import ConfigError

CONFIG = "config.toml"
FAILURE = "failure.json"
IDENTITY = "run.json"


def run_folder(context: Context) -> Path:
    """Where a ServerApp keeps its run: told by the process around it, never by a message.

    Args:
        context: of the ServerApp; an in-process engine names the folder in its ``node_config``.
    """
    own = context.node_config.get("run-folder")
    folder = Path(str(own)) if own else places.run_folder(context.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def expected_nodes(context: Context) -> int | None:
    """How many nodes an in-process engine plays, which may be fewer than configured; None if unsaid."""
    nodes = context.node_config.get("nodes")
    return None if nodes is None else int(nodes)


def keep_config(folder: Path, config: RunConfig) -> None:
    """Write a run's configuration into its folder, unless what started it did: ``flwr run`` alone does not.

    Raises:
        ConfigError: the run in that folder was started with another one.
    """
    path = folder / CONFIG
    if not path.exists():
        durable.write_bytes(path, dump_toml(config).encode())
    elif config_digest(load_config(path)) != config_digest(config):
        raise ConfigError(
            f"the configuration differs from the one that {folder} was started with; use that one, or another folder"
        )


def run_identity(folder: Path) -> str:
    """Our own id of the run in a folder, made on first use; Flower's changes when a run is resumed.

    Raises:
        ConfigError: the file that holds it is damaged.
    """
    path = folder / IDENTITY
    if not path.exists():
        durable.write_json(path, {"run_id": uuid.uuid4().hex})
    try:
        return str(json.loads(path.read_text())["run_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"expected the id of a run in {path}, got a damaged file; restore it from a backup"
        ) from error

"""Where fedgraft keeps files of its own."""

from __future__ import annotations

import math
import os
from pathlib import Path

from common.errors import ConfigError

RUN_FOLDER = "FEDGRAFT_RUN_FOLDER"
NODE_FOLDER = "FEDGRAFT_NODE"
SERVER_FOLDER = "FEDGRAFT_SERVER"
CACHE = "FEDGRAFT_CACHE"
CACHE_GIB = "FEDGRAFT_CACHE_GIB"
DEFAULT_CACHE_GIB = 50.0


def cache_folder() -> Path:
    """The user's own cache: ``$FEDGRAFT_CACHE``, else ``fedgraft`` in the user's cache folder."""
    if folder := os.environ.get(CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedgraft"


def cache_bytes() -> int:
    """How large the feature cache may grow: ``$FEDGRAFT_CACHE_GIB``, else 50 GiB.

    Raises:
        ConfigError: the variable is no positive number.
    """
    text = os.environ.get(CACHE_GIB, "")
    try:
        gib = float(text or DEFAULT_CACHE_GIB)
    except ValueError:
        gib = math.nan
    if not 0 < gib < math.inf:
        raise ConfigError(f"expected a number of GiB above 0 in {CACHE_GIB}, got {text!r}; correct or unset it")
    return int(gib * 2**30)


def run_folder(run_id: int) -> Path:
    """The folder of a run that Flower's runtime plays: ``$FEDGRAFT_RUN_FOLDER``, else one by Flower's run id.

    The variable is inherited from the command that started the run; no message can set it.
    """
    if folder := os.environ.get(RUN_FOLDER):
        return Path(folder)
    return cache_folder() / "runs" / f"flwr-{run_id}"


def node_folder() -> Path | None:
    """The folder of the real node that this process works for, ``$FEDGRAFT_NODE``; None where it works for none.

    The variable is inherited from the operator's own command; no message can set it.
    """
    folder = os.environ.get(NODE_FOLDER)
    return Path(folder) if folder else None


def server_folder() -> Path | None:
    """The folder of the coordinator that this process works for, ``$FEDGRAFT_SERVER``; None where it works for none."""
    folder = os.environ.get(SERVER_FOLDER)
    return Path(folder) if folder else None


def home_folder(named: Path | None, variable: str, usual: str) -> Path:
    """The folder that an operator's command works in.

    Args:
        named: by an option.
        variable: of the environment, which names it otherwise.
        usual: its name in the user's home, where neither does.
    """
    folder = named or os.environ.get(variable)
    return Path(folder).expanduser().resolve() if folder else Path.home() / usual

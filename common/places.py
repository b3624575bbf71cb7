"""Where fedgraft keeps files of its own."""

from __future__ import annotations

import os
from pathlib import Path

RUN_FOLDER = "FEDGRAFT_RUN_FOLDER"
CACHE = "FEDGRAFT_CACHE"


def cache_folder() -> Path:
    """The user's own cache: ``$FEDGRAFT_CACHE``, else ``fedgraft`` in the user's cache folder."""
    if folder := os.environ.get(CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedgraft"


def run_folder(run_id: int) -> Path:
    """The folder of a run that Flower's runtime plays: ``$FEDGRAFT_RUN_FOLDER``, else one by Flower's run id.

    The variable is inherited from the command that started the run; no message can set it.
    """
    if folder := os.environ.get(RUN_FOLDER):
        return Path(folder)
    return cache_folder() / "runs" / f"flwr-{run_id}"

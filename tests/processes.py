"""Watching, from tests, the processes that a run starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

PATIENCE_S = 300


def left_behind(run_folder: Path) -> list[str]:
    """Name the processes that inherited this run's folder, other than our own children that ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDGRAFT_RUN_FOLDER") == str(run_folder):
                found.append(" ".join(process.cmdline()[:3]))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_S, look_s: float = 0.01) -> bool:
    """Wait for something to become true, looking after each pause; tell whether it did."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(look_s)
    return bool(condition())


def lines_in(path: Path) -> int:
    """Count the complete lines of a file that may not be there yet."""
    return path.read_text().count("\n") if path.exists() else 0

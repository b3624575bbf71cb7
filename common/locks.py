"""Locks that end with the process which holds them, however it ends."""

from __future__ import annotations

import fcntl
import time

POLL_S = 0.05


def lock(descriptor: int, timeout_s: float = 0.0) -> bool:
    """Take the exclusive lock of an open file or folder, waiting for it if need be; False where another keeps it.

    Args:
        descriptor: closing it lets go.
        timeout_s: how long to wait.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)

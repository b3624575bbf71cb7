"""Locks that end with the process which holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError

POLL_S = 0.05
PATIENCE_S = 30.0


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


@contextmanager
def alone(path: Path, timeout_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of a file, which is made for that and stays empty, while something beside it is changed.

    Raises:
        ConfigError: another process holds it too long, or the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigError(f"could not write {path}: {error.strerror}; check the folder's owner and mode") from error
    try:
        if not lock(descriptor, timeout_s):
            raise ConfigError(f"expected to be alone with {path}, another command holds it; wait for its end")
        yield
    finally:
        os.close(descriptor)

"""When the coordinator last answered this node: the time of an empty file, which the SuperNode touches."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

CONTACT = "last-contact"
NOTE_EVERY_S = 10.0

Answer = TypeVar("Answer")


def noting(receive: Callable[[], Answer], folder: Path) -> Callable[[], Answer]:
    """Ask for messages as before, and note that an answer came, at most every ten seconds."""
    noted = -NOTE_EVERY_S

    def ask() -> Answer:
        nonlocal noted
        answer = receive()
        if time.monotonic() - noted >= NOTE_EVERY_S:
            with suppress(OSError):  # a full disk is found elsewhere
                (folder / CONTACT).touch(mode=0o600)
            noted = time.monotonic()
        return answer

    return ask


def last_contact(folder: Path) -> datetime | None:
    """When the coordinator last answered, to ten seconds, UTC; None where it never did."""
    try:
        return datetime.fromtimestamp((folder / CONTACT).stat().st_mtime, UTC)
    except OSError:
        return None

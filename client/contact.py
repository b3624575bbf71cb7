"""The node's contact with its coordinator: when it last answered, and that the node goes on saying that it is there.

The time is that of an empty file, which the SuperNode touches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

CONTACT = "last-contact"
NOTE_EVERY_S = 10.0

Answer = TypeVar("Answer")
log = logging.getLogger("fedgraft.node")


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


def enduring(beat: Callable[[], bool]) -> Callable[[], bool]:
    """A heartbeat that counts as missed, and is soon repeated, whatever goes wrong with it.

    Flower's thread ends with an error that it does not expect; the node would go on asking for messages, and be away
    in the coordinator's eyes for ever.
    """

    def endured() -> bool:
        try:
            return beat()
        except Exception as error:
            log.warning("the coordinator did not take a heartbeat (%s); it is repeated", type(error).__name__)
            return False

    return endured

"""How a process begins that was forked by a simulation: it belongs to it, and ends with it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from common.supervisor import end_with_parent


def belong_to(parent: int) -> None:
    """End with the process that forked this one, by whatever blow, and leave Ctrl-C to it."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def not_interrupted() -> Iterator[None]:
    """Fork within this: a Ctrl-C waits until the new process, too, knows what to do about it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

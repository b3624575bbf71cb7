"""Ledgers kept open between the rounds of a simulation: opening one costs about as much as a round's two transactions.

A deployed node opens its ledger for each message, so that nothing it relies on is older than the message.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from client.ledger import Ledger

MOST_OPEN = 1024


def room_for_files() -> int:
    """How many ledgers may stay open: half of what the process may open at all, and never more than ``MOST_OPEN``."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if allowed == resource.RLIM_INFINITY else min(MOST_OPEN, allowed // 2)


class OpenLedgers:
    """As many ledgers as there is room for, by name; the others are closed after each use. Use it as a context manager.

    Args:
        room: how many stay open.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._open: dict[str, Ledger] = {}

    @contextmanager
    def borrow(self, name: str, open_ledger: Callable[[], Ledger]) -> Iterator[Ledger]:
        """Lend the ledger of this name, opening it where it is not open.

        One that raised while it was lent is closed, and read anew from its file when it is wanted next.
        """
        ledger = self._open.pop(name, None) or open_ledger()
        try:
            yield ledger
        except BaseException:
            ledger.close()
            raise
        if len(self._open) < self._room:
            self._open[name] = ledger
        else:
            ledger.close()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all."""
        self.close()

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._open.popitem()[1].close()

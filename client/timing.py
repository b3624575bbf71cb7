"""When an answer leaves: at once, or at a moment that does not depend on the records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_s(took_s: float, interval_s: float) -> float:
    """How long an answer that took so long has to wait: to the next multiple of the interval, which is 0 for none.

    >>> wait_s(0.25, 2.0), wait_s(2.5, 2.0), wait_s(2.0, 2.0), wait_s(0.25, 0.0)
    (1.75, 1.5, 0.0, 0.0)
    """
    if interval_s <= 0:
        return 0.0
    return max(0.0, max(1, math.ceil(took_s / interval_s)) * interval_s - took_s)


class Pad:
    """Holds an answer back. The interval is set once the policy is known, which is before a record is read."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.interval_s = 0.0
        self._clock, self._sleep = clock, sleep
        self._began = clock()

    def hold(self) -> float:
        """Wait until the answer may leave; returns how long the work took, in seconds."""
        took_s = self._clock() - self._began
        self._sleep(wait_s(took_s, self.interval_s))
        return took_s

"""How often a node looks for messages: several times a second during a run, once a second when nobody asks.

Each look is a call that is signed, sent and answered; hundreds of idle nodes would keep a coordinator busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable

ASKED_S, IDLE_S = 0.2, 1.0
LINGER_S = 10.0  # a round of a few nodes takes two or three seconds


class Pace:
    """The wait between two looks.

    Args:
        now: a clock that goes on steadily, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._quick_until = -float("inf")

    def asked(self) -> None:
        """A message came; more will follow soon."""
        self._quick_until = self._now() + LINGER_S

    def wait_s(self, usual_s: float) -> float:
        """Seconds to wait now, at most the usual ones."""
        return min(usual_s, ASKED_S if self._now() < self._quick_until else IDLE_S)

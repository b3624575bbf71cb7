"""Calls that are repeated while the other side fails for reasons of its own: its disk is busy, its database locked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import httpx

PAUSE_S = 1.0

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def patient(
    call: Callable[Given, Answer], pause_s: float = PAUSE_S, tries: float = math.inf
) -> Callable[Given, Answer]:
    """A call that is repeated while the answer is a server error of HTTP; for what nothing goes on without.

    Flower repeats what could not be delivered, and gives up at any answer of 500: its executor ends, and with it the
    server app, and the thread that says that an app is alive.
    """

    def again(*arguments: Given.args, **options: Given.kwargs) -> Answer:
        left = tries
        while True:
            left -= 1
            try:
                return call(*arguments, **options)
            except httpx.HTTPStatusError as error:
                if left < 1 or not error.response.is_server_error:
                    raise
                time.sleep(pause_s)

    return again

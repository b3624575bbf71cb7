"""Work in steps: one piece of it goes from step to step, or many pieces take each step together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Result = TypeVar("Result")
Steps = Generator[None, None, Result]


def to_the_end(steps: Steps[Result]) -> Result:
    """Take all steps, one after the other."""
    return together([steps])[0]


def one_step(work: Callable[[], Result]) -> Steps[Result]:
    """Work of a single step."""
    yield
    return work()


def together(pieces: Iterable[Steps[Result]]) -> list[Result]:
    """Take the first step of all pieces, then the second of all, and so on.

    A processor that has just done a step for one piece has its code and tables at hand for the next piece: small steps
    of many pieces take half the time that they take when each piece goes through all of its steps by itself.

    Returns:
        Their results, in their order.

    Raises:
        Exception: what a piece raised; the others are closed where they are.
    """
    running = dict(enumerate(pieces))
    results: dict[int, Result] = {}
    try:
        while running:
            for index, steps in list(running.items()):
                try:
                    next(steps)
                except StopIteration as end:
                    results[index] = end.value
                    del running[index]
    finally:
        for steps in running.values():
            steps.close()
    return [results[index] for index in sorted(results)]

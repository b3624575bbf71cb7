"""What the accountant has worked out, by function and arguments; perhaps in another process of ours."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")
Question = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]
Answers = dict[Question, float]

MOST = 8192

_answers: Answers = {}
_expected: list[Callable[[], Answers]] = []
_asking = threading.Lock()


def keep(function: Callable[P, float]) -> Callable[P, float]:
    """Have a function's answers kept, the newest ``MOST`` of all; what it raises is not."""

    @wraps(function)
    def answer(*args: P.args, **kwargs: P.kwargs) -> float:
        question = (function.__qualname__, args, tuple(sorted(kwargs.items())))
        with _asking:
            while question not in _answers and _expected:
                _remember(_expected.pop(0)())
        value = _answers.get(question)
        if value is None:
            value = function(*args, **kwargs)
            with _asking:
                _remember({question: value})
        return value

    return answer


def _remember(more: Answers) -> None:
    _answers.update(more)
    for oldest in list(itertools.islice(_answers, max(0, len(_answers) - MOST))):
        del _answers[oldest]


def answers() -> Answers:
    """All that is known in this process."""
    return dict(_answers)


def expect(others: Callable[[], Answers]) -> None:
    """Ask another process before anything is worked out here that is not known.

    Args:
        others: waits for the answers of that process, which computes them with the same functions; empty where it
            found none. Who is told of first is asked first, each once.
    """
    _expected.append(others)


def hear() -> None:
    """Take all that is expected; to be done before this process forks, as two cannot take the same answers."""
    with _asking:
        while _expected:
            _remember(_expected.pop(0)())


def expect_nothing() -> None:
    """Ask no other process any more."""
    _expected.clear()


def _forked() -> None:
    global _asking
    _asking = threading.Lock()  # somebody over there may hold it
    expect_nothing()


os.register_at_fork(after_in_child=_forked)

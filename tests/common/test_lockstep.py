"""Pieces of work that take their steps together, and what becomes of them when one fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from common.lockstep import Asked, Steps, one_step, to_the_end, together


def piece(name: str, steps: int, seen: list[str], fails: bool = False) -> Steps[str]:
    try:
        for step in range(steps):
            seen.append(f"{name}{step}")
            yield None
        if fails:
            raise ValueError(name)
    finally:
        seen.append(f"{name} over")
    return name.upper()


def test_each_step_is_taken_by_all_before_the_next_and_results_keep_their_order() -> None:
    seen: list[str] = []
    assert together([piece("a", 2, seen), piece("b", 0, seen), piece("c", 1, seen)]) == ["A", "B", "C"]
    assert seen == ["a0", "b over", "c0", "a1", "c over", "a over"]


def test_one_piece_alone_takes_all_of_its_steps() -> None:
    seen: list[str] = []
    assert to_the_end(piece("a", 3, seen)) == "A"
    assert seen == ["a0", "a1", "a2", "a over"]
    assert to_the_end(one_step(lambda: 5)) == 5
    assert together([]) == []


def test_when_one_fails_the_others_are_closed_where_they_are() -> None:
    seen: list[str] = []
    with pytest.raises(ValueError, match="b"):
        together([piece("a", 3, seen), piece("b", 1, seen, fails=True), piece("c", 3, seen)])
    assert seen == ["a0", "b0", "c0", "a1", "b over", "a over", "c over"]


class Doubling:
    """Doubles numbers, refuses 13, and remembers what it was asked together."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.seen.append(list(numbers))
        if 13 in numbers:
            raise ValueError("13 is refused")
        return [2 * number for number in numbers]


def asking(question: int, work: Doubling) -> Steps[str]:
    try:
        answer: int = yield Asked(work, question)
    except ValueError as error:
        return str(error)
    return str(answer)


def test_what_several_ask_for_is_done_at_once() -> None:
    one, other = Doubling(), Doubling()
    assert together([asking(1, one), asking(5, other), asking(2, one)]) == ["2", "10", "4"]
    assert (one.seen, other.seen) == ([[1, 2]], [[5]])


def test_a_question_that_fails_is_the_askers_own_failure() -> None:
    work = Doubling()
    assert together([asking(1, work), asking(13, work), asking(2, work)]) == ["2", "13 is refused", "4"]
    assert work.seen == [[1, 13, 2], [1], [13], [2]]

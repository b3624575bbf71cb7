"""Answers of the accountant that are kept, and those that another process gives."""

from __future__ import annotations

import os

import pytest

from common.errors import ConfigError
from common.privacy import known


@pytest.fixture(autouse=True)
def own_answers(monkeypatch):
    monkeypatch.setattr(known, "_answers", {})
    monkeypatch.setattr(known, "_expected", [])


@pytest.fixture
def asked():
    return []


@pytest.fixture
def half(asked):
    @known.keep
    def half(value: float, *, of: int = 2) -> float:
        asked.append(value)
        if value < 0:
            raise ConfigError("expected no less than 0")
        return value / of

    return half


def test_an_answer_is_worked_out_once_for_each_question(half, asked):
    assert [half(3.0), half(3.0), half(3.0, of=3), half(0.0), half(0.0)] == [1.5, 1.5, 1.0, 0.0, 0.0]
    assert asked == [3.0, 3.0, 0.0]


def test_what_is_refused_is_refused_again(half, asked):
    for _ in range(2):
        with pytest.raises(ConfigError):
            half(-1.0)
    assert asked == [-1.0, -1.0]


def test_only_the_newest_answers_are_kept(half, asked, monkeypatch):
    monkeypatch.setattr(known, "MOST", 3)
    for value in (1.0, 2.0, 3.0, 4.0, 4.0, 1.0):
        half(value)
        assert len(known.answers()) <= 3
    assert asked == [1.0, 2.0, 3.0, 4.0, 1.0]


def test_as_many_are_kept_as_may_be(half, monkeypatch):
    monkeypatch.setattr(known, "MOST", 10)
    for count in range(1, 10):
        half(float(count))
        assert len(known.answers()) == count
    (name, _, nothing), *_ = known.answers()
    known.expect(lambda: {(name, (float(value),), nothing): 0.0 for value in range(100, 105)})
    assert (half(104.0), len(known.answers())) == (0.0, 10)


def test_others_are_asked_in_their_order_and_only_for_what_is_not_known(half, asked):
    half(1.0)
    (question,) = known.answers()
    waited = []

    def other(name, value, answer):
        def answers():
            waited.append(name)
            return {(question[0], (value,), ()): answer}

        return answers

    known.expect(other("first", 5.0, 2.5))
    known.expect(other("second", 7.0, 3.5))
    assert (half(1.0), waited) == (0.5, [])
    assert (half(5.0), waited) == (2.5, ["first"])
    assert (half(9.0), waited) == (4.5, ["first", "second"])
    assert (half(7.0), asked) == (3.5, [1.0, 9.0])


def test_nobody_is_asked_any_more(half, asked):
    known.expect(lambda: pytest.fail("nobody is there"))
    known.expect_nothing()
    assert (half(2.0), asked) == (1.0, [2.0])


def test_all_is_heard_before_a_fork_and_a_forked_process_asks_nobody(half, asked):
    half(1.0)
    ((name, _, nothing),) = known.answers()
    known.expect(lambda: {(name, (6.0,), nothing): 3.0})
    known.hear()
    known.expect(lambda: pytest.fail("not from over there"))
    child = os.fork()
    if child == 0:
        os._exit(0 if (half(6.0), half(8.0)) == (3.0, 4.0) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (half(6.0), asked) == (3.0, [1.0])

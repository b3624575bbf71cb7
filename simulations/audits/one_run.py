"""Bounds on epsilon from one training run, in which each of many canaries took part by the toss of a fair coin.

The attacker guesses the tosses, and may abstain where it is unsure. Privacy bounds how many of its guesses are right,
however the canaries' scores depend on each other: one head is enough, and several heads with fresh canaries count as
one run with all of them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from common.errors import ConfigError
from simulations.audits.findings import Vector
from simulations.audits.trade_offs import Family, TradeOff

PAST_BEST = 0.75  # a plan stops at a number of guesses that shows so little of what fewer show
_CEILING = 30.0  # of epsilon


def one_run(guesses_correct: int, guesses: int, canaries: int, delta: float, confidence: float) -> float:
    """Bound epsilon by the number of right guesses under (epsilon, delta)-DP.

    Args:
        guesses_correct: how many guesses were right.
        guesses: how many were made, a number fixed before the scores were seen.
        canaries: how many tosses there were, at least as many.
        delta: of the promise, 0 <= delta < 1.
        confidence: one-sided, 0 < confidence < 1.

    Returns:
        A lower bound on epsilon at ``delta``, >= 0.

    Guarantees:
        For an (epsilon, delta)-DP mechanism the bound exceeds epsilon with probability at most 1 - confidence.

    Raises:
        ConfigError: counts that cannot be, or guesses too few for the confidence.

    Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2 and appendix D.

    >>> round(one_run(100, 100, 100, 0.0, 0.95), 2)
    3.49
    """
    _check(guesses_correct, guesses, canaries, confidence)
    _check_enough(one_run_p_value(guesses, guesses, canaries, 0.0, delta), guesses, canaries, confidence, delta)
    low, high = 0.0, _CEILING
    if one_run_p_value(guesses_correct, guesses, canaries, low, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = one_run_p_value(guesses_correct, guesses, canaries, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def can_show(canaries: int, delta: float, confidence: float, *, family: bool) -> bool:
    """Whether guesses on so many canaries that are all right would show an epsilon of zero or more.

    Args:
        canaries: how many tosses there are.
        delta: of the promise.
        confidence: one-sided.
        family: whether the mechanism is supposed to be one of a family, so that delta makes nothing likely by itself.
    """
    if canaries < least_guesses(confidence):
        return False
    return family or one_run_p_value(canaries, canaries, canaries, 0.0, delta) <= 1 - confidence


def least_guesses(confidence: float) -> int:
    """The fewest guesses that a plan makes; one more than coins must fall right for the confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(0.5)) + 1


@lru_cache(maxsize=64)
def canaries_needed(delta: float, confidence: float) -> int | None:
    """The least number of canaries on which right guesses alone show something, or None: no number is enough.

    Right guesses on n canaries have probability 2^-n by chance, and up to about 4 delta by the failure that delta
    allows, whatever n.

    >>> canaries_needed(1e-5, 0.9999), canaries_needed(1e-3, 0.9999)
    (15, None)
    """
    least = least_guesses(confidence)
    counts = range(least, least + 64)  # beyond these, chance is nothing beside delta
    return next((count for count in counts if can_show(count, delta, confidence, family=False)), None)


def one_run_p_value(guesses_correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Bound the probability of so many right guesses, or more, under (epsilon, delta)-DP.

    They exceed a binomial number of successes, each of probability e^epsilon / (1 + e^epsilon), by an amount whose mean
    is at most 2 delta a canary.
    """
    accuracy = float(expit(epsilon))
    beyond = float(binom.sf(guesses_correct - 1, guesses, accuracy))
    missing = np.arange(1, guesses_correct + 1)  # P[v > W >= v - i], for each i
    shortfall = binom.cdf(guesses_correct - 1, guesses, accuracy) - binom.cdf(
        guesses_correct - 1 - missing, guesses, accuracy
    )
    steepest = float((shortfall / missing).max(initial=0.0))
    return min(1.0, beyond + 2 * canaries * delta * steepest)


def one_run_fdp(guesses_correct: int, guesses: int, canaries: int, family: Family, confidence: float) -> float:
    """Bound epsilon by the number of right guesses, supposing that the mechanism is one of a family.

    Args:
        guesses_correct: how many guesses were right.
        guesses: how many were made, a number fixed before the scores were seen.
        canaries: how many tosses there were, at least as many.
        family: of trade-off curves, such as ``trade_offs.sampled_gaussian_family``; it knows delta.
        confidence: one-sided, 0 < confidence < 1.

    Returns:
        A lower bound on epsilon at the family's delta, >= 0.

    Guarantees:
        If the mechanism tells no more than the family's curve at some level, the bound exceeds that level's epsilon
        with probability at most 1 - confidence.

    Raises:
        ConfigError: counts that cannot be, or guesses too few for the confidence.

    Source: Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235.
    """
    _check(guesses_correct, guesses, canaries, confidence)
    _check_enough(0.5**guesses, guesses, canaries, confidence, 0.0)
    return family.greatest(lambda curve: is_refuted(guesses_correct, guesses, canaries, curve, 1 - confidence))


def is_refuted(guesses_correct: int, guesses: int, canaries: int, curve: TradeOff, error: float) -> bool:
    """Whether so many right guesses, or more, have a probability of at most ``error`` under the curve.

    Of a random canary, let r(i) be the probability that its guess is right while at least i are, and h(i) that its
    guess is wrong while at least i are right. The curve makes h(i) at least as large as the false positive rate whose
    power is r(i + 1). Down from the tail, which is supposed to have probability ``error``, all probabilities follow
    from that; the tail cannot have it if they exceed one.
    """
    right = error * guesses_correct / canaries
    wrong = error * (guesses - guesses_correct) / canaries
    for count in range(guesses_correct - 1, -1, -1):
        least = max(wrong, float(curve.inverse(np.asarray(min(right, 1.0)))))
        right += count / (guesses - count) * (least - wrong)
        wrong = least
        if right + wrong > guesses / canaries:
            return True
    return False


def count_correct(scores: Vector, included: Vector, guesses: int) -> int:
    """Guess the sign of the scores that are farthest from zero, and count what is right.

    Args:
        scores: log-likelihood ratios, or any centred score that is larger for "took part", shape (m,).
        included: which canaries took part, 0 or 1, shape (m,).
        guesses: how many to make.
    """
    surest = np.argsort(-np.abs(scores), kind="stable")[:guesses]
    return int(((scores[surest] > 0) == (included[surest] > 0.5)).sum())


def plan_guesses(expected: Vector, canaries: int, delta: float, confidence: float, family: Family | None) -> int:
    """Choose how many guesses to make before any score is seen: what the promise itself leads one to expect.

    Args:
        expected: log-likelihood ratios drawn from the mechanism as it is claimed, half of them with the canary,
            shape (n,); at least ``canaries`` of them give a smooth choice.
        canaries: of the run to come.
        delta: of the promise.
        confidence: of the bound to come.
        family: as ``one_run_fdp`` takes it; None for ``one_run``.

    Raises:
        ConfigError: even all guesses are too few for the confidence.
    """
    sure = np.sort(expit(np.abs(expected)))[::-1]
    accuracy = np.cumsum(sure) / np.arange(1, len(sure) + 1)
    least = least_guesses(confidence)
    if canaries < least:
        _check_enough(1.0, canaries, canaries, confidence, delta if family is None else 0.0)
    best, most = canaries, 0.0
    for guesses in np.unique(np.geomspace(least, canaries, 24).astype(int)).tolist():
        place = max(0, min(len(sure), round(guesses / canaries * len(sure))) - 1)
        correct = math.floor(accuracy[place] * guesses)
        bound = (
            max(0.0, _or_nothing(correct, guesses, canaries, delta, confidence))
            if family is None
            else one_run_fdp(correct, guesses, canaries, family, confidence)
        )
        best, most = (guesses, bound) if bound > most else (best, most)
        if 0 < bound < PAST_BEST * most:  # more guesses are less sure, and take longer to try
            break
    return best


def _or_nothing(correct: int, guesses: int, canaries: int, delta: float, confidence: float) -> float:
    """The bound, or zero where the guesses are too few for any."""
    perfect = one_run_p_value(guesses, guesses, canaries, 0.0, delta)
    return one_run(correct, guesses, canaries, delta, confidence) if perfect <= 1 - confidence else 0.0


def _check(guesses_correct: int, guesses: int, canaries: int, confidence: float) -> None:
    if not 0 <= guesses_correct <= guesses <= canaries or guesses < 1:
        raise ConfigError(
            f"expected right guesses <= guesses <= canaries and at least one guess, got {guesses_correct}, {guesses} "
            f"and {canaries}; count again"
        )
    if not 0 < confidence < 1:
        raise ConfigError(f"the confidence must lie between 0 and 1, got {confidence!r}; choose such as 0.95")


def _check_enough(perfect: float, guesses: int, canaries: int, confidence: float, delta: float) -> None:
    if perfect > 1 - confidence:
        needed = canaries_needed(delta, confidence)
        more = f"insert more canaries, at least {needed}, or " if needed is not None and needed > guesses else ""
        raise ConfigError(
            f"a confidence of {confidence:.10g} cannot be had from {guesses} guesses on {canaries} canaries at delta "
            f"{delta:g}, even if all are right; {more}ask for less confidence"
        )

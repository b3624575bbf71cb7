"""Lower confidence bounds on epsilon from an attacker's scores over many trained heads.

A score is one number a head, larger where the attacker leans to "the canary took part". Any rule "at least t" that an
attacker follows obeys TPR <= e^epsilon FPR + delta, and TNR <= e^epsilon FNR + delta, under (epsilon, delta)-DP; what
is measured of these rates therefore bounds epsilon from below.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import beta, nct, norm, rankdata

from common.errors import ConfigError
from simulations.audits.findings import Vector

CHOOSING_SHARE = 0.2  # of the scores choose the threshold; the rates are bounded on the others
GAUSSIAN_ASSUMPTION = "scores are normal, with one variance whether the canary took part or not"


def clopper_pearson(scores_in: Vector, scores_out: Vector, delta: float, confidence: float, *, seed: int = 0) -> float:
    """Bound epsilon by the true and false positive rates of one threshold, each with its exact binomial interval.

    A fifth of the scores, drawn by ``seed``, chooses threshold and direction; the rates are bounded on the rest, each
    with half of the error allowed.

    Args:
        scores_in: one score a head that the canary took part in, shape (m,), independent of each other.
        scores_out: the same of heads without it, shape (m',).
        delta: of the promise, 0 <= delta < 1.
        confidence: one-sided, 0 < confidence < 1.
        seed: of the split.

    Returns:
        A lower bound on epsilon at ``delta``, >= 0.

    Guarantees:
        For an (epsilon, delta)-DP mechanism the bound exceeds epsilon with probability at most 1 - confidence,
        whatever the distribution of the scores.

    Raises:
        ConfigError: too few scores for the confidence, or a score that is no number.

    Source: Nasr et al. 2021, arXiv:2101.04535; Jagielski, Ullman, Oprea 2020, arXiv:2006.07709.
    """

    def bound(hits: Vector, trues: int, alarms: Vector, falses: int) -> Vector:
        return _bonferroni(hits, trues, alarms, falses, delta, confidence)

    hits, trues, alarms, falses = held_out_counts(scores_in, scores_out, delta, confidence, seed, bound)
    return max(0.0, float(bound(np.array(float(hits)), trues, np.array(float(alarms)), falses)))


def gaussian_fit(scores_in: Vector, scores_out: Vector, delta: float, confidence: float) -> tuple[float, float]:
    """Bound epsilon as if the scores were those of a Gaussian mechanism: two normals, mu standard deviations apart.

    The difference of means over its standard error follows a noncentral t distribution, whose noncentrality is mu times
    a constant; the lower limit of mu inverts it exactly. So many standard deviations are an epsilon at ``delta`` by the
    curve of the Gaussian mechanism.

    Args:
        scores_in: shape (m,), m >= 2, independent.
        scores_out: shape (m',), m' >= 2.
        delta: 0 < delta < 1.
        confidence: one-sided, 0 < confidence < 1.

    Returns:
        A lower bound and the point estimate, both >= 0.

    Guarantees:
        Where ``GAUSSIAN_ASSUMPTION`` holds, the bound exceeds the scores' own epsilon with probability at most
        1 - confidence. Where it does not hold, nothing is promised.

    Raises:
        ConfigError: fewer than two scores, or a score that is no finite number.

    Source: Nasr et al. 2023, arXiv:2302.07956 (mu by rates); Dong, Roth, Su 2019, arXiv:1905.02383 (its curve).
    """
    inside, outside = _checked(scores_in, 2, confidence), _checked(scores_out, 2, confidence)
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise ConfigError("a Gaussian fit takes finite scores, got an infinite one; use Clopper-Pearson instead")
    freedom = len(inside) + len(outside) - 2
    squares = float(((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum())
    gap, width = float(inside.mean() - outside.mean()), math.sqrt(1 / len(inside) + 1 / len(outside))
    if gap <= 0:
        return 0.0, 0.0
    if squares <= freedom * (1e-12 * gap) ** 2:  # no noise at all
        return math.inf, math.inf
    mu = gap / math.sqrt(squares / freedom)
    low = _noncentrality(mu / width, freedom, confidence) * width
    return gaussian_epsilon(low, delta), gaussian_epsilon(mu, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at ``delta`` of two unit normals that are ``mu`` apart, exact up to rounding.

    Source: Balle and Wang 2018, arXiv:1805.06530, theorem 8, in logarithms.

    >>> round(gaussian_epsilon(1.0, 1e-5), 3)
    4.377
    """
    if mu <= 0 or 2 * norm.cdf(mu / 2) - 1 <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _log_delta(mu, high) > math.log(delta):
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _log_delta(mu, middle) > math.log(delta) else (low, middle)
    return low


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The ``mu`` at which ``gaussian_epsilon`` is ``epsilon``, rounded down.

    >>> round(gaussian_mu(4.377, 1e-5), 3)
    1.0
    """
    low, high = 0.0, 1.0
    while gaussian_epsilon(high, delta) < epsilon:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, delta) < epsilon else (low, middle)
    return low


class Merit(Protocol):
    """What a threshold is chosen for: how large a bound is expected of such counts."""

    def __call__(self, hits: Vector, trues: int, alarms: Vector, falses: int, /) -> Vector:
        """Rate hits out of trues, alarms out of falses; counts may be fractions, and the larger is the better."""


def held_out_counts(
    scores_in: Vector, scores_out: Vector, delta: float, confidence: float, seed: int, merit: Merit
) -> tuple[int, int, int, int]:
    """Choose a threshold on a part of the scores and count on the others.

    Returns:
        Hits among so many heads of one kind, alarms among so many of the other: a rule's true and false positives, or
        its true and false negatives, whichever the part that chose preferred.
    """
    needed = _least(confidence, delta)
    inside, outside = _checked(scores_in, needed, confidence), _checked(scores_out, needed, confidence)
    rng = np.random.default_rng(seed)
    first_in, rest_in = _split(inside, needed, rng)
    first_out, rest_out = _split(outside, needed, rng)
    threshold, positive = _choose(first_in, first_out, (len(rest_in), len(rest_out)), merit)
    hits, alarms = int((rest_in >= threshold).sum()), int((rest_out >= threshold).sum())
    if positive:
        return hits, len(rest_in), alarms, len(rest_out)
    return len(rest_out) - alarms, len(rest_out), len(rest_in) - hits, len(rest_in)


def _choose(inside: Vector, outside: Vector, sizes: tuple[int, int], merit: Merit) -> tuple[float, bool]:
    """The threshold and direction of most merit if rates stayed as they are here, smoothed.

    Rates are smoothed by a normal kernel over the ranks' normal scores, so that no monotone change of scores matters,
    and a threshold is not preferred for a lucky zero.
    """
    pooled = np.concatenate([inside, outside])
    places = norm.ppf((rankdata(pooled) - 0.5) / len(pooled))
    kernel = len(pooled) ** -0.2
    levels = np.unique(places)
    tried = np.append((levels[1:] + levels[:-1]) / 2, levels[0] - 1)[:: max(1, len(levels) // 200)]
    parts = places[: len(inside)], places[len(inside) :]
    rates = [norm.cdf((part[None, :] - tried[:, None]) / kernel).mean(axis=1) for part in parts]
    hits, alarms = rates[0] * sizes[0], rates[1] * sizes[1]
    above = merit(hits, sizes[0], alarms, sizes[1])
    below = merit(sizes[1] - alarms, sizes[1], sizes[0] - hits, sizes[0])
    best = int(np.argmax(np.maximum(above, below)))
    return float(pooled[places > tried[best]].min()), bool(above[best] >= below[best])


def _bonferroni(hits: Vector, trues: int, alarms: Vector, falses: int, delta: float, confidence: float) -> Vector:
    """Lower bounds log((rate of hits - delta) / rate of alarms), each rate at half of the error; -inf where none."""
    error = (1 - confidence) / 2
    low = np.where(hits > 0, beta.ppf(error, np.maximum(hits, 1e-9), trues - hits + 1), 0.0)
    high = np.where(alarms < falses, beta.ppf(1 - error, alarms + 1, np.maximum(falses - alarms, 1e-9)), 1.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.maximum(low - delta, 0.0) / high))


def _split(scores: Vector, needed: int, rng: np.random.Generator) -> tuple[Vector, Vector]:
    """A share to choose with, at least two, and the rest, at least ``needed``."""
    shuffled = rng.permutation(scores)
    size = max(2, min(round(CHOOSING_SHARE * len(scores)), len(scores) - needed))
    return shuffled[:size], shuffled[size:]


def _least(confidence: float, delta: float) -> int:
    """How many scores of each kind must be left for a perfect attack to show any epsilon above zero."""
    if not 0 < confidence < 1:
        raise ConfigError(f"the confidence must lie between 0 and 1, got {confidence!r}; choose such as 0.95")
    if not 0 <= delta < 1:
        raise ConfigError(f"delta must lie between 0 and 1, got {delta!r}; use that of the promise")
    error = (1 - confidence) / 2  # all of n hit, none of n alarmed: error**(1/n) - delta > 1 - error**(1/n)
    return math.floor(math.log(error) / math.log((1 + delta) / 2)) + 1


def _checked(scores: Vector, needed: int, confidence: float) -> Vector:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) < needed + 2:
        raise ConfigError(
            f"a confidence of {confidence:g} needs at least {needed + 2} scores with the canary and as many without, "
            f"got {values.shape}; train more heads or ask for less confidence"
        )
    if np.isnan(values).any():
        raise ConfigError("every score must be a number, got NaN; look at the attack that made it")
    return values


def _noncentrality(statistic: float, freedom: int, confidence: float) -> float:
    """The noncentrality at which so large a t statistic has probability 1 - confidence; 0 if even that is too large."""
    error = 1 - confidence
    if float(nct.sf(statistic, freedom, 0.0)) >= error:
        return 0.0
    root = brentq(lambda place: float(nct.sf(statistic, freedom, place)) - error, 0.0, statistic + 1, xtol=1e-7)
    return max(0.0, float(root) - 2e-7)


def _log_delta(mu: float, epsilon: float) -> float:
    """Log of Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)."""
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(first + math.log(-math.expm1(min(second - first, -1e-300))))

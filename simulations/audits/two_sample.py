"""The greatest epsilon that two counts refute: an exact test of both rates together.

Clopper-Pearson bounds each rate by itself and pays for both; here one probability is computed, of counts at least as
extreme as those seen, for the least favourable rates that the mechanism allows.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri
from scipy.stats import beta, binom, norm

from simulations.audits.estimators import Merit, held_out_counts
from simulations.audits.findings import Vector
from simulations.audits.trade_offs import Family, TradeOff, approximate_family

NUISANCE = 0.02  # of the error allowed goes to the range of the false positive rate
CELLS = 200
AT_ONCE = 2**21  # outcomes
_TAIL = 1e-13


def two_sample(
    scores_in: Vector,
    scores_out: Vector,
    delta: float,
    confidence: float,
    *,
    seed: int = 0,
    family: Family | None = None,
) -> float:
    """Bound epsilon by the true and false positives of one threshold, tested together.

    Args:
        scores_in: one score a head that the canary took part in, shape (m,), independent of each other.
        scores_out: the same of heads without it, shape (m',).
        delta: of the promise, 0 <= delta < 1.
        confidence: one-sided.
        seed: of the split: a fifth of the scores chooses threshold and direction.
        family: what the mechanism is supposed to be one of; None supposes nothing but (epsilon, delta)-DP.

    Returns:
        A lower bound on epsilon at ``delta``, >= 0.

    Guarantees:
        Without a family, as for ``estimators.clopper_pearson``. With one, the bound exceeds the epsilon of the
        mechanism's own level with probability at most 1 - confidence, if the mechanism tells an attacker no more than
        the family's curve at that level; nothing is supposed of the scores.

    Raises:
        ConfigError: as for ``estimators.clopper_pearson``.

    Source: Berger and Boos 1994, doi:10.1080/01621459.1994.10476836 (the range of the nuisance); Nasr et al. 2023,
        arXiv:2302.07956 (auditing a family's curve).
    """
    error, supposed = 1 - confidence, family or approximate_family(delta)
    merit = by_ratio(error) if family is None else by_distance(error)
    chosen = held_out_counts(scores_in, scores_out, delta, confidence, seed, merit)
    evidence = Evidence(*chosen, merit, error * NUISANCE)
    return supposed.greatest(lambda curve: evidence.p_value(curve) <= error)


class Evidence:
    """Counts, and all that would be at least as much evidence.

    Outcomes are ordered by a merit that knows no hypothesis, and fewer alarms or more hits are never less evidence;
    hence the p-value never falls where a hypothesis allows more.

    Args:
        hits: true positives.
        trues: out of so many.
        alarms: false positives.
        falses: out of so many.
        merit: orders the outcomes.
        nuisance: error spent on the range of false positive rates that is searched.
    """

    def __init__(self, hits: int, trues: int, alarms: int, falses: int, merit: Merit, nuisance: float) -> None:
        low = float(beta.ppf(nuisance / 2, alarms, falses - alarms + 1)) if alarms else 0.0
        high = float(beta.ppf(1 - nuisance / 2, alarms + 1, falses - alarms)) if alarms < falses else 1.0
        self._edges = np.linspace(low, high, CELLS + 1)
        self._trues, self._nuisance = trues, nuisance
        counts = np.arange(max(0.0, binom.ppf(_TAIL, falses, low)), binom.isf(_TAIL, falses, high) + 1)
        self._needed = _needed(hits, trues, alarms, falses, counts, merit)
        below = binom.cdf(counts[None, :], falses, self._edges[:-1, None])
        self._chances = np.diff(below, axis=1, prepend=0.0)  # (cells, counts)

    def p_value(self, curve: TradeOff) -> float:
        """Bound the probability of as much evidence, whatever rates the curve allows.

        Within a cell of false positive rates, hits are taken at the cell's greatest rate and alarms at its least, so
        that no rate between is missed.
        """
        rates = np.clip(curve.power(self._edges[1:]), 0, 1)
        beyond = binom.sf(self._needed[None, :] - 1, self._trues, rates[:, None])
        return min(1.0, float((self._chances * beyond).sum(axis=1).max()) + self._nuisance + 3 * _TAIL)


def _needed(hits: int, trues: int, alarms: int, falses: int, counts: Vector, merit: Merit) -> Vector:
    """The fewest hits that are as much evidence, at each count of alarms; ``trues + 1`` where none are."""
    seen = float(merit(np.array([float(hits)]), trues, np.array([float(alarms)]), falses)[0])
    every, parts = np.arange(trues + 1.0), max(1, len(counts) * (trues + 1) // AT_ONCE)
    fewest = np.empty(len(counts))
    for own in np.array_split(np.arange(len(counts)), parts):
        reached = merit(every[:, None], trues, counts[None, own], falses) >= seen - 1e-9  # (hits, alarms)
        fewest[own] = np.where(reached.any(axis=0), reached.argmax(axis=0), trues + 1)
    return np.asarray(np.minimum.accumulate(fewest[::-1])[::-1], np.float64)


def by_ratio(error: float) -> Merit:
    """Order counts, and thresholds, by the logarithm of the ratio of rates, less its standard errors."""

    def merit(hits: Vector, trues: int, alarms: Vector, falses: int) -> Vector:
        variances = 1 / (hits + 0.5) + 1 / (alarms + 1)
        return np.asarray(np.log((hits + 1e-9) / trues * falses / (alarms + 0.5)) + norm.ppf(error) * variances**0.5)

    return merit


def by_distance(error: float) -> Merit:
    """Order counts, and thresholds, by the distance of two unit normals with these rates, less its standard errors."""

    def merit(hits: Vector, trues: int, alarms: Vector, falses: int) -> Vector:
        rates = (hits + 0.5) / (trues + 1), (alarms + 0.5) / (falses + 1)
        places = [ndtri(rate) for rate in rates]
        variances = [
            rate * (1 - rate) / size / norm.pdf(place) ** 2
            for rate, place, size in zip(rates, places, (trues, falses), strict=True)
        ]
        return np.asarray(places[0] - places[1] + norm.ppf(error) * np.sqrt(variances[0] + variances[1]))

    return merit

"""The greatest epsilon that two counts refute: an exact test of both rates together.

Clopper-Pearson bounds each rate by itself and pays for both; here one probability is computed, of counts at least as
extreme as those seen, for the least favourable rates that the mechanism allows.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri
from scipy.stats import beta, binom, norm

from simulations.audits.estimators import Merit, held_out_counts
from simulations.audits.findings import Vector
from simulations.audits.trade_offs import Family, TradeOff, approximate_family

NUISANCE = 0.02  # of the error allowed goes to the range of the false positive rate
CELLS = 200
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
    merit = _ratio(error) if family is None else _distance(error)
    chosen = held_out_counts(scores_in, scores_out, delta, confidence, seed, merit)
    return supposed.greatest(lambda curve: p_value(*chosen, curve, error * NUISANCE) <= error)


def p_value(hits: int, trues: int, alarms: int, falses: int, curve: TradeOff, nuisance: float) -> float:
    """Bound the probability of counts at least as extreme, whatever rates the curve allows.

    Counts are ordered by z, hits against what the curve makes of the alarms. Within a cell of false positive rates p,
    the number of hits is taken at the cell's greatest p and that of alarms at its least, so that no rate between is
    missed.

    Args:
        hits: true positives.
        trues: out of so many.
        alarms: false positives.
        falses: out of so many.
        curve: null hypothesis.
        nuisance: error spent on the range of p that is searched.
    """
    low = beta.ppf(nuisance / 2, alarms, falses - alarms + 1) if alarms else 0.0
    high = beta.ppf(1 - nuisance / 2, alarms + 1, falses - alarms) if alarms < falses else 1.0
    edges = np.linspace(low, high, CELLS + 1)
    counts = np.arange(binom.ppf(_TAIL, falses, low), binom.isf(_TAIL, falses, high) + 1)
    centre, spread = _expected(counts, trues, falses, curve)
    at = _expected(np.array([float(alarms)]), trues, falses, curve)
    z = (hits - at[0][0]) / at[1][0]
    needed = np.ceil(centre + z * spread - 1e-9)
    needed = np.minimum.accumulate(needed[::-1])[::-1]  # no fewer hits are needed where there are more alarms
    rates = curve.power(edges[1:])
    below = np.concatenate([np.zeros((CELLS, 1)), binom.cdf(counts[None, :], falses, edges[:-1, None])], axis=1)
    beyond = binom.sf(needed[None, :] - 1, trues, rates[:, None])
    probability = (np.diff(below, axis=1) * beyond).sum(axis=1).max()
    return min(1.0, float(probability) + nuisance + 3 * _TAIL)


def _ratio(error: float) -> Merit:
    """Choose the threshold by the logarithm of the ratio of rates, less its standard errors."""

    def merit(hits: Vector, trues: int, alarms: Vector, falses: int) -> Vector:
        variances = 1 / (hits + 0.5) + 1 / (alarms + 1)
        return np.asarray(np.log((hits + 1e-9) / trues * falses / (alarms + 0.5)) + norm.ppf(error) * variances**0.5)

    return merit


def _distance(error: float) -> Merit:
    """Choose the threshold by the distance of two unit normals with these rates, less its standard errors."""

    def merit(hits: Vector, trues: int, alarms: Vector, falses: int) -> Vector:
        rates = (hits + 0.5) / (trues + 1), (alarms + 0.5) / (falses + 1)
        places = [ndtri(rate) for rate in rates]
        variances = [
            rate * (1 - rate) / size / norm.pdf(place) ** 2
            for rate, place, size in zip(rates, places, (trues, falses), strict=True)
        ]
        return np.asarray(places[0] - places[1] + norm.ppf(error) * np.sqrt(variances[0] + variances[1]))

    return merit


def _expected(alarms: Vector, trues: int, falses: int, curve: TradeOff) -> tuple[Vector, Vector]:
    """Hits that the curve allows at so many alarms, and the standard deviation of the hits' excess over them."""
    rates = (alarms + 0.5) / (falses + 1)
    allowed = np.clip(curve.power(rates), 1e-12, 1 - 1e-12)
    width = 1e-3 * np.minimum(rates, 1 - rates)
    slopes = (curve.power(rates + width) - curve.power(rates - width)) / (2 * width)
    variances = allowed * (1 - allowed) / trues + slopes**2 * rates * (1 - rates) / falses
    return trues * allowed, trues * np.sqrt(variances + math.ulp(1.0))

"""How well features suit labels, before any training: the evidence of a linear head, from sums over records.

The score is LogME (You et al. 2021, arXiv:2102.11005), the log of the probability that a linear model with a Gaussian
prior gives to the labels, maximised over the prior's and the noise's variance, a record and a class. Three things are
done otherwise than in the paper's algorithm:

- an intercept with a flat prior is part of the model, as it is part of a head. Integrated out, it leaves the centred
  features and labels in the N - 1 dimensions beside the constant (counting N would make perfect fits infinitely good);
- the maximum is found by a search over the one ratio that matters, with the other variance in closed form, where the
  paper iterates to a fixed point, which need not be the largest maximum;
- records enter through sums only (or, where there are more features than records, through the records' products).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

Values = NDArray[np.float64]

RATIOS = 10.0 ** np.arange(-9, 9.01, 0.25)
"""Prior precision over noise precision, as a multiple of the mean eigenvalue; where the search starts."""

_REFINEMENTS = 40  # golden sections between two of them: the ratio is then known to nine digits
_GOLDEN = (np.sqrt(5) - 1) / 2
_NEGLIGIBLE = 1e-12  # of the largest eigenvalue: below it a direction is rounding


@dataclass(frozen=True)
class Moments:
    """Sums over records, from which the score follows; sensitive, like every exact sum.

    Attributes:
        gram: sum of w x x^T, shape (D, D), float64.
        sums: sum of w y x^T, shape (K, D): for classes, the sum of each class's features.
        products: sum of w y^2, shape (K,).
        totals: sum of w y, shape (K,): for classes, their counts.
        means: sum of w x, shape (D,).
        weight: sum of w: the number of records.
    """

    gram: Values
    sums: Values
    products: Values
    totals: Values
    means: Values
    weight: float


@dataclass(frozen=True)
class Spectrum:
    """Centred features and targets in the features' principal directions; all that the evidence depends on.

    Attributes:
        values: squared singular values of the centred features, shape (R,), > 0.
        energies: squared products of each target with each direction's scores, shape (K, R).
        variances: squared length of each centred target, shape (K,).
        freedom: number of records less one, for the intercept.
    """

    values: Values
    energies: Values
    variances: Values
    freedom: float


def moments(features: Values, targets: Values, weights: Values | None = None) -> Moments:
    """Add records up.

    Args:
        features: shape (N, D).
        targets: shape (N, K); for classes, 1 for a record's own and 0 for the others.
        weights: shape (N,), what each row counts; None counts each once.
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    weighted = x if weights is None else x * weights[:, None]
    scaled = y if weights is None else y * weights[:, None]
    return Moments(
        gram=weighted.T @ x,
        sums=scaled.T @ x,
        products=(scaled * y).sum(axis=0),
        totals=scaled.sum(axis=0),
        means=weighted.sum(axis=0),
        weight=float(len(x) if weights is None else weights.sum()),
    )


def spectrum_of_moments(sums: Moments) -> Spectrum:
    """Centre the sums and rotate them into principal directions."""
    mean = sums.means / sums.weight
    centred = sums.gram - sums.weight * np.outer(mean, mean)
    values, directions = np.linalg.eigh((centred + centred.T) / 2)
    shifted = sums.sums - np.outer(sums.totals, mean)
    energies = (shifted @ directions) ** 2
    variances = sums.products - sums.totals**2 / sums.weight
    return _without_rounding(values, energies, variances, sums.weight - 1)


def spectrum_of_records(features: Values, targets: Values, weights: Values | None = None) -> Spectrum:
    """The same from the records' products with each other, for more features than records.

    The eigenvalues of X X^T are those of X^T X, and a direction's energy is its eigenvalue times the square of the
    target along its left singular vector.
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    roots = np.ones((len(x), 1)) if weights is None else np.sqrt(weights)[:, None]
    weight = float((roots**2).sum())
    x = (x - (roots**2 * x).sum(axis=0) / weight) * roots
    y = (y - (roots**2 * y).sum(axis=0) / weight) * roots
    values, vectors = np.linalg.eigh(x @ x.T)
    energies = np.maximum(values, 0.0) * (y.T @ vectors) ** 2
    return _without_rounding(values, energies, (y**2).sum(axis=0), weight - 1)


def score_records(features: NDArray[np.floating], targets: Values, weights: Values | None = None) -> float:
    """Score features for targets; higher is better.

    Args:
        features: shape (N, D), finite; any floating type.
        targets: shape (N, K).
        weights: shape (N,), what each row counts.

    Returns:
        Log evidence a record, the mean over targets that vary, in nats.

    Guarantees:
        The same, up to rounding, for features that are shifted, rotated, or scaled as a whole, for any order of the
        records and of the classes, and with constant features added.

    Raises:
        ConfigError: there are no two records of different classes, or a feature is not finite.

    >>> x = np.array([[0.0, 1.0], [0.1, 3.0], [1.0, 2.0], [0.9, 0.0]])
    >>> score_records(x[:, :1], np.eye(2)[[0, 0, 1, 1]]) > score_records(x[:, 1:], np.eye(2)[[0, 0, 1, 1]])
    True
    """
    if not np.isfinite(features).all():
        raise ConfigError("expected finite features, got NaN or infinity; choose another backbone or cut")
    wide = features.shape[1] > len(features)
    x = np.asarray(features, np.float64)
    if wide:
        return log_evidence(spectrum_of_records(x, targets, weights))
    shift = x.mean(axis=0)  # changes nothing but the rounding
    return log_evidence(spectrum_of_moments(moments(x - shift, targets, weights)))


def log_evidence(spectrum: Spectrum) -> float:
    """Maximal log evidence a record, the mean over targets that vary.

    With r the ratio of precisions, a target's noise variance at the maximum is the mean of its squares with direction
    i weighted by r / (r + s_i), and the log evidence a record is
    -(1 + log(2 pi variance) + mean over records of log(1 + s_i / r)) / 2.

    Raises:
        ConfigError: no target varies.

    Source: You et al. 2021, arXiv:2102.11005, equation 2; MacKay 1992, doi:10.1162/neco.1992.4.3.415.
    """
    varying = spectrum.variances > _NEGLIGIBLE * abs(spectrum.freedom)
    if spectrum.freedom <= 0 or not varying.any():
        raise ConfigError("expected at least two records, of at least two classes, got fewer; choose more records")
    if not len(spectrum.values):
        variances = spectrum.variances[varying] / spectrum.freedom
        return float(np.mean(-0.5 * (1 + np.log(2 * np.pi * variances))))
    rows = zip(spectrum.energies[varying], spectrum.variances[varying], strict=True)
    return float(np.mean([_best(spectrum.values, energies, variance, spectrum.freedom) for energies, variance in rows]))


def _best(values: Values, energies: Values, variance: float, freedom: float) -> float:
    """The largest evidence of one target over all ratios of precisions."""

    def evidence(ratios: Values) -> Values:
        shrunk = ratios[:, None] / (ratios[:, None] + values)  # (ratios, R)
        outside = max(variance - float((energies / values).sum()), 0.0)
        left = outside + shrunk @ (energies / values)
        left = np.maximum(left, _NEGLIGIBLE * variance)
        volume = np.log1p(values / ratios[:, None]).sum(axis=1)
        result: Values = -0.5 * (1 + np.log(2 * np.pi * left / freedom) + volume / freedom)
        return result

    grid = RATIOS * values.mean()
    found = evidence(grid)
    at = int(found.argmax())
    low, high = np.log(grid[max(at - 1, 0)]), np.log(grid[min(at + 1, len(grid) - 1)])
    return max(float(found[at]), _golden(lambda ratio: float(evidence(np.exp([ratio]))[0]), low, high))


def _golden(score: Callable[[float], float], low: float, high: float) -> float:
    """The largest value of a function with one hill between two points."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = score(left), score(right)
    for _ in range(_REFINEMENTS):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = score(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = score(right)
    return max(at_left, at_right)


def _without_rounding(values: Values, energies: Values, variances: Values, freedom: float) -> Spectrum:
    """Leave out directions in which no record differs."""
    kept = values > _NEGLIGIBLE * max(float(values.max(initial=0.0)), np.finfo(np.float64).tiny)
    return Spectrum(values[kept], energies[:, kept], np.maximum(variances, 0.0), freedom)

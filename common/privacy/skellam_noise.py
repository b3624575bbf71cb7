"""Skellam noise from uniform words: integers whose probabilities are right to about thirteen digits.

A Skellam variable of variance v is the difference of two Poisson variables of mean v / 2, and takes the integer k with
probability e^-v I_k(v). It is drawn by rejection: a block of 2^w neighbouring integers by a table of whole weights, an
integer within the block by w bits, both exactly; then it is kept with probability p(k) over the block's weight. What is
rounded is that last comparison only:

- p(k) / p(0) is computed in double precision from Debye's uniform expansion (DLMF 10.41(ii)), to a relative 1e-13, and
- compared with a uniform of 53 bits, which within 8.5 standard deviations is another relative 1e-15.

All integers further out than 8.5 standard deviations have less than 1e-16 of the probability together; those beyond
``REACH`` standard deviations are never drawn. Other than a floating-point Gaussian, such noise has no gaps and no
pattern: every integer within reach is possible whatever is added to it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError

if TYPE_CHECKING:
    from common.privacy.noise import Words

LEAST_VARIANCE, LARGEST_VARIANCE = 2.0**12, 2.0**80
"""Below, the expansion has fewer digits; above, an integer within reach might not fit a double."""
REACH = 12.0
_BLOCKS = 8  # a standard deviation
_WEIGHTS = 0.999 * 2.0**63
_TO_UNIT = 2.0**-53

Floats = NDArray[np.float64]


def skellam_from_words(words: Words, size: int, variance: float) -> NDArray[np.int64]:
    """Turn uniform words into independent Skellam integers.

    Args:
        words: the source; how many words are used depends on the noise and on nothing else.
        size: how many integers.
        variance: v, of each; mean 0.

    Returns:
        Shape (size,).

    Raises:
        PrivacyError: the variance is outside ``LEAST_VARIANCE`` to ``LARGEST_VARIANCE``.

    Source: blocks with exact weights and rejection as Bringmann et al. 2014, doi:10.1007/978-3-662-43948-7_7, draw
        binomial variables.
    """
    check_variance(variance)
    ends, weights, unit, first, bits = _table(variance)
    kept: list[NDArray[np.int64]] = []
    missing = size
    while missing > 0:
        which, within, coin = words(3 * (missing + missing // 4 + 16)).reshape(3, -1)
        block = np.searchsorted(ends, which >> np.uint64(1), side="right")
        inside = block < len(weights)  # else the word lies beyond all weights: drawn again
        block, within, coin = block[inside], within[inside], coin[inside]
        drawn = ((block + first) << bits) + (within >> np.uint64(64 - bits)).astype(np.int64)
        chance = np.exp(log_ratio(drawn.astype(np.float64), variance)) * unit / weights[block]
        taken = drawn[((coin >> np.uint64(11)).astype(np.float64) + 0.5) * _TO_UNIT < chance][:missing]
        kept.append(taken)
        missing -= len(taken)
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def check_variance(variance: float) -> None:
    """Refuse a variance that cannot be drawn well.

    Raises:
        PrivacyError: it is outside ``LEAST_VARIANCE`` to ``LARGEST_VARIANCE``.
    """
    if not LEAST_VARIANCE <= variance <= LARGEST_VARIANCE:
        raise PrivacyError(
            f"Skellam noise is drawn for a variance of {LEAST_VARIANCE:g} to {LARGEST_VARIANCE:g}, got {variance!r}; "
            "choose another scale"
        )


def log_ratio(k: Floats, variance: float) -> Floats:
    """ln(p(k) / p(0)), to about 1e-15 times what it is.

    With R = sqrt(k^2 + v^2) and t = k / v it is v g(t), and the ratio of (1 + u1 + u2 + u3) / sqrt(R) at k and 0:
    Debye's expansion of I_k(v), whose next term is below 1e-15 from v = 4096 on.
    """
    return variance * exponent(k / variance) + _slow(k, variance) - _slow(np.zeros(1), variance)


def exponent(t: Floats) -> Floats:
    """g(t) = sqrt(1 + t^2) - 1 - t asinh(t), about -t^2 / 2.

    By Chernoff's bound a Skellam variable of variance v is at least k >= 0 with probability at most exp(v g(k / v)).
    """
    squares = t * t
    value: Floats = squares / (1.0 + np.sqrt(1.0 + squares)) - t * np.arcsinh(t)
    return value


def _slow(k: Floats, variance: float) -> Floats:
    """Logarithm of what stands before the exponential in Debye's expansion (DLMF 10.41.3, 10.41.10)."""
    squares = k * k + variance * variance
    inverse, p = 1.0 / np.sqrt(squares), k * k / squares  # 1 / R, and the square of DLMF's p
    u1 = (3.0 - 5.0 * p) / 24.0
    u2 = (81.0 + p * (-462.0 + p * 385.0)) / 1152.0
    u3 = (30375.0 + p * (-369603.0 + p * (765765.0 - p * 425425.0))) / 414720.0
    series: Floats = np.log1p(inverse * (u1 + inverse * (u2 + inverse * u3))) - 0.25 * np.log(squares)
    return series


@lru_cache(maxsize=64)
def _table(variance: float) -> tuple[NDArray[np.uint64], Floats, float, int, int]:
    """The blocks: ends of their cumulated weights, weights, the weight of p(0), number of the first, log2 of a width.

    A block's weight is a whole number no smaller than the largest p(k) in it, so that no chance is above 1.
    """
    deviation = math.sqrt(variance)
    bits = int(math.log2(deviation / _BLOCKS))
    half = math.ceil(REACH * deviation / 2**bits)
    numbers = np.arange(-half, half)
    nearest = np.where(numbers >= 0, numbers, numbers + 1).astype(np.float64) * 2.0**bits
    envelope = np.exp(log_ratio(nearest, variance))
    unit = _WEIGHTS / float(envelope.sum())
    weights = np.floor(envelope * unit * (1 + 1e-12)) + 1.0
    ends = np.cumsum(weights.astype(np.uint64), dtype=np.uint64)
    return ends, weights, unit, -half, bits

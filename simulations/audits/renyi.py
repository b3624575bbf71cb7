"""Renyi DP of noised steps at integer orders, from the formula alone: an opinion that shares no code with any library.

It bounds from above what dp-accounting computes at more orders, and differs from it only by those orders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

ORDERS = (*range(2, 64), *range(64, 128, 4), *range(128, 256, 8), *range(256, 512, 16), *range(512, 1025, 32))


def epsilon_renyi(steps: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Bound epsilon of steps that may have been chosen one after the other.

    Args:
        steps: noise multiplier, Poisson sampling rate and number of each kind.
        delta: 0 < delta < 1.

    Source: Mironov et al. 2019, arXiv:1908.10530, section 3.3; Canonne et al. 2020, arXiv:2004.00010, proposition 12.

    >>> round(epsilon_renyi([(1.0, 0.05, 1000)], 1e-5), 2)
    12.06
    """
    orders = np.array(ORDERS, float)
    spent = sum((count * curve(noise, rate) for noise, rate, count in steps), np.zeros(len(ORDERS)))
    if -math.expm1(-spent[0]) < delta**2:  # Bretagnolle and Huber's inequality: delta alone covers it
        return 0.0
    found = spent + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(found.min()))


@lru_cache(maxsize=1024)
def curve(noise_multiplier: float, sampling_rate: float) -> NDArray[np.float64]:
    """Renyi divergence of one step, at each of ``ORDERS``, shape (len(ORDERS),)."""
    return np.array([_divergence(noise_multiplier, sampling_rate, order) for order in ORDERS])


def _divergence(noise: float, rate: float, order: int) -> float:
    """Of a Gaussian from its mixture with one moved by 1: a binomial sum, taken in logarithms."""
    if rate == 1:
        return order / (2 * noise**2)
    k = np.arange(order + 1)
    ways = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = ways + (order - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise**2)
    return float(logsumexp(terms)) / (order - 1)

"""How much a mechanism lets an attacker tell: the greatest true positive rate at each false positive rate.

``power`` is 1 - f for a trade-off function f (Dong, Roth, Su 2019, arXiv:1905.02383). A family orders such curves by
one number, its level, so that an audit can ask for the greatest level that the attack refutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from common.privacy.accountant import Event, epsilon_pld
from simulations.audits.estimators import gaussian_epsilon
from simulations.audits.findings import Vector

Rates = NDArray[np.float64]


@dataclass(frozen=True)
class TradeOff:
    """A concave curve, its own mirror image about the other diagonal.

    Attributes:
        power: false positive rates -> the greatest true positive rates, rising.
        inverse: true positive rates -> the least false positive rates, rising.
    """

    power: Callable[[Rates], Rates]
    inverse: Callable[[Rates], Rates]


@dataclass(frozen=True)
class Family:
    """Curves by level: what an audit supposes the mechanism to be one of.

    Attributes:
        name: what is supposed, for a report; None where nothing but (epsilon, delta)-DP.
        levels: those that are tried, ascending, shape (L,).
        trade_off: level -> its curve, which nowhere falls when the level rises.
        epsilon: level -> epsilon at the delta of the audit.
    """

    name: str | None
    levels: Vector
    trade_off: Callable[[float], TradeOff]
    epsilon: Callable[[float], float]

    def greatest(self, refuted: Callable[[TradeOff], bool]) -> float:
        """Epsilon of the greatest level that is refuted, by bisection; 0 where none is."""
        low, high = -1, len(self.levels)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if refuted(self.trade_off(float(self.levels[middle]))) else (low, middle)
        return self.epsilon(float(self.levels[low])) if low >= 0 else 0.0


def approximate_family(delta: float, step: float = 0.005) -> Family:
    """All that is (epsilon, delta)-DP; the level is epsilon, and nothing more is supposed."""
    return Family(None, np.arange(0, 30, step), lambda epsilon: approximate(epsilon, delta), lambda epsilon: epsilon)


def gaussian_family(delta: float) -> Family:
    """Gaussian mechanisms; the level is mu, sensitivity over standard deviation."""
    levels = np.geomspace(0.01, 50, 4000)
    return Family("the mechanism is Gaussian", levels, gaussian, lambda mu: gaussian_epsilon(mu, delta))


def sampled_gaussian_family(sampling_rate: float, steps: int, delta: float) -> Family:
    """Compositions of Poisson-sampled Gaussians with known rate and steps; the level is one over sigma.

    With every record in every step (q = 1) they are Gaussian mechanisms.
    """
    if sampling_rate >= 1:
        return gaussian_family(delta)
    return Family(
        f"the mechanism is {steps} Gaussian steps at sampling rate {sampling_rate:g}, of unknown noise",
        np.geomspace(0.05, 5, 700),
        lambda level: sampled_gaussian(1 / level, sampling_rate, steps),
        lambda level: epsilon_pld([Event(1 / level, sampling_rate, steps)], delta),
    )


def approximate(epsilon: float, delta: float) -> TradeOff:
    """The curve of (epsilon, delta)-DP: two lines.

    Source: Kairouz, Oh, Viswanath 2015, arXiv:1311.0776, theorem 2.1.
    """
    return _of_lines(np.array([epsilon]), np.array([delta]))


def gaussian(mu: float) -> TradeOff:
    """Two unit normals, ``mu`` apart.

    >>> float(gaussian(1.0).power(np.array(0.5)).round(4))
    0.8413
    """
    return TradeOff(lambda rates: ndtr(ndtri(rates) + mu), lambda rates: ndtr(ndtri(rates) - mu))


@lru_cache(maxsize=4096)
def sampled_gaussian(noise_multiplier: float, sampling_rate: float, steps: int) -> TradeOff:
    """The composition of Poisson-sampled Gaussian steps, adding or removing a record, from above.

    Each point (epsilon, delta) of the pessimistic privacy loss distribution is two tangents; the least of all tangents
    lies nowhere below the true curve, and within a few thousandths of it.
    """
    step = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=1e-3
    )
    composed = step.self_compose(steps)
    epsilons = np.concatenate([np.linspace(0, 4, 161), np.linspace(4.1, 14, 100), np.linspace(15, 40, 26)])
    return _of_lines(epsilons, np.clip(np.asarray(composed.get_delta_for_epsilon(epsilons)), 0, 1))


def _of_lines(epsilons: Vector, deltas: Vector) -> TradeOff:
    """The least of the lines delta + e^epsilon x and 1 - e^-epsilon (1 - delta - x), and of 1."""
    slopes = np.concatenate([np.exp(epsilons), np.exp(-epsilons)])
    starts = np.concatenate([deltas, 1 - np.exp(-epsilons) * (1 - deltas)])

    def power(rates: Rates) -> Rates:
        lines = starts + slopes * np.asarray(rates)[..., None]
        return np.asarray(np.clip(lines.min(axis=-1), 0, 1))

    def inverse(rates: Rates) -> Rates:
        lines = (np.asarray(rates)[..., None] - starts) / slopes
        return np.asarray(np.clip(lines.max(axis=-1), 0, 1))

    return TradeOff(power, inverse)


def with_memory(family: Family) -> Family:
    """The same family, which computes each curve and epsilon once: for many audits of one mechanism."""
    return Family(family.name, family.levels, cache(family.trade_off), cache(family.epsilon))

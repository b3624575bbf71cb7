"""Epsilon of noised steps, computed by others than the accountant that guards the ledgers.

No code of ours is shared with ``common.privacy.accountant``, but a library is: privacy loss distributions and Renyi DP
come from dp-accounting, here by its own accountants, and the ledgers' accountant is built on it too. They find mistakes
in how it is called, and none of its own. Independent of it are Opacus's PRV accountant; where q = 1, the exact curve of
the Gaussian mechanism from scipy's normal distribution; and ``renyi``, which ``ledger_checks`` holds against it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting import ComposedDpEvent, DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant
from opacus.accountants import PRVAccountant
from scipy.integrate import IntegrationWarning
from scipy.optimize import brentq
from scipy.special import log_ndtr

LARGEST_EPSILON = 500.0
PRV_SHARE = 0.0025  # of epsilon, which the PRV accountant's own error bar may take
_ORDERS = (
    *(1 + step / 20 for step in range(1, 200)),
    *range(11, 64),
    *range(64, 128, 4),
    *range(128, 256, 8),
    *range(256, 512, 16),
    *range(512, 1025, 32),
)


@dataclass(frozen=True)
class Steps:
    """Identical noised steps.

    Attributes:
        noise_multiplier: sigma.
        sampling_rate: q, Poisson; 1 takes every unit.
        count: how many.
    """

    noise_multiplier: float
    sampling_rate: float
    count: int


@dataclass(frozen=True)
class Epsilons:
    """Several upper bounds on the same epsilon; None where one could not be computed.

    Attributes:
        exact: the Gaussian mechanism's own curve, where every unit is in every step.
        pld: by dp-accounting's privacy loss distributions, rounded up.
        rdp: by dp-accounting's Renyi DP: looser, and the one that holds where plans were chosen after seeing results.
        prv: by Opacus's PRV accountant, its error bar included.
    """

    exact: float | None
    pld: float | None
    rdp: float
    prv: float | None

    @property
    def independent(self) -> bool:
        """Whether one of them comes from elsewhere than the library that the ledgers' accountant is built on."""
        return self.exact is not None or self.prv is not None

    @property
    def tight(self) -> float:
        """The best of those that hold for plans fixed beforehand, PRV left aside."""
        if self.exact is not None:
            return self.exact
        return self.rdp if self.pld is None else min(self.pld, self.rdp)


def group(steps: Iterable[Steps]) -> tuple[Steps, ...]:
    """Add up identical steps, so that they are computed once.

    >>> group([Steps(1.0, 0.1, 2), Steps(2.0, 0.1, 1), Steps(1.0, 0.1, 3)])
    (Steps(noise_multiplier=1.0, sampling_rate=0.1, count=5), Steps(noise_multiplier=2.0, sampling_rate=0.1, count=1))
    """
    counts: Counter[tuple[float, float]] = Counter()
    for one in steps:
        counts[one.noise_multiplier, one.sampling_rate] += one.count
    return tuple(Steps(*key, count) for key, count in sorted(counts.items()) if count)


def epsilons(steps: Iterable[Steps], delta: float) -> Epsilons:
    """Bound what steps cost, in every way there is.

    Args:
        steps: in any order; their groups are remembered, so that equal ledgers cost once.
        delta: 0 < delta < 1.
    """
    grouped = group(steps)
    return Epsilons(*_bounds(grouped, delta), _prv(grouped, delta))


def tight_and_rdp(steps: Iterable[Steps], delta: float) -> tuple[float, float]:
    """The best bound for plans fixed beforehand, and the one by Renyi DP, without the PRV accountant's seconds."""
    bounds = Epsilons(*_bounds(group(steps), delta), None)
    return bounds.tight, bounds.rdp


@lru_cache(maxsize=4096)
def _bounds(steps: tuple[Steps, ...], delta: float) -> tuple[float | None, float | None, float]:
    """Exact, PLD and RDP."""
    if not steps:
        return 0.0, 0.0, 0.0
    rdp = _rdp(steps, delta)
    return _exact(steps, delta), _pld(steps, delta, rdp) if 0 < rdp <= LARGEST_EPSILON else None, rdp


def _event(steps: tuple[Steps, ...]) -> DpEvent:
    parts = [
        SelfComposedDpEvent(PoissonSampledDpEvent(one.sampling_rate, GaussianDpEvent(one.noise_multiplier)), one.count)
        for one in steps
    ]
    return ComposedDpEvent(parts)


def rdp_at(steps: Iterable[Steps], delta: float, orders: Sequence[float]) -> float:
    """Epsilon by dp-accounting's Renyi DP, at these orders only."""
    grouped = group(steps)
    return _rdp(grouped, delta, orders) if grouped else 0.0


def _rdp(steps: tuple[Steps, ...], delta: float, orders: Sequence[float] = _ORDERS) -> float:
    accountant = RdpAccountant(orders)
    with _quiet():
        accountant.compose(_event(steps))
        return max(0.0, float(accountant.get_epsilon(delta)))


def _pld(steps: tuple[Steps, ...], delta: float, size: float) -> float:
    """On a grid whose rounding costs well under a hundredth of ``size``, and at most about a million points."""
    total = sum(one.count for one in steps)
    interval = min(size / 2000, math.sqrt(3e-4 * size / total))
    accountant = PLDAccountant(value_discretization_interval=float(f"{interval:.0e}"))
    accountant.compose(_event(steps))
    return float(accountant.get_epsilon(delta))


def _exact(steps: tuple[Steps, ...], delta: float) -> float | None:
    """Where q = 1 throughout, steps compose to one Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530)."""
    if any(one.sampling_rate < 1 for one in steps):
        return None
    mu = math.sqrt(sum(one.count / one.noise_multiplier**2 for one in steps))

    def excess(epsilon: float) -> float:
        high, low = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return float(high + np.log1p(-np.exp(min(low - high, -1e-300))) - math.log(delta))

    if excess(0.0) <= 0:
        return 0.0
    most = mu * (mu / 2 + math.sqrt(2 * math.log(1 / delta)) + 1)  # the high term alone is below delta there
    return float(brentq(excess, 0.0, most, xtol=1e-12, rtol=1e-12))


@lru_cache(maxsize=1024)
def _prv(steps: tuple[Steps, ...], delta: float) -> float | None:
    if not steps:
        return 0.0
    tight = Epsilons(*_bounds(steps, delta), None).tight
    if not 0 < tight <= LARGEST_EPSILON:
        return None
    accountant = PRVAccountant()
    accountant.history = [(one.noise_multiplier, one.sampling_rate, one.count) for one in steps]
    with _quiet():
        warnings.simplefilter("error", IntegrationWarning)
        try:
            return float(accountant.get_epsilon(delta, eps_error=max(1e-4, PRV_SHARE * tight)))
        except (IntegrationWarning, ValueError, RuntimeError):  # its numerics do not reach everywhere
            return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the accountants say of orders that they leave out, and of log(0) where q = 1: both are safe."""

    def drop(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    logger: Any = logging.getLogger("absl")
    logger.addFilter(drop)
    try:
        with warnings.catch_warnings(), np.errstate(divide="ignore"):
            warnings.filterwarnings("ignore", message="Optimal order is")
            yield
    finally:
        logger.removeFilter(drop)

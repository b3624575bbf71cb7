"""What a set of noised steps costs: upper bounds on epsilon under add-or-remove-one and Poisson sampling.

Every function errs upwards: pessimistic discretisation, and delta shrunk by what rounding can do.

What takes a second to import, dp-accounting and SciPy, is imported where it computes: most programs of a federation
know plans and never ask for an epsilon.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from common.errors import ConfigError
from common.privacy.known import keep
from common.privacy.plan import NOISE_RANGE, PrivacyTerms

Accountant = Literal["PLD", "RDP (adaptive)"]

TABLE_POINTS = 64
EXACT_TABLE_POINTS = 1000
LARGEST_PLD_EPSILON = 200.0
_ORDERS = (
    1.5,
    1.75,
    2,
    2.25,
    2.5,
    2.75,
    3,
    3.5,
    4,
    4.5,
    5,
    5.5,
    *range(6, 21),
    24,
    28,
    32,
    40,
    48,
    64,
    96,
    128,
    192,
    256,
    512,
    1024,
)
_UP = 1 + 1e-9
_RDP_SLACK = 1e-12  # a step; its series cancel to about 2e-13, which may fall below zero where noise is very large


@dataclass(frozen=True)
class Event:
    """``count`` releases of a Gaussian-noised sum over a Poisson sample.

    Attributes:
        noise_multiplier: sigma, standard deviation divided by the clipping norm.
        sampling_rate: q.
        count: how many such steps.
    """

    noise_multiplier: float
    sampling_rate: float
    count: int


@dataclass(frozen=True)
class Spent:
    """An epsilon and the accountant that computed it."""

    epsilon: float
    accountant: Accountant


def group_events(events: Iterable[Event]) -> tuple[Event, ...]:
    """Add up the counts of identical (noise multiplier, sampling rate), and drop what costs nothing.

    >>> group_events([Event(1.0, 0.1, 2), Event(1.0, 0.1, 3), Event(2.0, 0.1, 0)])
    (Event(noise_multiplier=1.0, sampling_rate=0.1, count=5),)
    """
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.noise_multiplier, event.sampling_rate] += event.count
    return tuple(Event(sigma, q, count) for (sigma, q), count in sorted(counts.items()) if count > 0)


def epsilon_pld(events: Sequence[Event], delta: float) -> float:
    """Bound epsilon of steps whose parameters were all fixed before the first of them.

    With every unit in every batch (q = 1) the steps compose to one Gaussian mechanism, whose curve is exact; else
    their privacy loss distributions are composed numerically, and the RDP bound is taken where it is smaller (both
    hold; that happens only at the very edge of the discretisation).

    Args:
        events: the steps; an empty sequence costs 0.
        delta: 0 < delta < 1.

    Returns:
        Epsilon, never smaller than the truth; ``inf`` where there is no noise. Beyond ``LARGEST_PLD_EPSILON`` it is
        the RDP bound.

    Source: Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380; Balle and Wang 2018,
        arXiv:1805.06530, theorem 8.
    """
    return _epsilon_pld(group_events(events), delta)


@keep
def _epsilon_pld(grouped: tuple[Event, ...], delta: float) -> float:
    if any(event.noise_multiplier <= 0 for event in grouped):
        return math.inf
    if all(event.sampling_rate >= 1 for event in grouped):
        return _exact_gaussian_epsilon(math.sqrt(sum(e.count / e.noise_multiplier**2 for e in grouped)), delta)
    rdp = epsilon_rdp(grouped, delta)
    if rdp == 0 or rdp > LARGEST_PLD_EPSILON:
        return rdp
    composed = _compose(grouped, _interval(rdp, sum(event.count for event in grouped)))
    return min(rdp, _read_epsilon(composed, delta, sum(event.count for event in grouped)))


def epsilon_rdp(events: Sequence[Event], delta: float) -> float:
    """Bound epsilon by Renyi DP: looser, but valid when parameters are chosen after seeing earlier results.

    Args:
        events: the steps; an empty sequence costs 0.
        delta: 0 < delta < 1.

    Returns:
        Epsilon, never smaller than the truth; ``inf`` where there is no noise.

    Source: Mironov et al. 2019, arXiv:1908.10530; conversion by Canonne et al. 2020, arXiv:2004.00010, prop. 12;
        adaptive parameters: Feldman and Zrnic 2021, arXiv:2008.11193.
    """
    grouped = group_events(events)
    if not grouped:
        return 0.0
    if any(event.noise_multiplier <= 0 for event in grouped):
        return math.inf
    from dp_accounting.rdp import rdp_privacy_accountant

    curve = np.sum([e.count * np.asarray(_rdp_curve(e.noise_multiplier, e.sampling_rate)) for e in grouped], axis=0)
    epsilon, _ = rdp_privacy_accountant.compute_epsilon(_ORDERS, curve, delta)
    return float(epsilon) * _UP


def epsilon_spent(groups: Mapping[Any, Sequence[Event]], delta: float) -> Spent:
    """Bound epsilon of everything that was charged to one data set.

    Args:
        groups: plan instance -> its events. The parameters within an instance were fixed before its first round;
            an instance may have been chosen after seeing what earlier ones released.
        delta: the data set's own, 0 < delta < 1.

    Returns:
        By PLD for one instance, by RDP for several.
    """
    charged = [events for events in groups.values() if group_events(events)]
    if len(charged) <= 1:
        return Spent(epsilon_pld(charged[0], delta) if charged else 0.0, "PLD")
    return Spent(epsilon_rdp([event for events in charged for event in events], delta), "RDP (adaptive)")


@lru_cache(maxsize=64)
def epsilon_by_round(terms: PrivacyTerms) -> tuple[float, ...]:
    """Tabulate epsilon after k rounds of one plan, so that no round has to compute it.

    It is computed at up to ``TABLE_POINTS`` values of k (``EXACT_TABLE_POINTS`` where q = 1, which is cheap): all of
    them for so many rounds or fewer, and the last always. In between the next computed one stands, as more rounds never
    cost less.

    Args:
        terms: the plan's public constants.

    Returns:
        ``rounds + 1`` upper bounds, non-decreasing; index k is the cost of k rounds, index 0 is 0.
    """
    points = _computed_rounds(terms)
    values = [_rounds_epsilon(terms, k) for k in points]
    table = np.repeat(values, [1, *(after - before for before, after in pairwise(points))])
    return tuple(float(value) for value in np.maximum.accumulate(table))


@lru_cache(maxsize=4096)
def epsilon_after(terms: PrivacyTerms, rounds: int) -> float:
    """Epsilon after so many rounds of one plan, for a process that asks once: the table's value without the table.

    Args:
        terms: the plan's public constants.
        rounds: from 0; more than ``terms.rounds`` where some were begun again and paid for twice.

    Returns:
        An upper bound, computed where ``epsilon_by_round`` computes its own.
    """
    if rounds > terms.rounds:
        return _rounds_epsilon(terms, rounds)
    points = _computed_rounds(terms)
    return _rounds_epsilon(terms, points[bisect_left(points, rounds)])


@keep
def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Find the least noise that keeps ``steps`` steps within ``epsilon``.

    Args:
        epsilon: > 0, the budget of the whole plan.
        delta: 0 < delta < 1.
        sampling_rate: q, 0 < q <= 1.
        steps: T, > 0.

    Returns:
        Sigma, rounded up to four significant digits; ``epsilon_pld`` of the steps is at most ``epsilon``.

    Raises:
        ConfigError: no noise multiplier in the accepted range does it.
    """

    def cost(sigma: float) -> float:
        return epsilon_pld([Event(sigma, sampling_rate, steps)], delta)

    if not (epsilon > 0 and cost(NOISE_RANGE[1]) <= epsilon):
        raise ConfigError(
            f"privacy.epsilon must be reachable with a noise multiplier of at most {NOISE_RANGE[1]:g}, got {epsilon:g} "
            f"for {steps} steps at delta {delta:g}; choose a larger epsilon or fewer rounds"
        )
    if cost(NOISE_RANGE[0]) <= epsilon:
        return NOISE_RANGE[0]
    guess = 1.0 if sampling_rate >= 1 else _guess_noise(epsilon, delta, sampling_rate, steps)
    sigma = _round_up(_solve(cost, epsilon, guess))
    while cost(sigma) > epsilon:
        sigma = _round_up(sigma * (1 + 1e-9))
    return sigma


def _guess_noise(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Start near the central limit of many sampled steps (Bu et al. 2020, arXiv:1911.11607), a guess and no bound."""
    mu = 1 / noise_multiplier_for(epsilon, delta, 1.0, 1)
    guess = 1 / math.sqrt(math.log1p((mu / sampling_rate) ** 2 / steps))
    return min(max(guess, 2 * NOISE_RANGE[0]), NOISE_RANGE[1] / 2)


def _solve(cost: Callable[[float], float], epsilon: float, guess: float) -> float:
    """Find where ``cost`` crosses ``epsilon``, to 1e-5, on log-log axes, where it is nearly straight."""
    from scipy.optimize import brentq

    low_end, high_end = map(math.log, NOISE_RANGE)

    @cache
    def excess(log_sigma: float) -> float:
        return _log_ratio(cost(math.exp(log_sigma)), epsilon)

    here = math.log(guess)
    while True:
        stride = math.copysign(0.01 + abs(excess(here)), excess(here))  # more noise where it costs too much
        there = min(max(here + stride, low_end), high_end)
        if excess(here) * excess(there) <= 0:
            return math.exp(brentq(excess, here, there, xtol=1e-5))
        here = there


def _log_ratio(cost: float, epsilon: float) -> float:
    return math.log(max(cost, 1e-300) / epsilon) if math.isfinite(cost) else 10.0


def _round_up(value: float, digits: int = 4) -> float:
    """Round up to so many significant digits.

    >>> _round_up(1.23401), _round_up(0.5)
    (1.235, 0.5)
    """
    scale: float = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale


def _computed_rounds(terms: PrivacyTerms) -> list[int]:
    return _table_points(terms.rounds, EXACT_TABLE_POINTS if terms.sampling_rate >= 1 else TABLE_POINTS)


def _rounds_epsilon(terms: PrivacyTerms, rounds: int) -> float:
    return epsilon_pld(
        [Event(terms.noise_multiplier, terms.sampling_rate, rounds * terms.steps_per_round)], terms.delta
    )


def _table_points(rounds: int, most: int) -> list[int]:
    """Zero, and at most ``most`` round numbers in growing strides; the last is ``rounds``.

    >>> _table_points(3, 5), _table_points(100, 3)
    ([0, 1, 2, 3], [0, 1, 10, 100])
    """
    if rounds <= most:
        return list(range(rounds + 1))
    return sorted({0, rounds, *np.geomspace(1, rounds, most).round().astype(int).tolist()})


def _exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """Solve delta(epsilon) = delta for a Gaussian mechanism of sensitivity over deviation ``mu``, rounded up."""
    target = delta * (1 - 1e-9)
    if mu == 0 or _gaussian_delta(mu, 0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while _gaussian_delta(mu, high) > target:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(mu, middle) > target else (low, middle)
    return high * _UP


def _gaussian_delta(mu: float, epsilon: float) -> float:
    """Balle and Wang's Phi(a) - e^epsilon Phi(b), as phi(a) (R(a) - R(b)) with R = Phi / phi, free of overflow."""
    from scipy.special import erfcx

    a, b = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    if a > 0:  # Phi(a) is at least a half: the plain form is precise, and phi(a) / R(a) would overflow
        return 0.5 * math.erfc(-a / math.sqrt(2)) - 0.5 * math.exp(-a * a / 2) * float(erfcx(-b / math.sqrt(2)))
    return 0.5 * math.exp(-a * a / 2) * float(erfcx(-a / math.sqrt(2)) - erfcx(-b / math.sqrt(2)))


def _compose(events: Sequence[Event], interval: float) -> Any:
    first, *others = (_step(e.noise_multiplier, e.sampling_rate, interval).self_compose(e.count) for e in events)
    for other in others:
        first = first.compose(other)
    return first


def _read_epsilon(pld: Any, delta: float, steps: int) -> float:
    """Read epsilon at a delta less than asked by what rounding in the Fourier transforms may hide."""
    slack = 1e-13 + 1e-15 * steps
    return float(pld.get_epsilon_for_delta(delta * (1 - 1e-9) - slack)) if slack < delta / 10 else math.inf


def _interval(epsilon: float, steps: int) -> float:
    """Choose a grid fine enough that pessimism costs about a thousandth of epsilon: its error grows as steps x d^2."""
    wanted = min(epsilon / 1000, math.sqrt(1e-3 * epsilon / steps))
    power = 10.0 ** math.floor(math.log10(wanted))
    return max(step * power for step in (1, 2, 5) if step * power <= wanted * (1 + 1e-9))


@lru_cache(maxsize=16)
def _step(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=interval
    )


@lru_cache(maxsize=256)
def _rdp_curve(noise_multiplier: float, sampling_rate: float) -> tuple[float, ...]:
    """Renyi divergence of one step at each of ``_ORDERS``; ``inf`` where its series did not converge."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant(_ORDERS)
    with _without_convergence_warnings():
        accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)))
    curve = np.maximum(accountant._rdp, 0)  # there is no public way to read it; dp-accounting is pinned below 0.7
    return tuple(map(float, curve + _RDP_SLACK))


@contextmanager
def _without_convergence_warnings() -> Iterator[None]:
    """Silence dp-accounting where it says that it leaves out an order: that is on the safe side."""

    def keep(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)

"""Skellam noise of variance v is worth Gaussian noise of variance v - 1: each step of the proof, and its outcome."""

from __future__ import annotations

import math
from functools import reduce
from itertools import product

import mpmath
import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant
from numpy.typing import NDArray
from scipy.special import comb, ive, logsumexp

from common.errors import PrivacyError
from common.privacy.accountant import Event, epsilon_pld, epsilon_rdp
from common.privacy.skellam import LEAST_VARIANCE, noise_multiplier_of, skellam_event, variance_for

DELTA = 1e-5
ORDERS = range(2, 257)
Floats = NDArray[np.float64]


def pair(variance: float, shift: int) -> tuple[Floats, Floats]:
    """Probabilities of the noise, and of the noise shifted, within eleven standard deviations."""
    reach = math.ceil(11 * math.sqrt(variance)) + abs(shift)
    k = np.arange(-reach, reach + 1)
    return ive(np.abs(k), variance), ive(np.abs(k - shift), variance)


def sampled(variance: float, shift: int, rate: float) -> list[tuple[Floats, Floats]]:
    """What one Poisson-sampled step gives with the unit and without it, removed and added."""
    without, moved = pair(variance, shift)
    mixed = (1 - rate) * without + rate * moved
    return [(mixed, without), (without, mixed)]


def hockey_stick(pairs: list[tuple[Floats, Floats]], epsilon: float) -> float:
    """Delta at epsilon of independent releases side by side, from its definition."""
    first, second = (reduce(np.multiply.outer, [pair[side] for pair in pairs]) for side in (0, 1))
    return float(np.maximum(first - math.exp(epsilon) * second, 0).sum())


def exact_epsilon(pairs: list[tuple[Floats, Floats]], delta: float) -> float:
    low, high = 0.0, 50.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if hockey_stick(pairs, middle) > delta else (low, middle)
    return high


def published_rdp(variance: float, l2: float, l1: float, order: int) -> float:
    """Renyi divergence of Skellam noise: Agarwal, Kairouz and Liu 2021, arXiv:2110.04995."""
    extra = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return order * l2**2 / (2 * variance) + extra


def published_epsilon(variance: float, l2: float, l1: float, rate: float, steps: int) -> float:
    """By Renyi DP at whole orders a; the moment of a mixture is the binomial sum of those of its parts.

    E_Q[((1 - q) + q L)^a] = sum_j C(a, j) (1 - q)^(a - j) q^j E_Q[L^j] with L = P / Q. That is the divergence of the
    mixture from Q; the other way round it is no larger where a map swaps P and Q, as a reflection does for noise that
    is symmetric (Mironov, Talwar and Zhang 2019, arXiv:1908.10530).
    """
    moments = [0.0, 0.0, *((j - 1) * published_rdp(variance, l2, l1, j) for j in ORDERS)]

    def divergence(order: int) -> float:
        if rate == 1:
            return published_rdp(variance, l2, l1, order)
        j = np.arange(order + 1)
        terms = np.log(comb(order, j)) + (order - j) * math.log1p(-rate) + j * math.log(rate) + moments[: order + 1]
        return float(logsumexp(terms)) / (order - 1)

    curve = steps * np.array([divergence(order) for order in ORDERS])
    return float(rdp_privacy_accountant.compute_epsilon(list(ORDERS), curve, DELTA)[0])


@pytest.mark.parametrize(("variance", "most"), [(5, 100), (20, 150), (300, 400)])
def test_no_step_of_the_normal_quantiles_is_longer_than_that_of_the_gaussian(variance: int, most: int) -> None:
    """h_k <= 1 / sqrt(v - 1), steps 1 to 3 and 5, far into the tail; and the bound is nearly reached at 0."""
    with mpmath.workdps(30):
        p = [mpmath.besseli(k, variance) * mpmath.exp(-variance) for k in range(2 * most)]
        tails = np.cumsum(p[::-1])[::-1]  # P(X >= k)
        quantiles = []
        for tail in tails[1 : most + 1]:
            start = mpmath.sqrt(max(mpmath.mpf(0.01), -2 * mpmath.log(2 * tail)))
            quantiles.append(
                mpmath.findroot(lambda x, t=tail: mpmath.log(mpmath.erfc(x / mpmath.sqrt(2)) / (2 * t)), start)
            )
        steps = [2 * quantiles[0], *np.diff(quantiles)]
        assert max(steps) <= 1 / mpmath.sqrt(variance - 1)
        assert steps[0] >= 1 / mpmath.sqrt(variance)


@pytest.mark.parametrize("variance", [5, 7.5, 40, 1000])
def test_what_the_proof_says_of_bessel_functions(variance: float) -> None:
    with mpmath.workdps(30):
        values = [mpmath.besseli(k, variance) for k in range(40)]
        for k in range(39):
            turan = 1 - (values[abs(k - 1)] / values[k]) * (values[k + 1] / values[k])  # step 4
            assert 0 < turan <= 1 / mpmath.sqrt(variance**2 + k**2 - mpmath.mpf(0.5))
            amos = variance / (k + 0.5 + mpmath.sqrt(variance**2 + (k + mpmath.mpf(1.5)) ** 2))  # step 2
            assert values[k + 1] / values[k] >= amos


def test_the_last_inequality_of_the_proof() -> None:
    with mpmath.workdps(80):
        for v in map(mpmath.mpf, [*np.linspace(5, 50, 200), *np.geomspace(50, 1e20, 50)]):
            assert -mpmath.log(1 - 1 / mpmath.sqrt(v * v - 0.5)) < 1 / (v - 1) - 1 / (4 * (v - 1) ** 2)


@pytest.mark.parametrize(
    ("variance", "shift", "rate"),
    [(5, 1, 1.0), (5, 3, 0.3), (100, 10, 1.0), (100, 10, 0.1), (100, 1, 0.5), (1e4, 250, 0.02), (1e6, 900, 0.7)],
)
def test_one_number_never_costs_more_than_the_event_says(variance: float, shift: int, rate: float) -> None:
    claimed = epsilon_pld([skellam_event(variance, shift, rate, 1)], DELTA)
    exact = max(exact_epsilon([one], DELTA) for one in sampled(variance, shift, rate))
    assert exact <= claimed
    if variance >= 1e4:
        assert claimed <= exact * 1.02  # where the tail of a Skellam variable is nearly normal


def test_control_a_claim_of_a_tenth_more_noise_is_refuted() -> None:
    claimed = epsilon_pld([skellam_event(110, 10, 0.1, 1)], DELTA)
    assert max(exact_epsilon([one], DELTA) for one in sampled(100, 10, 0.1)) > claimed


@pytest.mark.parametrize(("variance", "shift", "steps"), [(1000, 20, 2), (8, 2, 3)])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_several_steps_never_cost_more_than_their_event_says(
    variance: int, shift: int, rate: float, steps: int
) -> None:
    claimed = epsilon_pld([skellam_event(variance, shift, rate, steps)], DELTA)
    exact = max(exact_epsilon([one] * steps, DELTA) for one in sampled(variance, shift, rate))
    assert exact <= claimed
    assert variance < 1000 or claimed <= exact * 1.02


@pytest.mark.parametrize("shifts", [(3, 4), (5, 0), (1, 1), (4, -4, 2)])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_several_numbers_cost_no_more_than_their_length_says(shifts: tuple[int, ...], rate: float) -> None:
    """The unit moves all of them or, not drawn, none: the mixture is one of vectors."""
    pairs = [pair(20, shift) for shift in shifts]
    without, moved = (reduce(np.multiply.outer, [one[side] for one in pairs]) for side in (0, 1))
    mixed = (1 - rate) * without + rate * moved
    claimed = epsilon_pld([skellam_event(20, math.hypot(*shifts), rate, 1)], DELTA)
    for one in ((mixed, without), (without, mixed)):
        assert exact_epsilon([one], DELTA) <= claimed


@pytest.mark.parametrize(("variance", "shift", "order"), [*product([20.0, 1000.0], [1, 5], [2, 8, 30])])
def test_the_published_bound_holds_and_the_gaussian_one_is_below_it(variance: float, shift: int, order: int) -> None:
    without, moved = pair(variance, shift)
    exact = float(logsumexp(order * np.log(moved) + (1 - order) * np.log(without))) / (order - 1)
    ours = order * shift**2 / (2 * (variance - 1))
    assert exact <= ours * (1 + 1e-9)
    assert exact <= published_rdp(variance, shift, shift, order)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(7.6, 1.0, 30), (2.0, 0.2, 30), (1.0, 0.05, 500)])
def test_at_a_fine_scale_epsilon_is_that_of_gaussian_noise_and_of_the_published_route(
    sigma: float, rate: float, steps: int
) -> None:
    """650 numbers at a hundred units to the clipping norm: PLD, our RDP and the published RDP, in that order."""
    sensitivity = 100 * math.sqrt(650)
    variance = (sigma * sensitivity) ** 2
    event, gaussian = skellam_event(variance, sensitivity, rate, steps), Event(sigma, rate, steps)
    published = published_epsilon(variance, sensitivity, sensitivity * math.sqrt(650), rate, steps)
    assert epsilon_pld([gaussian], DELTA) <= epsilon_pld([event], DELTA) <= epsilon_pld([gaussian], DELTA) * 1.001
    assert epsilon_pld([event], DELTA) <= epsilon_rdp([event], DELTA) <= published * 1.001
    assert published <= 1.03 * epsilon_rdp([gaussian], DELTA)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 1e5])
@pytest.mark.parametrize("sensitivity", [1.0, 12345.6, 1e7])
def test_the_variance_for_a_multiplier_is_worth_it_and_hardly_more(sigma: float, sensitivity: float) -> None:
    variance = variance_for(sigma, sensitivity)
    assert noise_multiplier_of(variance, sensitivity) >= sigma
    assert variance == LEAST_VARIANCE or noise_multiplier_of(variance * (1 - 1e-9), sensitivity) < sigma


@pytest.mark.parametrize(("variance", "sensitivity"), [(4.9, 1.0), (math.nan, 1.0), (math.inf, 1.0), (9.0, 0.0)])
def test_what_is_not_proven_is_refused(variance: float, sensitivity: float) -> None:
    with pytest.raises(PrivacyError, match="variance"):
        skellam_event(variance, sensitivity, 0.1, 1)

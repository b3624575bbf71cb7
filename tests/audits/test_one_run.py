"""Bounds from one run: valid on mechanisms that are known, and no looser than their theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.special import expit
from scipy.stats import binom, norm

from common.errors import ConfigError
from common.privacy.accountant import noise_multiplier_for
from simulations.audits.attacks import attack_in_one_run
from simulations.audits.estimators import gaussian_mu
from simulations.audits.findings import Claim, Vector
from simulations.audits.one_run import (
    count_correct,
    is_refuted,
    one_run,
    one_run_fdp,
    one_run_p_value,
    plan_guesses,
)
from simulations.audits.trade_offs import (
    TradeOff,
    approximate,
    gaussian,
    gaussian_family,
    sampled_gaussian_family,
    with_memory,
)
from tests.audits.test_estimators import ALLOWED, DELTA, is_valid

RUNS = 200


def gaussian_scores(mu: float, canaries: int, rng: np.random.Generator) -> tuple[Vector, Vector]:
    """Log-likelihood ratios of a Gaussian mechanism, and the coins."""
    coins = rng.integers(0, 2, canaries).astype(float)
    return mu * (rng.normal(mu * coins, 1) - mu / 2), coins


def by_hand(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """The theorem, term by term."""
    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = sum(binom.pmf(k, guesses, accuracy) for k in range(correct, guesses + 1))
    steepest = max(
        (sum(binom.pmf(correct - j, guesses, accuracy) for j in range(1, i + 1)) / i for i in range(1, correct + 1)),
        default=0.0,
    )
    return float(min(1.0, tail + 2 * canaries * delta * steepest))


@given(
    guesses=st.integers(1, 40),
    part=st.floats(0, 1),
    more=st.integers(0, 100),
    epsilon=st.floats(0, 5),
    delta=st.sampled_from([0.0, 1e-5, 1e-2]),
)
def test_p_values_are_those_of_the_theorem(guesses, part, more, epsilon, delta):
    correct = round(part * guesses)
    expected = by_hand(correct, guesses, guesses + more, epsilon, delta)
    assert one_run_p_value(correct, guesses, guesses + more, epsilon, delta) == pytest.approx(expected, abs=1e-9)


def test_all_guesses_right_is_what_the_theory_says():
    for guesses in (10, 100, 1000):
        accuracy = 0.05 ** (1 / guesses)
        assert one_run(guesses, guesses, guesses, 0.0, 0.95) == pytest.approx(
            math.log(accuracy / (1 - accuracy)), abs=1e-4
        )
    assert one_run(100, 100, 100_000, DELTA, 0.95) < one_run(100, 100, 1000, DELTA, 0.95) < 3.49


def test_randomised_response_is_exceeded_as_often_as_may_be_and_its_point_estimate_more_often():
    rng, epsilon, guesses = np.random.default_rng(0), 1.5, 400
    correct = rng.binomial(guesses, expit(epsilon), RUNS)
    bounds = np.array([one_run(int(k), guesses, guesses, 0.0, 1 - ALLOWED) for k in correct])
    assert is_valid(bounds, epsilon)
    assert np.median(bounds) > epsilon - 2.2 * 1.2816 / math.sqrt(guesses * expit(epsilon) * expit(-epsilon))
    naive = np.log(correct / (guesses - correct))
    assert not is_valid(naive, epsilon), "control: without an interval the truth is exceeded every other time"


def test_dependent_guesses_stay_valid():
    """All canaries are revealed at once with probability delta times their number: the worst that delta allows."""
    rng, epsilon, guesses, delta = np.random.default_rng(1), 1.0, 100, 1e-3
    revealed = rng.random(RUNS) < delta
    correct = np.where(revealed, guesses, rng.binomial(guesses, expit(epsilon), RUNS))
    bounds = np.array([one_run(int(k), guesses, guesses, delta, 1 - ALLOWED) for k in correct])
    assert is_valid(bounds, epsilon)


def test_one_run_comes_up_to_its_theory_on_a_gaussian_mechanism():
    """The theory: as many right guesses as are expected of the surest, put into the theorem (the paper's figures)."""
    mu, canaries, guesses = gaussian_mu(4.0, DELTA), 5000, 150
    rng = np.random.default_rng(2)
    sure = np.sort(expit(np.abs(gaussian_scores(mu, 10**6, rng)[0])))[::-1][: 10**6 * guesses // canaries]
    theory = one_run(round(guesses * float(sure.mean())), guesses, canaries, DELTA, 0.95)
    found = []
    for _ in range(60):
        scores, coins = gaussian_scores(mu, canaries, rng)
        found.append(one_run(count_correct(scores, coins, guesses), guesses, canaries, DELTA, 0.95))
    assert np.median(found) == pytest.approx(theory, abs=0.3)
    assert 1.7 < theory < 4.0


def most_probable_tail(correct: int, guesses: int, canaries: int, curve: TradeOff) -> float:
    """The greatest P[at least so many right] that the curve allows, by linear programming over all distributions.

    Unknown: the probability of each number of right guesses. For each i, r(i + 1) <= power(h(i)), by tangents.
    """
    numbers = np.arange(guesses + 1)
    rates = np.concatenate([norm.cdf(np.linspace(-6, 6, 400))])
    powers = curve.power(rates)
    width = 1e-4 * np.minimum(rates, 1 - rates)
    slopes = (curve.power(rates + width) - curve.power(rates - width)) / (2 * width)
    rows, limits = [], []
    for i in range(guesses):
        right = np.where(numbers >= i + 1, numbers, 0) / canaries
        wrong = np.where(numbers >= i, guesses - numbers, 0) / canaries
        rows.append(right[None, :] - slopes[:, None] * wrong[None, :])
        limits.append(powers - slopes * rates)
    solved = linprog(
        -(numbers >= correct).astype(float),
        A_ub=np.concatenate(rows),
        b_ub=np.concatenate(limits),
        A_eq=np.ones((1, guesses + 1)),
        b_eq=[1.0],
    )
    return -float(solved.fun)


@pytest.mark.parametrize(("guesses", "canaries"), [(8, 8), (12, 30)])
def test_the_recursion_finds_what_linear_programming_finds(guesses, canaries):
    for curve in (gaussian(0.7), gaussian(1.5), approximate(1.0, 0.01)):
        for correct in range(guesses // 2 + 2, guesses + 1):
            greatest = most_probable_tail(correct, guesses, canaries, curve)
            if greatest < 0.9:
                assert is_refuted(correct, guesses, canaries, curve, greatest * 1.05 + 1e-6)
                assert not is_refuted(correct, guesses, canaries, curve, greatest * 0.95 - 1e-6)


def test_the_curve_of_a_gaussian_mechanism_is_not_exceeded_and_shows_more_than_epsilon_and_delta():
    epsilon, canaries, guesses = 4.0, 600, 150
    rng, family = np.random.default_rng(3), with_memory(gaussian_family(DELTA))
    bounds, plain = [], []
    for _ in range(RUNS // 2):
        scores, coins = gaussian_scores(gaussian_mu(epsilon, DELTA), canaries, rng)
        correct = count_correct(scores, coins, guesses)
        bounds.append(one_run_fdp(correct, guesses, canaries, family, 1 - ALLOWED))
        plain.append(one_run(correct, guesses, canaries, DELTA, 1 - ALLOWED))
    assert is_valid(np.array(bounds), epsilon)
    assert np.median(bounds) > np.median(plain) + 0.3
    assert not is_valid(np.array(bounds), 1.0), "control: a mechanism of epsilon 4 that claims 1 is caught"


@pytest.mark.slow
def test_poisson_sampled_steps_are_not_exceeded():
    rate, steps, canaries = 0.25, 10, 2000
    sigma = noise_multiplier_for(4.0, DELTA, rate, steps)
    claim = Claim(4.0, DELTA, "record", "local", steps, rate, sigma, 1.0)
    family = with_memory(sampled_gaussian_family(rate, steps, DELTA))
    expected = attack_in_one_run(claim, "server", canaries=20_000, nodes=1, seed=999)[0]
    guesses = plan_guesses(expected, canaries, DELTA, 0.95, None)
    bounds = []
    for seed in range(40):
        scores, coins = attack_in_one_run(claim, "server", canaries=canaries, nodes=1, seed=seed)
        correct = count_correct(scores, coins.astype(float), guesses)
        bounds.append(one_run_fdp(correct, guesses, canaries, family, 1 - ALLOWED))
    assert is_valid(np.array(bounds), 4.0)
    assert np.median(bounds) > 1.3


def test_guesses_are_planned_before_scores_are_seen_and_abstaining_pays():
    mu = gaussian_mu(4.0, DELTA)
    expected = gaussian_scores(mu, 50_000, np.random.default_rng(4))[0]
    guesses = plan_guesses(expected, 2000, DELTA, 0.95, None)
    assert 20 < guesses < 600
    accuracy = np.sort(expit(np.abs(expected)))[::-1]
    bounds = [one_run(math.floor(k * accuracy[: 25 * k].mean()), k, 2000, DELTA, 0.95) for k in (guesses, 2000)]
    assert bounds[0] > bounds[1] + 0.2


def test_what_cannot_be_is_refused_in_a_sentence():
    family = gaussian_family(DELTA)
    with pytest.raises(ConfigError, match=r"cannot be had from 4 guesses on 4 canaries.*insert more canaries"):
        one_run(4, 4, 4, 0.0, 0.95)
    with pytest.raises(ConfigError, match="cannot be had from 4 guesses"):
        one_run_fdp(4, 4, 100, family, 0.95)
    with pytest.raises(ConfigError, match="cannot be had from 3 guesses on 3 canaries"):
        plan_guesses(np.ones(100), 3, DELTA, 0.95, None)
    with pytest.raises(ConfigError, match="right guesses <= guesses <= canaries"):
        one_run(6, 5, 10, DELTA, 0.95)
    with pytest.raises(ConfigError, match="confidence must lie between"):
        one_run_fdp(5, 5, 10, family, 1.0)

"""No estimator exceeds an epsilon that is known, more often than its confidence allows; and none is far below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from common.errors import ConfigError
from common.privacy.accountant import Event, epsilon_pld, noise_multiplier_for
from simulations.audits.attacks import attack_gradient
from simulations.audits.estimators import clopper_pearson, gaussian_epsilon, gaussian_fit, gaussian_mu
from simulations.audits.findings import Claim, Vector
from simulations.audits.trade_offs import (
    approximate,
    gaussian,
    gaussian_family,
    sampled_gaussian,
    sampled_gaussian_family,
    with_memory,
)
from simulations.audits.two_sample import Evidence, by_distance, by_ratio, two_sample

FALSE_ALARM = 1e-6  # of each test: a valid estimator is called invalid with no more than this probability
ALLOWED = 0.1  # one minus the confidence of the bounds that are tested
DELTA = 1e-5
AUDITS = 200

Scores = tuple[Vector, Vector]
Bound = Callable[[Vector, Vector], float]


def is_valid(bounds: Vector, truth: float, allowed: float = ALLOWED) -> bool:
    """Whether bounds exceed the truth as seldom as they may, by an exact binomial test."""
    exceeding = int((bounds > truth).sum())
    return bool(binom.sf(exceeding - 1, len(bounds), allowed) > FALSE_ALARM)


def randomised_response(epsilon: float, count: int, rng: np.random.Generator) -> Scores:
    """The bit itself with probability e^epsilon / (1 + e^epsilon), else the other: what tells most under epsilon-DP."""
    truth = 1 / (1 + math.exp(-epsilon))
    return (rng.random(count) < truth).astype(float), (rng.random(count) >= truth).astype(float)


def normals(epsilon: float, count: int, rng: np.random.Generator) -> Scores:
    """Scores of the Gaussian mechanism with this epsilon at ``DELTA``."""
    return rng.normal(gaussian_mu(epsilon, DELTA), 1, count), rng.normal(0, 1, count)


def bounds_of(bound: Bound, draw: Callable[[np.random.Generator], Scores], audits: int = AUDITS) -> Vector:
    rng = np.random.default_rng(0)
    return np.array([bound(*draw(rng)) for _ in range(audits)])


def naive(scores_in: Vector, scores_out: Vector) -> float:
    """The control: the best threshold of all, chosen and measured on the same scores, without an interval."""
    tried = np.unique(np.concatenate([scores_in, scores_out]))
    hits = (scores_in[None, :] >= tried[:, None]).mean(axis=1)
    alarms = (scores_out[None, :] >= tried[:, None]).mean(axis=1)
    return float(np.log(np.maximum(hits - DELTA, 1e-12) / np.maximum(alarms, 1 / len(scores_out))).max())


def test_a_bound_that_is_wrong_three_times_in_ten_is_called_valid_once_in_a_hundred():
    assert binom.cdf(binom.isf(FALSE_ALARM, AUDITS, ALLOWED), AUDITS, 0.3) < 0.01


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_clopper_pearson_does_not_exceed_the_truth_of_randomised_response(epsilon):
    bounds = bounds_of(
        lambda a, b: clopper_pearson(a, b, 0.0, 1 - ALLOWED), lambda rng: randomised_response(epsilon, 300, rng)
    )
    assert is_valid(bounds, epsilon)


@pytest.mark.parametrize("epsilon", [0.0, 2.0])
def test_the_test_of_both_rates_does_not_exceed_the_truth_of_randomised_response(epsilon):
    bounds = bounds_of(
        lambda a, b: two_sample(a, b, 0.0, 1 - ALLOWED), lambda rng: randomised_response(epsilon, 100, rng), 60
    )
    assert is_valid(bounds, epsilon)


def test_control_a_threshold_chosen_on_the_scores_that_it_is_measured_by_exceeds_the_truth():
    assert not is_valid(bounds_of(naive, lambda rng: randomised_response(0.0, 100, rng), 60), 0.0)
    assert not is_valid(bounds_of(naive, lambda rng: randomised_response(2.0, 100, rng), 60), 2.0)


def test_a_gaussian_fit_exceeds_the_truth_just_as_often_as_it_may():
    bounds = bounds_of(lambda a, b: gaussian_fit(a, b, DELTA, 1 - ALLOWED)[0], lambda rng: normals(2.0, 200, rng), 300)
    exceeding = int((bounds > 2.0).sum())
    assert is_valid(bounds, 2.0)
    assert binom.cdf(exceeding, 300, ALLOWED) > FALSE_ALARM, "the interval of mu is exact, not cautious"


def test_control_the_point_estimate_of_a_gaussian_fit_exceeds_the_truth():
    bounds = bounds_of(lambda a, b: gaussian_fit(a, b, DELTA, 1 - ALLOWED)[1], lambda rng: normals(2.0, 200, rng))
    assert not is_valid(bounds, 2.0)


def test_bounds_for_a_family_do_not_exceed_the_truth_of_a_gaussian_mechanism():
    family = with_memory(gaussian_family(DELTA))
    bounds = bounds_of(
        lambda a, b: two_sample(a, b, DELTA, 1 - ALLOWED, family=family), lambda rng: normals(2.0, 150, rng), 50
    )
    assert is_valid(bounds, 2.0)
    assert np.median(bounds) > 0.3


@pytest.mark.slow
def test_no_bound_exceeds_the_truth_of_a_poisson_sampled_gaussian_mechanism():
    rate, steps = 0.25, 10
    sigma = noise_multiplier_for(4.0, DELTA, rate, steps)
    truth = epsilon_pld([Event(sigma, rate, steps)], DELTA)
    claim = Claim(truth, DELTA, "record", "local", steps, rate, sigma, 1.0)
    family = with_memory(sampled_gaussian_family(rate, steps, DELTA))
    bounds: dict[str, Bound] = {
        "clopper-pearson": lambda a, b: clopper_pearson(a, b, DELTA, 1 - ALLOWED),
        "both rates": lambda a, b: two_sample(a, b, DELTA, 1 - ALLOWED),
        "family": lambda a, b: two_sample(a, b, DELTA, 1 - ALLOWED, family=family),
    }
    seeds = iter(range(10**6))

    def draw(rng: np.random.Generator) -> Scores:
        return attack_gradient(claim, "server", heads=1000, nodes=1, parameters=4, seed=next(seeds))

    found = {name: bounds_of(bound, draw, 40) for name, bound in bounds.items()}
    assert all(is_valid(values, truth) for values in found.values())
    assert np.median(found["family"]) > 2.0 > np.median(found["clopper-pearson"]) > 0.2
    assert not is_valid(found["family"], 0.5 * truth), "control: half the truth would be exceeded"


@pytest.mark.parametrize(("epsilon", "by_rates", "by_fit"), [(4.0, 1.3, 3.3), (8.0, 2.2, 6.4)])
def test_four_thousand_heads_come_as_close_as_they_should(epsilon, by_rates, by_fit):
    claim = Claim(epsilon, DELTA, "record", "local", 30, 1.0, 30**0.5 / gaussian_mu(epsilon, DELTA), 1.0)
    runs = [attack_gradient(claim, "server", heads=4000, nodes=1, parameters=4, seed=seed) for seed in range(20)]
    assert np.median([clopper_pearson(*run, DELTA, 0.95) for run in runs]) >= by_rates
    assert np.median([gaussian_fit(*run, DELTA, 0.95)[0] for run in runs]) >= by_fit


def test_more_is_shown_of_both_rates_together_than_of_each_by_itself():
    rng = np.random.default_rng(1)
    runs = [normals(4.0, 2000, rng) for _ in range(5)]
    each = np.median([clopper_pearson(*run, DELTA, 0.95) for run in runs])
    both = np.median([two_sample(*run, DELTA, 0.95) for run in runs])
    family = np.median([two_sample(*run, DELTA, 0.95, family=gaussian_family(DELTA)) for run in runs])
    assert each < both < family < 4.0


def outcomes(size: int, rates: tuple[float, float]) -> Iterator[tuple[int, int, float]]:
    chances = binom.pmf(np.arange(size + 1), size, rates[0])[:, None] * binom.pmf(np.arange(size + 1), size, rates[1])
    return ((x, y, float(chances[x, y])) for x in range(size + 1) for y in range(size + 1))


def test_p_values_are_honest_for_every_rate_by_counting_all_outcomes():
    size, curve = 10, approximate(1.0, 0.01)
    values = {
        (x, y): Evidence(x, size, y, size, by_ratio(0.05), 0.001).p_value(curve)
        for x, y, _ in outcomes(size, (0.5, 0.5))
    }
    optimistic = {key: norm.sf(_wald(*key, size)) for key in values}  # the control: a normal approximation
    caught = 0
    for alarm in np.linspace(0.001, 0.999, 100):
        rates = float(curve.power(np.array(alarm))), float(alarm)
        for error in (0.05, 0.2):
            rejected = sum(chance for x, y, chance in outcomes(size, rates) if values[x, y] <= error)
            assert rejected <= error
            caught += sum(chance for x, y, chance in outcomes(size, rates) if optimistic[x, y] <= error) > error
    assert caught


def _wald(hits: int, alarms: int, size: int) -> float:
    gap = hits / size - math.e * alarms / size - 0.01
    return gap / math.sqrt((hits * (size - hits) + math.e**2 * alarms * (size - alarms)) / size**3 + 1e-9)


@settings(max_examples=6)
@given(hits=st.integers(0, 300), alarms=st.integers(0, 300))
def test_p_values_rise_with_what_is_allowed(hits, alarms):
    for merit in (by_ratio(0.05), by_distance(0.05)):
        evidence = Evidence(hits, 300, alarms, 300, merit, 0.001)
        for curves in (
            [approximate(epsilon, DELTA) for epsilon in np.arange(0.0, 6.0, 0.5)],
            [gaussian(mu) for mu in np.arange(0.05, 3.0, 0.4)],
        ):
            values = [evidence.p_value(curve) for curve in curves]
            assert (np.diff(values) >= -1e-12).all()


@given(epsilon=st.floats(0.1, 30), delta=st.floats(1e-9, 0.1))
def test_mu_and_epsilon_are_each_others_inverse(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-6)
    assert epsilon_pld([Event(1 / mu, 1.0, 1)], delta) == pytest.approx(epsilon, rel=1e-6)


@given(rates=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=20))
def test_curves_are_undone_by_their_inverses_and_mirror_themselves(rates):
    at = np.array(rates)
    for curve in (approximate(1.0, 0.01), gaussian(1.0), sampled_gaussian(1.0, 0.2, 10)):
        power = curve.power(at)
        assert (power >= at - 1e-12).all()
        inner = power < 1
        assert curve.inverse(power)[inner] == pytest.approx(at[inner], abs=1e-9)
        assert 1 - curve.inverse(1 - at) == pytest.approx(power, abs=1e-6)


def test_the_curve_of_sampled_gaussians_is_that_of_gaussians_where_all_are_sampled():
    at = np.array([0.001, 0.05, 0.3, 0.7])
    exact = gaussian(0.8).power(at)
    assert (sampled_gaussian(1.25, 1 - 1e-12, 1).power(at) >= exact - 1e-9).all()
    assert sampled_gaussian(1.25, 1 - 1e-12, 1).power(at) == pytest.approx(exact, abs=5e-3)


def test_only_the_order_of_scores_matters_to_rates_and_either_direction_is_found():
    inside, outside = normals(4.0, 400, np.random.default_rng(3))
    plain = clopper_pearson(inside, outside, DELTA, 0.95)
    assert clopper_pearson(np.exp(inside), np.exp(outside), DELTA, 0.95) == plain
    peaked = np.r_[np.zeros(100), np.ones(300)], np.zeros(400)  # one is seen with the canary only: TPR over FPR
    assert clopper_pearson(*peaked, DELTA, 0.95) > 3.0
    assert clopper_pearson(1 - peaked[1], 1 - peaked[0], DELTA, 0.95) > 3.0  # zero without it only: TNR over FNR


def test_no_noise_at_all_has_no_bound_but_that_of_the_number_of_heads():
    assert gaussian_fit(np.ones(20), np.zeros(20), DELTA, 0.95) == (math.inf, math.inf)
    assert 3.0 < clopper_pearson(np.ones(200), np.zeros(200), DELTA, 0.95) < 5.0
    assert gaussian_fit(np.zeros(20), np.ones(20), DELTA, 0.95) == (0.0, 0.0)


def test_what_cannot_be_is_refused_in_a_sentence():
    few, enough = np.arange(5.0), np.arange(50.0)
    with pytest.raises(ConfigError, match=r"needs at least .* scores .*train more heads"):
        clopper_pearson(few, enough, DELTA, 0.95)
    with pytest.raises(ConfigError, match="got NaN"):
        two_sample(enough, np.full(50, np.nan), DELTA, 0.95)
    with pytest.raises(ConfigError, match="finite scores"):
        gaussian_fit(enough, np.full(50, np.inf), DELTA, 0.95)
    with pytest.raises(ConfigError, match="confidence must lie between"):
        clopper_pearson(enough, enough, DELTA, 95.0)
    with pytest.raises(ConfigError, match="delta must lie between"):
        clopper_pearson(enough, enough, 2.0, 0.95)

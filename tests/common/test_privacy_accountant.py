"""The accountant never reports less than the truth, and agrees with independent ones."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import gdp
from scipy.stats import norm

from common.errors import ConfigError
from common.privacy.accountant import (
    TABLE_POINTS,
    Event,
    epsilon_after,
    epsilon_by_round,
    epsilon_pld,
    epsilon_rdp,
    epsilon_spent,
    group_events,
    noise_multiplier_for,
)
from common.privacy.plan import PrivacyTerms

DELTA = 1e-5
CASES = [(1.0, 0.05, 1000), (2.0, 0.2, 30), (1.0, 0.1, 200), (5.0, 0.5, 30), (0.8, 0.01, 500)]  # sigma, q, T

rates = st.floats(0.001, 0.999)
deviations = st.floats(0.5, 20.0)
few = settings(max_examples=25, deadline=None)


def one_sampled_gaussian_delta(sigma: float, q: float, epsilon: float) -> float:
    """The larger of both directions' hockey-stick divergences, from their definition."""

    def tail(threshold: float, mean: float) -> float:
        return float(norm.sf((threshold - mean) / sigma))

    def threshold(ratio: float) -> float:  # where (1 - q) + q exp((2x - 1) / 2 sigma^2) = ratio
        return sigma**2 * math.log((ratio - 1 + q) / q) + 0.5

    x = threshold(math.exp(epsilon))
    remove = (1 - q) * tail(x, 0) + q * tail(x, 1) - math.exp(epsilon) * tail(x, 0)
    if math.exp(-epsilon) <= 1 - q:
        return remove
    x = threshold(math.exp(-epsilon))
    add = (1 - tail(x, 0)) - math.exp(epsilon) * ((1 - q) * (1 - tail(x, 0)) + q * (1 - tail(x, 1)))
    return max(remove, add)


def prv_epsilon(sigma: float, q: float, steps: int) -> float:
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps)]
    return float(accountant.get_epsilon(DELTA))


def gdp_epsilon(sigma: float, q: float, steps: int) -> float:
    return float(gdp.compute_eps_poisson(steps=steps, noise_multiplier=sigma, sample_rate=q, delta=DELTA))


def optimistic_epsilon(sigma: float, q: float, steps: int) -> float:
    """A lower bound on the truth: every rounding goes down."""
    pld = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=q, pessimistic_estimate=False, use_connect_dots=False, value_discretization_interval=1e-3
    )
    return float(pld.self_compose(steps).get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize(("sigma", "q", "steps"), CASES)
def test_pld_agrees_with_opacus_prv_within_one_percent(sigma: float, q: float, steps: int) -> None:
    assert epsilon_pld([Event(sigma, q, steps)], DELTA) == pytest.approx(prv_epsilon(sigma, q, steps), rel=0.01)


@pytest.mark.parametrize(("sigma", "q", "steps"), CASES)
def test_rdp_agrees_with_opacus_rdp(sigma: float, q: float, steps: int) -> None:
    accountant = RDPAccountant()
    accountant.history = [(sigma, q, steps)]
    assert epsilon_rdp([Event(sigma, q, steps)], DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=0.02)


@few
@given(deviations, rates, st.integers(1, 300))
def test_pld_is_never_above_rdp(sigma: float, q: float, steps: int) -> None:
    assert epsilon_pld([Event(sigma, q, steps)], DELTA) <= epsilon_rdp([Event(sigma, q, steps)], DELTA)


@pytest.mark.parametrize(("sigma", "q", "steps"), CASES)
def test_pld_is_never_below_a_lower_bound_of_the_truth(sigma: float, q: float, steps: int) -> None:
    assert epsilon_pld([Event(sigma, q, steps)], DELTA) >= optimistic_epsilon(sigma, q, steps)


@pytest.mark.parametrize(("sigma", "q", "steps"), [(1.0, 0.05, 1000)])
def test_control_the_gdp_accountant_under_reports(sigma: float, q: float, steps: int) -> None:
    assert gdp_epsilon(sigma, q, steps) < optimistic_epsilon(sigma, q, steps)


@few
@given(deviations, rates)
def test_one_sampled_step_is_exact_to_a_thousandth_and_never_below(sigma: float, q: float) -> None:
    epsilon = epsilon_pld([Event(sigma, q, 1)], DELTA)
    assert one_sampled_gaussian_delta(sigma, q, epsilon) <= DELTA
    if epsilon > 1e-3:
        assert one_sampled_gaussian_delta(sigma, q, epsilon * 0.997) > DELTA


@settings(max_examples=200, deadline=None)
@given(st.floats(0.05, 1000.0), st.integers(1, 10_000), st.floats(1e-10, 1e-2))
def test_full_batches_are_exact_and_never_below(sigma: float, steps: int, delta: float) -> None:
    mu = math.sqrt(steps) / sigma
    epsilon = epsilon_pld([Event(sigma, 1.0, steps)], delta)

    def log_delta_is_at_most(epsilon: float, bound: float) -> bool:  # Balle and Wang, in logarithms
        log_a = float(norm.logcdf(mu / 2 - epsilon / mu))
        log_b = epsilon + float(norm.logcdf(-mu / 2 - epsilon / mu))
        return log_b >= log_a or log_a + math.log(-math.expm1(log_b - log_a)) <= math.log(bound)

    assert log_delta_is_at_most(epsilon, delta * (1 + 1e-6))
    assert epsilon == 0 or not log_delta_is_at_most(epsilon * (1 - 1e-5), delta * (1 - 1e-6))


@pytest.mark.parametrize(
    ("sigma", "q", "steps"), [(1e3, 0.1, 10**5), (1e4, 0.1, 10**5), (300.0, 0.3, 10**4), (500.0, 0.9, 10**5)]
)
def test_very_many_very_small_steps_are_not_lost_in_rounding(sigma: float, q: float, steps: int) -> None:
    """Where each step says almost nothing the central limit is exact, so that it bounds from below here."""
    limit = epsilon_pld([Event(1 / (q * math.sqrt(steps * math.expm1(sigma**-2))), 1.0, 1)], DELTA)
    assert limit * (1 - 1e-4) <= epsilon_pld([Event(sigma, q, steps)], DELTA) <= limit * 1.03
    assert epsilon_rdp([Event(sigma, q, steps)], DELTA) > limit


def test_cancellation_in_the_rdp_series_is_not_taken_for_perfect_privacy(caplog: pytest.LogCaptureFixture) -> None:
    assert epsilon_rdp([Event(1e5, 1e-6, 10**6)], DELTA) > 0
    assert not caplog.records


def test_full_batches_agree_with_the_numerical_pld() -> None:
    pld = privacy_loss_distribution.from_gaussian_mechanism(7.617 / math.sqrt(30), value_discretization_interval=1e-3)
    assert epsilon_pld([Event(7.617, 1.0, 30)], DELTA) == pytest.approx(pld.get_epsilon_for_delta(DELTA), rel=1e-4)


@few
@given(deviations, rates, st.integers(1, 100), st.integers(1, 100))
def test_more_steps_and_less_noise_never_cost_less(sigma: float, q: float, steps: int, more: int) -> None:
    base = epsilon_rdp([Event(sigma, q, steps)], DELTA)
    assert epsilon_rdp([Event(sigma, q, steps + more)], DELTA) >= base
    assert epsilon_rdp([Event(sigma * 0.9, q, steps)], DELTA) >= base * (1 - 1e-9)


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0]), st.sampled_from([0.1, 1.0]), st.integers(0, 5))))
def test_grouping_keeps_every_step(events: list[tuple[float, float, int]]) -> None:
    grouped = group_events(Event(*event) for event in events)
    assert sum(event.count for event in grouped) == sum(count for _, _, count in events)
    assert len({(event.noise_multiplier, event.sampling_rate) for event in grouped}) == len(grouped)


def test_every_entry_is_counted_and_not_only_the_last() -> None:
    history = [Event(2.0, 0.2, 10), Event(1.0, 0.2, 10)]
    for account in (epsilon_pld, epsilon_rdp):
        assert account(history, DELTA) == account(history[::-1], DELTA)
        assert account(history, DELTA) > 1.03 * account(history[-1:], DELTA)


def test_thirty_rounds_are_not_reported_as_one() -> None:
    """A new PrivacyEngine a round reports the last round's 2.0 where 8.3 is true."""
    terms = PrivacyTerms("record", "local", 0.2, 30, 5, 1.0, 1.5, DELTA)
    table = epsilon_by_round(terms)
    assert table[30] == epsilon_pld([Event(1.5, 0.2, 150)], DELTA)
    assert table[30] > 4 * table[1]
    assert all(after > before for before, after in pairwise(table))


def test_no_noise_costs_everything_and_no_step_nothing() -> None:
    for account in (epsilon_pld, epsilon_rdp):
        assert account([Event(0.0, 0.5, 1)], DELTA) == math.inf
        assert account([Event(0.0, 0.5, 0)], DELTA) == 0.0
        assert account([], DELTA) == 0.0


def test_very_little_noise_falls_back_to_rdp_and_stays_finite() -> None:
    events = [Event(0.05, 0.5, 100)]
    assert epsilon_pld(events, DELTA) == epsilon_rdp(events, DELTA) > 1000


def test_a_mixture_of_full_and_sampled_steps_composes() -> None:
    mixed = epsilon_pld([Event(10.0, 1.0, 5), Event(2.0, 0.2, 30)], DELTA)
    assert (
        epsilon_pld([Event(2.0, 0.2, 30)], DELTA)
        < mixed
        < epsilon_rdp([Event(10.0, 1.0, 5), Event(2.0, 0.2, 30)], DELTA)
    )


def test_one_plan_is_accounted_by_pld_and_several_by_rdp() -> None:
    first, second = Event(2.0, 0.2, 30), Event(4.0, 0.2, 30)
    assert epsilon_spent({}, DELTA).epsilon == 0.0
    one = epsilon_spent({"a": [first], "b": [Event(4.0, 0.2, 0)]}, DELTA)
    assert (one.epsilon, one.accountant) == (epsilon_pld([first], DELTA), "PLD")
    two = epsilon_spent({"a": [first], "b": [second]}, DELTA)
    assert (two.epsilon, two.accountant) == (epsilon_rdp([first, second], DELTA), "RDP (adaptive)")


@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_the_table_never_lies_below_the_accountant(rate: float) -> None:
    terms = PrivacyTerms("record", "local", rate, 3 * TABLE_POINTS, 2, 1.0, 4.0, DELTA)
    table = epsilon_by_round(terms)
    assert len(table) == terms.rounds + 1
    assert table[0] == 0.0
    assert table[-1] == epsilon_pld([Event(4.0, rate, terms.steps)], DELTA)
    for k in (1, 2, 77, 100, 150, 191):
        assert epsilon_pld([Event(4.0, rate, 2 * k)], DELTA) <= epsilon_after(terms, k) <= table[k]
    assert [epsilon_after(terms, k) for k in range(terms.rounds + 1)] == list(table)
    assert all(after >= before for before, after in pairwise(table))


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"),
    [(0.1, 1.0, 30), (3.0, 1.0, 30), (8.0, 1.0, 1), (0.1, 0.2, 30), (3.0, 0.2, 30), (1.0, 0.05, 200), (8.0, 0.5, 1)],
)
def test_the_noise_is_the_least_that_keeps_the_budget(epsilon: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier_for(epsilon, DELTA, rate, steps)
    assert epsilon_pld([Event(sigma, rate, steps)], DELTA) <= epsilon
    assert epsilon_pld([Event(sigma * 0.998, rate, steps)], DELTA) > epsilon


def test_a_budget_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        noise_multiplier_for(1e-9, 1e-10, 1.0, 1000)
    with pytest.raises(ConfigError, match="epsilon"):
        noise_multiplier_for(0.0, DELTA, 0.2, 30)


def test_an_enormous_budget_still_gets_noise() -> None:
    assert 0 < noise_multiplier_for(1e9, DELTA, 0.2, 30) < 0.1

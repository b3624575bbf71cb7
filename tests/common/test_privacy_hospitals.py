"""A patient of several hospitals: the bound against what the mechanisms really do, computed by brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray
from scipy.stats import binom, norm, skellam

from common.errors import PrivacyError, ProtocolError
from common.privacy.accountant import epsilon_by_round
from common.privacy.hospitals import (
    across,
    across_hospitals,
    card_sentence,
    in_words,
    noise_multiplier_across,
    worth_in_parts,
)
from common.privacy.plan import PrivacyTerms
from common.privacy.skellam import variance_for
from common.privacy.sums import noise_shares
from tests.federations import small_terms

SUMS = {"trust": "secagg", "nodes": 6, "colluders": 1, "largest_node": 500}
Floats = NDArray[np.float64]


def terms(hospitals: int, **changes: object) -> PrivacyTerms:
    return small_terms(**{"unit": "patient", "records_per_unit": 5, "hospitals_per_unit": hospitals, **changes})


def claimed(of: PrivacyTerms) -> float:
    return across(of, [of.rounds] * 6).epsilon


def hockey_sticks(present: Floats, absent: Floats, epsilon: float) -> float:
    """The larger delta of the two directions, for densities or probabilities on one grid."""
    grow = math.exp(epsilon)
    return float(max(np.maximum(present - grow * absent, 0).sum(), np.maximum(absent - grow * present, 0).sum()))


def mixture_delta(sigma: float, rate: float, hospitals: int, epsilon: float) -> float:
    """Exact for one sum with Gaussian noise, every hospital's change pointing the same way."""
    grid, step = np.linspace(-12 * sigma, 12 * sigma + hospitals, 20_001, retstep=True)
    weights = binom.pmf(range(hospitals + 1), hospitals, rate)
    present = sum(weight * norm.pdf(grid, k, sigma) for k, weight in enumerate(weights))
    return hockey_sticks(np.asarray(present) * step, norm.pdf(grid, 0, sigma) * step, epsilon)


@pytest.mark.parametrize(("sigma", "rate", "hospitals"), [(1.0, 0.05, 2), (2.0, 0.5, 2), (6.0, 1.0, 4), (2.0, 0.05, 4)])
def test_a_sum_costs_no_more_than_the_bound_and_more_than_one_hospital(
    sigma: float, rate: float, hospitals: int
) -> None:
    one_round = terms(hospitals, **SUMS, rounds=1, noise_multiplier=sigma, sampling_rate=rate)
    assert mixture_delta(sigma, rate, hospitals, claimed(one_round)) <= one_round.delta * (1 + 1e-6)
    as_for_one = claimed(replace(one_round, hospitals_per_unit=1))
    assert mixture_delta(sigma, rate, hospitals, as_for_one) > one_round.delta  # the control


@pytest.mark.parametrize(("sigma", "rate"), [(1.5, 0.1)])
def test_many_sums_cost_no_more_than_the_bound(sigma: float, rate: float) -> None:
    of = terms(3, **SUMS, rounds=20, noise_multiplier=sigma, sampling_rate=rate)
    step = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        sigma,
        [0.0, 1.0, 2.0, 3.0],
        binom.pmf(range(4), 3, rate).tolist(),
        pessimistic_estimate=False,
        value_discretization_interval=1e-2,
        use_connect_dots=False,
    )
    truth = step.self_compose(20).get_epsilon_for_delta(of.delta)
    assert claimed(replace(of, hospitals_per_unit=1)) < truth <= claimed(of)


def test_where_noise_is_large_little_is_lost_to_the_tighter_bound() -> None:
    of = terms(2, **SUMS, rounds=20, noise_multiplier=4.0, sampling_rate=0.1)
    step = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        4.0, [0.0, 1.0, 2.0], binom.pmf(range(3), 2, 0.1).tolist(), value_discretization_interval=1e-2
    )
    tight = step.self_compose(20).get_epsilon_for_delta(of.delta)
    assert tight < claimed(of) < 1.05 * tight


@pytest.mark.parametrize("changes", [((3, 0), (3, 0)), ((3, 0), (0, 3)), ((3, 0), (-3, 0)), ((2, 2), (3, -1))])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_whole_numbers_under_skellam_noise_keep_the_bound(
    changes: tuple[tuple[int, int], tuple[int, int]], rate: float
) -> None:
    sigma = 1.5
    sensitivity = max(math.hypot(*change) for change in changes)
    of = terms(2, **SUMS, rounds=1, noise_multiplier=sigma, sampling_rate=rate)
    variance = (sigma * sensitivity) ** 2 + 2  # as noise_shares makes it for two hospitals
    assert worth_in_parts(variance * (1 + 1e-9), sensitivity, sigma, 2)
    grid = np.arange(-45, 46)

    def shifted(by: tuple[int, int]) -> Floats:
        one, other = (skellam.pmf(grid - each, variance / 2, variance / 2) for each in by)
        return np.outer(one, other)

    present = np.zeros((len(grid), len(grid)))
    for joins in product([0, 1], repeat=2):
        weight = math.prod(rate if each else 1 - rate for each in joins)
        moved = np.array(joins) @ np.array(changes)
        present += weight * shifted((int(moved[0]), int(moved[1])))
    assert hockey_sticks(present, shifted((0, 0)), claimed(of)) <= of.delta
    if changes == ((3, 0), (3, 0)):
        as_for_one = claimed(replace(of, hospitals_per_unit=1))
        assert hockey_sticks(present, shifted((0, 0)), as_for_one) > of.delta  # the control


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_local_noise_composes_the_steps_of_the_hospitals(rate: float) -> None:
    of = terms(3, rounds=4, sampling_rate=rate)
    assert claimed(of) == pytest.approx(epsilon_by_round(replace(of, rounds=12, hospitals_per_unit=1))[12])
    sigma = of.noise_multiplier
    if rate == 1.0:  # three releases of four steps move a Gaussian by sqrt(12)
        grid, step = np.linspace(-12, 25, 400_001, retstep=True)
        present, absent = norm.pdf(grid, math.sqrt(12) / sigma) * step, norm.pdf(grid) * step
        assert hockey_sticks(present, absent, claimed(of)) <= of.delta * (1 + 1e-6)
        assert hockey_sticks(present, absent, epsilon_by_round(of)[4]) > of.delta  # one node's figure


def test_the_nodes_that_were_charged_most_count() -> None:
    of = terms(2, rounds=9)
    assert across(of, [1, 9, 4, 0]).epsilon == across(of, [9, 4]).epsilon > across(of, [9]).epsilon
    assert across(of, []).epsilon == 0


@pytest.mark.parametrize("trust", ["local", "secagg"])
@pytest.mark.parametrize("hospitals", [1, 3])
def test_the_noise_is_made_for_the_patient_across_hospitals(trust: str, hospitals: int) -> None:
    sigma = noise_multiplier_across(2.0, 1e-5, 0.2, 4, trust, hospitals)
    sums = SUMS if trust == "secagg" else {}
    of = terms(hospitals, **sums, rounds=4, sampling_rate=0.2, noise_multiplier=sigma)
    found = across(of, [4] * 6)
    assert 1.99 < found.epsilon <= 2.0
    assert epsilon_by_round(of)[4] <= found.epsilon
    assert found.against_model <= found.epsilon


def test_shares_are_worth_their_parts() -> None:
    of = terms(50, **{**SUMS, "nodes": 60})
    plain, found = noise_shares(replace(of, hospitals_per_unit=1), 650), noise_shares(of, 650)
    honest = found.share_variance * found.cohort.honest
    assert worth_in_parts(honest, found.sensitivity, of.noise_multiplier, 50)
    enough = variance_for(of.noise_multiplier, plain.sensitivity)
    assert not worth_in_parts(enough, plain.sensitivity, of.noise_multiplier, 50)  # what one hospital needs
    assert found.share_variance < 1.001 * plain.share_variance


def test_terms_say_it_where_it_says_something_and_keep_their_digests_where_not() -> None:
    one, two = terms(1), terms(2)
    assert "hospitals_per_unit" not in one.to_dict()
    assert one.digest == small_terms(unit="patient", records_per_unit=5).digest != two.digest
    assert PrivacyTerms.from_dict(two.to_dict()) == two
    assert two.to_dict()["hospitals_per_unit"] == 2
    for wrong in (1, True, 0, "2", 2.5, None):
        with pytest.raises((ProtocolError, PrivacyError)):
            PrivacyTerms.from_dict({**one.to_dict(), "hospitals_per_unit": wrong})
    with pytest.raises(PrivacyError, match="hospitals_per_unit"):
        small_terms(hospitals_per_unit=2)


def test_plans_and_cards_state_both_figures() -> None:
    two = terms(2, **SUMS)
    assert in_words(terms(1)) == "" == card_sentence(across_hospitals(terms(1), [3]))
    assert in_words(two).endswith("across hospitals for a patient of up to 2")
    figures = across_hospitals(two, [3, 3, 2])
    assert figures["hospitals_per_patient"] == 2
    assert figures["epsilon_across_hospitals"] > figures["epsilon_across_hospitals_against_model"]
    assert f"{figures['epsilon_across_hospitals']:.3f} at the same delta" in card_sentence(figures)
    assert set(across_hospitals(terms(2), [3])) == {"hospitals_per_patient", "epsilon_across_hospitals"}

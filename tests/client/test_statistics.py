"""A node's noised statistics: bounded, paid before a record is read, released once, in one ledger with training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from client import egress
from client.node import Node, Records
from client.statistics import noised_sums, release_statistics
from client.training import train_round
from common.errors import BudgetSpentError, PrivacyError, ProtocolError
from common.noised_moments import SENSITIVITY, Sketch, StatisticsTask
from common.privacy.accountant import Event, epsilon_by_round, epsilon_pld, epsilon_rdp
from common.privacy.noise import Randomness, SeededRandomness, SystemRandomness
from common.privacy.plan import PrivacyTerms
from tests.client.test_training import node_in
from tests.federations import small_offer, small_task

FALSE_ALARM = 1e-6
CANDIDATES = 3
SKETCH = Sketch(seed=0, width=16)
SIZE = 16 * 17 // 2 + 10 * 16 + 10


def task(candidate: int = 1, run: str = "rank-1", **changes: Any) -> StatisticsTask:
    values = {"sampling_rate": 1.0, "rounds": CANDIDATES, "noise_multiplier": 10.0, "clipping_norm": SENSITIVITY}
    offer = dataclasses.replace(small_offer(**{**values, **changes}), run_id=run)
    return StatisticsTask(offer, candidate, SKETCH)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return node_in(tmp_path)


def spent(node: Node) -> float:
    with node.open_ledger() as ledger:
        return ledger.statement().epsilon


def test_each_candidate_is_charged_as_one_step_of_one_plan(node):
    for candidate in range(1, CANDIDATES + 1):
        release_statistics(task(candidate), node)
        assert spent(node) == epsilon_by_round(task().offer.terms)[candidate]
    assert spent(node) == pytest.approx(epsilon_pld([Event(10.0, 1.0, CANDIDATES)], 1e-5))


def test_the_same_task_again_gets_the_stored_bytes_and_costs_nothing(tmp_path):
    node = node_in(tmp_path, federation={"seed": None})  # fresh noise would show
    first, cost = release_statistics(task(), node).values, spent(node)
    assert np.array_equal(release_statistics(task(), node).values, first)
    assert spent(node) == cost


def test_another_projection_of_the_same_candidate_is_another_charge(node):
    release_statistics(task(), node)
    cost = spent(node)
    release_statistics(dataclasses.replace(task(), sketch=Sketch(1, 16)), node)
    assert spent(node) > cost


def test_a_ledger_that_holds_a_training_plan_composes_by_rdp(node):
    train_round(small_task(), node)
    release_statistics(task(), node)
    with node.open_ledger() as ledger:
        statement = ledger.statement()
    terms: PrivacyTerms = small_task().offer.terms
    trained = Event(terms.noise_multiplier, terms.sampling_rate, terms.steps_per_round)
    assert statement.accountant == "RDP (adaptive)"
    assert statement.epsilon == pytest.approx(epsilon_rdp([trained, Event(10.0, 1.0, 1)], 1e-5))
    assert statement.committed == (("run-1", 1), ("rank-1", 1))


def unreadable(node: Node) -> Node:
    def records(model: object) -> Records:
        raise AssertionError("a record was read")

    return dataclasses.replace(node, records=records)


def test_what_does_not_fit_the_budget_is_refused_before_a_record_is_read(node):
    with pytest.raises(BudgetSpentError):
        release_statistics(task(noise_multiplier=0.3), unreadable(node))
    assert spent(node) == 0


def test_it_is_paid_before_a_record_is_read(node):
    with pytest.raises(AssertionError, match="a record was read"):
        release_statistics(task(), unreadable(node))
    assert spent(node) == epsilon_by_round(task().offer.terms)[1]


@pytest.mark.parametrize("change", [{"sampling_rate": 0.5}, {"steps_per_round": 2}, {"clipping_norm": 0.5}])
def test_terms_of_another_mechanism_are_refused(node, change):
    with pytest.raises(PrivacyError, match="other terms"):
        release_statistics(task(**change), unreadable(node))
    assert spent(node) == 0


@pytest.mark.parametrize("candidate", [0, CANDIDATES + 1])
def test_a_candidate_that_the_plan_does_not_have_is_refused(node, candidate):
    with pytest.raises(ProtocolError, match="candidate"):
        release_statistics(task(candidate), unreadable(node))


def test_noise_has_the_plans_deviation_in_every_number(node):
    assert deviates_by(10.0, residues(node, SystemRandomness()))


def test_noise_five_percent_too_small_is_caught(node):
    assert not deviates_by(10.0 / 0.95, residues(node, SystemRandomness()))


def residues(node: Node, randomness: Randomness) -> NDArray[np.float64]:
    """What noise was added, over many releases of the same sums."""
    records = node.records(task().offer.model)
    plan = task().offer.terms.for_node(node.declared_size)
    quiet = dataclasses.replace(plan, terms=dataclasses.replace(plan.terms, noise_multiplier=0.01))
    sums = noised_sums(task(), records, quiet, Silence())
    return np.concatenate([noised_sums(task(), records, plan, randomness) - sums for _ in range(70)])


class Silence:
    """No noise at all."""

    kind: Literal["system"] = "system"

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return np.zeros(shape)

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        raise AssertionError("every record takes part")


def deviates_by(deviation: float, noise: NDArray[np.float64]) -> bool:
    """Passes a right deviation but once in a million runs; 5 % too small passes less often than that."""
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=noise.size)
    return bool(low <= float((noise / deviation) @ (noise / deviation)) <= high)


def test_one_record_more_or_less_moves_the_sums_by_at_most_the_sensitivity(node):
    records = node.records(task().offer.model)
    plan = task().offer.terms.for_node(node.declared_size)
    everything = noised_sums(task(), records, plan, Silence())
    moves = []
    for left_out in range(20):
        kept = np.delete(np.arange(len(records)), left_out)
        fewer = Records(records.features, records.rows[kept], records.targets[kept])
        moves.append(float(np.linalg.norm(everything - noised_sums(task(), fewer, plan, Silence()))))
    assert max(moves) <= SENSITIVITY + 1e-9
    assert min(moves) > 0.99 * SENSITIVITY  # the bound is met: no noise is wasted


def test_a_record_that_is_not_finite_counts_zero_and_stops_nothing(node):
    records = node.records(task().offer.model)
    spoiled = np.array(records.features)
    spoiled[records.rows[3]] = math.nan
    plan = task().offer.terms.for_node(node.declared_size)
    values = noised_sums(task(), Records(spoiled, records.rows, records.targets), plan, Silence())
    assert np.isfinite(values).all()


def test_noise_of_a_release_is_not_that_of_a_round(node):
    rounds = [node.randomness(number)[1].normal((5,)) for number in (1, 2, 3)]
    releases = [node.randomness(-number)[1].normal((5,)) for number in (1, 2, 3)]
    assert len({tuple(draws) for draws in (*rounds, *releases)}) == 6
    assert isinstance(node.randomness(-1)[1], SeededRandomness)


@pytest.mark.parametrize("values", [np.zeros(3), np.full(4, np.nan), np.zeros(4, np.float32), np.zeros((2, 2))])
def test_any_other_statistics_stay(values):
    with pytest.raises(PrivacyError, match="nothing was released"):
        egress.release_statistics(values, 4)

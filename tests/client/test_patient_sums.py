"""Patients as the unit: one clipped mean a patient, whoever else is there, and what clipping records would miss."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, chisquare
from torch import Tensor, nn

from client.mechanism import ClippedSum, clipped_sum
from client.node import Node
from client.patient_sums import draw, patient_clipped_sum
from client.training import private_update, train_round
from common.errors import PrivacyError
from common.model import trained_head
from common.privacy.accountant import noise_multiplier_for
from common.privacy.noise import SeededRandomness
from common.tasks import PerUnitLoss, classification_loss, task_named
from simulations.audits.estimators import gaussian_epsilon
from tests.client.test_mechanism import assert_same, by_opacus, clip_and_sum, linear, one_by_one, squared_loss
from tests.client.test_token_sums import draw as draw_tokens
from tests.client.test_token_sums import token_head
from tests.client.test_training import node_in
from tests.federations import small_task

FALSE_ALARM = 1e-6

sizes_ = st.lists(st.integers(1, 6), max_size=8)
widths, classes_, seeds = st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32)
norms, scales = st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)
losses = st.sampled_from([classification_loss, squared_loss])


def records(seed: int, count: int, width: int, classes: int, scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(count, width, generator=generator)
    return features, torch.randint(0, classes, (count,), generator=generator)


def means(gradients: list[dict[str, Tensor]], sizes: list[int]) -> list[dict[str, Tensor]]:
    """The mean of each patient's gradients: the definition."""
    found, start = [], 0
    for size in sizes:
        own = gradients[start : start + size]
        found.append({name: torch.stack([each[name] for each in own]).mean(dim=0) for name in own[0]})
        start += size
    return found


def mlp(width: int, classes: int) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, classes))


def distance(one: ClippedSum, other: ClippedSum) -> float:
    return math.sqrt(sum(float((one.values[name] - other.values[name]).square().sum()) for name in one.values))


@settings(max_examples=100, deadline=None)
@given(sizes_, widths, classes_, st.booleans(), norms, scales, losses, seeds)
def test_a_linear_heads_sum_equals_the_mean_of_opacus_gradients_clipped_once_a_patient(
    sizes: list[int], width: int, classes: int, bias: bool, norm: float, scale: float, loss: PerUnitLoss, seed: int
) -> None:
    head = linear(width, classes, bias, seed % 1000)
    features, targets = records(seed, sum(sizes), width, classes, scale)
    gradients = by_opacus(head, loss, features, targets) if sizes else []
    expected = clip_and_sum(means(gradients, sizes), head, norm)
    found = patient_clipped_sum(head, loss, features, targets, np.array(sizes, dtype=np.int64), norm)
    assert_same(found, expected, len(sizes), norm)


@settings(max_examples=25, deadline=None)
@given(sizes_, norms, scales, losses, seeds)
def test_a_deep_heads_sum_equals_autograd_record_by_record(
    sizes: list[int], norm: float, scale: float, loss: PerUnitLoss, seed: int
) -> None:
    head, (features, targets) = mlp(5, 3), records(seed, sum(sizes), 5, 3, scale)
    expected = clip_and_sum(means(one_by_one(head, loss, features, targets), sizes), head, norm)
    found = patient_clipped_sum(head, loss, features, targets, np.array(sizes, dtype=np.int64), norm)
    assert_same(found, expected, len(sizes), norm)


def test_patients_of_one_record_are_records() -> None:
    head, (features, targets) = linear(6, 3, True), records(1, 9, 6, 3, 2.0)
    ones = np.ones(9, dtype=np.int64)
    found = patient_clipped_sum(head, classification_loss, features, targets, ones, 0.5)
    assert_same(found, clipped_sum(head, classification_loss, features, targets, 0.5).values, 9, 0.5)


@pytest.mark.parametrize("task", ["tokens", "spans"])
def test_a_token_heads_patients_are_clipped_whole(task: str) -> None:
    head, (features, targets) = token_head(task, 9, 4), draw_tokens(task, 6, 9, 4, 1, 3.0)
    loss, alone = task_named(task).loss, np.array([3], dtype=np.int64)
    both = patient_clipped_sum(head, loss, features, targets, np.array([3, 3]), 0.1)
    one = patient_clipped_sum(head, loss, features[:3], targets[:3], alone, 0.1)
    other = patient_clipped_sum(head, loss, features[3:], targets[3:], alone, 0.1)
    assert distance(one, ClippedSum({name: 0 * value for name, value in one.values.items()}, 0.1, 0)) <= 0.1 * (
        1 + 1e-12
    )
    for name, value in both.values.items():
        assert torch.allclose(value, one.values[name] + other.values[name], rtol=1e-12, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), norms, st.sampled_from([1e-2, 1.0, 1e8]), losses, seeds)
def test_one_patient_more_moves_the_sum_by_at_most_the_clipping_norm(
    sizes: list[int], norm: float, scale: float, loss: PerUnitLoss, seed: int
) -> None:
    head, (features, targets) = linear(7, 4, True), records(seed, sum(sizes), 7, 4, scale)
    more = patient_clipped_sum(head, loss, features, targets, np.array(sizes), norm)
    rest = slice(sizes[0], None)
    less = patient_clipped_sum(head, loss, features[rest], targets[rest], np.array(sizes[1:], dtype=np.int64), norm)
    assert distance(more, less) <= norm * (1 + 1e-12 * len(sizes))


@pytest.mark.parametrize("count", [2, 10, 50])
def test_control_with_records_clipped_a_patient_moves_the_sum_by_nearly_as_many_norms(count: int) -> None:
    """Accounting for records promises a patient with ``count`` alike records too little noise by that factor."""
    head, (features, targets) = linear(7, 4, True), records(1, 20, 7, 4, 5.0)
    features[:count], targets[:count] = features[0].clone(), targets[0].clone()
    features, targets = (
        torch.cat([features[:1].repeat(count, 1), features]),
        torch.cat([targets[:1].repeat(count), targets]),
    )
    more = clipped_sum(head, classification_loss, features, targets, 0.5)
    less = clipped_sum(head, classification_loss, features[count:], targets[count:], 0.5)
    assert distance(more, less) > 0.99 * count * 0.5


@pytest.mark.parametrize("count", [1, 2, 10, 50])
def test_accounting_for_records_promises_a_patient_too_little_and_for_patients_enough(count: int) -> None:
    """What one full-batch release certainly costs a patient of alike records, where epsilon = 1 is stated."""
    delta, norm, head = 1e-5, 0.5, linear(7, 4, True)
    sigma = noise_multiplier_for(1.0, delta, 1.0, 1)
    features, targets = records(1, 1, 7, 4, 5.0)
    features, targets = features.repeat(count, 1), targets.repeat(count)
    by_record = clipped_sum(head, classification_loss, features, targets, norm)
    by_patient = patient_clipped_sum(head, classification_loss, features, targets, np.array([count]), norm)
    nothing = ClippedSum({name: 0 * value for name, value in by_record.values.items()}, norm, 0)
    truth = [gaussian_epsilon(distance(each, nothing) / norm / sigma, delta) for each in (by_record, by_patient)]
    assert truth[1] <= 1.0 + 1e-6
    assert truth[0] > 1.0 if count > 1 else truth[0] == pytest.approx(truth[1])
    assert truth[0] > 20 or count < 50


def test_a_patients_gradient_has_the_same_bits_in_any_company() -> None:
    """Others that are not finite add nothing, so that the sum is the one patient's gradient."""
    for scale in (1e-2, 1.0, 1e8):
        head, (features, targets) = linear(33, 5, True), records(2, 24, 33, 5, scale)
        alone = patient_clipped_sum(head, classification_loss, features[4:8], targets[4:8], np.array([4]), 1.0)
        company = torch.full_like(features, torch.nan)
        company[4:8] = features[4:8]
        found = patient_clipped_sum(head, classification_loss, company, targets, np.array([4, 4, 4, 4, 2, 2, 4]), 1.0)
        assert found.non_finite == 6
        assert all(torch.equal(alone.values[name], found.values[name]) for name in alone.values)


def test_records_that_nearly_cancel_are_measured_as_what_is_left() -> None:
    """A norm from products of norms loses what is left of two opposite gradients of 1e9; formed, it is bounded."""
    head = linear(3, 2, False)
    with torch.no_grad():
        head.weight.zero_()
    features = torch.tensor([[1e9, 1.0, 0.0], [1e9, 0.0, 1.0]])
    for norm in (1e-6, 0.1):
        found = patient_clipped_sum(head, classification_loss, features, torch.tensor([0, 1]), np.array([2]), norm)
        assert float(found.values["weight"].norm()) == pytest.approx(norm, rel=1e-9)


def test_a_patient_with_a_record_that_is_not_finite_counts_zero() -> None:
    head, (features, targets) = linear(4, 3, True), records(1, 6, 4, 3, 1.0)
    features[1, 2] = torch.inf
    found = patient_clipped_sum(head, classification_loss, features, targets, np.array([2, 4]), 1.0)
    rest = patient_clipped_sum(head, classification_loss, features[2:], targets[2:], np.array([4]), 1.0)
    assert found.non_finite == 1
    assert distance(found, rest) == 0


def test_a_reduced_loss_or_a_norm_that_bounds_nothing_is_refused() -> None:
    head, (features, targets) = linear(4, 3, True), records(1, 6, 4, 3, 1.0)
    with pytest.raises(PrivacyError, match="unreduced"):
        patient_clipped_sum(head, nn.functional.cross_entropy, features, targets, np.array([2, 4]), 1.0)
    with pytest.raises(PrivacyError, match="clipping norm"):
        patient_clipped_sum(head, classification_loss, features, targets, np.array([2, 4]), math.inf)


PATIENTS = np.repeat(np.arange(8), [1, 2, 3, 5, 8, 13, 21, 34])[np.random.default_rng(0).permutation(87)]


def drawn(times: int, rate: float, most: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    randomness = SeededRandomness(1, "node", 1, "sampling")
    return [draw(PATIENTS, rate, most, randomness) for _ in range(times)]


def test_patients_are_drawn_one_by_one_and_bring_at_most_so_many_records() -> None:
    draws = drawn(2000, 0.3, 4)
    seen = np.zeros(8)
    for rows, sizes in draws:
        who = PATIENTS[rows]
        assert len(np.unique(rows)) == len(rows) == sizes.sum()
        assert (np.diff(who) >= 0).all()
        assert sizes.tolist() == np.minimum(np.bincount(PATIENTS)[np.unique(who)], 4).tolist()
        seen[np.unique(who)] += 1
    assert all(binomtest(int(count), 2000, 0.3).pvalue > FALSE_ALARM for count in seen)


def test_each_of_a_patients_records_is_as_likely_and_they_are_drawn_anew() -> None:
    counts = np.zeros(len(PATIENTS))
    draws = drawn(4000, 1.0, 4)
    for rows, _ in draws:
        counts[rows] += 1
    for patient in range(8):
        own = counts[patient == PATIENTS]
        assert (own == 4000).all() if len(own) <= 4 else chisquare(own).pvalue > FALSE_ALARM
    assert len({tuple(np.sort(rows)) for rows, _ in draws}) > 3990


def test_nobody_is_there_to_be_drawn() -> None:
    rows, sizes = draw(np.empty(0, dtype=np.int64), 0.5, 3, SeededRandomness(1, "node", 1, "sampling"))
    assert len(rows) == len(sizes) == 0
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    found = patient_clipped_sum(linear(4, 3, True), classification_loss, *empty, sizes, 1.0)
    assert all(not value.any() for value in found.values.values())


def patient_node(tmp_path, patients: NDArray[np.int64] | None) -> Node:
    """A simulated node that protects patients."""
    node = node_in(tmp_path)
    policy = dataclasses.replace(node.policy, unit="patient")
    return dataclasses.replace(
        node,
        policy=policy,
        declared_size=60,
        records=lambda model: dataclasses.replace(node.records(model), patients=patients),
    )


def test_a_plan_for_patients_is_refused_where_the_data_name_none(tmp_path) -> None:
    task = small_task(unit="patient", records_per_unit=3)
    with pytest.raises(PrivacyError, match="the data name none"):
        train_round(task, patient_node(tmp_path, None))


def test_a_step_divides_by_the_expected_number_of_patients(tmp_path) -> None:
    """All patients in, no noise to speak of: the step is the mean of patients' means."""
    task = small_task(
        unit="patient", records_per_unit=500, sampling_rate=1.0, noise_multiplier=0.01, clipping_norm=1e-6
    )
    everything = node_in(tmp_path).records(task.offer.model)
    patients = np.arange(len(everything)) // 7
    node = patient_node(tmp_path, patients)
    plan = task.offer.terms.for_node(60)
    head = trained_head(task.offer.model, task.head)
    streams = SeededRandomness(1, "n", 1, "sampling"), SeededRandomness(1, "n", 1, "noise")
    after = private_update(head, task, node.records(task.offer.model), plan, streams)
    features, targets = everything.everything()
    fresh = trained_head(task.offer.model, task.head)
    whole = patient_clipped_sum(fresh, classification_loss, features, targets, np.bincount(patients), 1e-6)
    for name, value in whole.values.items():
        step = (task.head[name].double() - after[name].double()) / task.learning_rate
        assert float((step - value / 60).abs().max()) < 1e-8 * 6  # six standard deviations of the noise

"""Clipped sums against slow, obvious ones; the noise that is added, and that nothing else is."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from scipy.stats import chi2
from torch import Tensor, nn

from client.mechanism import (
    Batch,
    ClippedSum,
    Noising,
    clipped_sum,
    clipped_sums,
    noisy_gradient,
    noisy_gradients,
)
from common.errors import PrivacyError
from common.privacy.noise import SeededRandomness
from common.privacy.plan import PrivacyPlan, PrivacyTerms
from common.tasks import PerUnitLoss, classification_loss

FALSE_ALARM = 1e-6  # a deviation 5 % off passes has_std with probability below 1e-9 at 40,000 values


def squared_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits - targets[:, None]).square().sum(dim=1)


def draw(seed: int, units: int, width: int, classes: int, scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(units, width, generator=generator)
    return features, torch.randint(0, classes, (units,), generator=generator)


def linear(width: int, classes: int, bias: bool, seed: int = 0) -> nn.Linear:
    head = nn.Linear(width, classes, bias=bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return head


def clip_and_sum(gradients: list[dict[str, Tensor]], head: nn.Module, clipping_norm: float) -> dict[str, Tensor]:
    """The definition, unit by unit."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in head.named_parameters()}
    total = {name: value.detach() for name, value in total.items() if head.get_parameter(name).requires_grad}
    for gradient in gradients:
        norm = math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
        for name, value in gradient.items():
            total[name] += value * min(1.0, clipping_norm / norm if norm else 1.0)
    return total


def one_by_one(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor) -> list[dict[str, Tensor]]:
    """Each unit's gradient by plain autograd on a batch of one."""
    double = copy.deepcopy(head).double()
    trained = {name: value for name, value in double.named_parameters() if value.requires_grad}
    gradients = []
    for row, target in zip(features.double(), targets, strict=True):
        value = loss(double(row[None]), target[None]).sum()
        gradients.append(dict(zip(trained, torch.autograd.grad(value, list(trained.values())), strict=True)))
    return gradients


def by_opacus(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor) -> list[dict[str, Tensor]]:
    """Each unit's gradient by Opacus's hooks, in float64."""
    double = copy.deepcopy(head).double()
    module = GradSampleModule(double, loss_reduction="sum")
    torch.autograd.backward(loss(module(features.double().requires_grad_()), targets).sum())
    samples = {name: value.grad_sample for name, value in double.named_parameters() if value.requires_grad}  # type: ignore[attr-defined]  # set by Opacus
    return [{name: value[unit] for name, value in samples.items()} for unit in range(len(features))]


def assert_same(found: ClippedSum, expected: Mapping[str, Tensor], units: int, clipping_norm: float) -> None:
    assert set(found.values) == set(expected)
    for name, value in found.values.items():
        assert value.dtype == torch.float64
        assert value.shape == expected[name].shape
        assert float((value - expected[name]).norm()) <= 1e-12 * max(units, 1) * clipping_norm


units_, widths, classes_ = st.integers(0, 12), st.integers(1, 9), st.integers(1, 5)
norms, scales, seeds = st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 2**32)
losses = st.sampled_from([classification_loss, squared_loss])


@settings(max_examples=100, deadline=None)
@given(units_, widths, classes_, st.booleans(), norms, scales, losses, seeds)
def test_the_closed_form_equals_opacus_per_sample_gradients(
    units: int, width: int, classes: int, bias: bool, norm: float, scale: float, loss: PerUnitLoss, seed: int
) -> None:
    head = linear(width, classes, bias, seed % 1000)
    features, targets = draw(seed, units, width, classes, scale)
    gradients = by_opacus(head, loss, features, targets) if units else []
    expected = clip_and_sum(gradients, head, norm)
    assert_same(clipped_sum(head, loss, features, targets, norm), expected, units, norm)


@settings(max_examples=100, deadline=None)
@given(st.lists(units_, min_size=2, max_size=5), widths, classes_, st.booleans(), norms, losses, st.booleans(), seeds)
def test_batches_of_several_nodes_are_summed_together_with_the_bits_of_each_alone(
    sizes: list[int],
    width: int,
    classes: int,
    bias: bool,
    norm: float,
    loss: PerUnitLoss,
    spoiled: bool,
    seed: int,
) -> None:
    head = linear(width, classes, bias, seed % 1000)
    drawn = [draw(seed + place, units, width, classes, 3.0) for place, units in enumerate(sizes)]
    if spoiled and sizes[0]:
        drawn[0][0][0] = math.inf  # another node's failure
    found = clipped_sums([Batch(head, loss, *each, norm) for each in drawn])
    for together, (features, targets) in zip(found, drawn, strict=True):
        alone = clipped_sum(head, loss, features, targets, norm)
        assert together.non_finite == alone.non_finite
        assert all(torch.equal(value, alone.values[name]) for name, value in together.values.items())


def test_batches_of_other_heads_or_norms_are_not_taken_together() -> None:
    head, other = linear(5, 3, True), linear(5, 3, True, seed=1)
    features, targets = draw(0, 6, 5, 3, 3.0)
    each = [(head, 1.0), (other, 1.0), (head, 0.1)]
    found = clipped_sums([Batch(one, classification_loss, features, targets, norm) for one, norm in each])
    for together, (one, norm) in zip(found, each, strict=True):
        alone = clipped_sum(one, classification_loss, features, targets, norm)
        assert together.clipping_norm == norm
        assert all(torch.equal(value, alone.values[name]) for name, value in together.values.items())
    assert not torch.equal(found[0].values["weight"], found[1].values["weight"])


def test_clipping_as_opacus_does_it_is_seen_to_differ() -> None:
    """The control: min(1, C / (norm + 1e-6)) is outside the tolerance of the oracle above."""
    head, (features, targets) = linear(4, 3, True), draw(1, 5, 4, 3, 10.0)
    found = clipped_sum(head, classification_loss, features, targets, 0.1)
    gradients = by_opacus(head, classification_loss, features, targets)
    shrunk = [{name: value * (1 - 1e-6) for name, value in gradient.items()} for gradient in gradients]
    with pytest.raises(AssertionError):
        assert_same(found, clip_and_sum(shrunk, head, 1e9), 5, 0.1)
    exact = clip_and_sum(gradients, head, 0.1)
    assert_same(found, exact, 5, 0.1)
    with pytest.raises(AssertionError):
        assert_same(found, {name: value * (1 - 1e-6 / 0.1) for name, value in exact.items()}, 5, 0.1)


@settings(max_examples=25, deadline=None)
@given(units_, widths, classes_, norms, scales, losses, seeds)
def test_other_heads_equal_autograd_on_one_unit_at_a_time(
    units: int, width: int, classes: int, norm: float, scale: float, loss: PerUnitLoss, seed: int
) -> None:
    head = nn.Sequential(linear(width, 6, True, 1), nn.GroupNorm(2, 6), nn.Tanh(), linear(6, classes, False, 2))
    features, targets = draw(seed, units, width, classes, scale)
    expected = clip_and_sum(one_by_one(head, loss, features, targets), head, norm)
    assert_same(clipped_sum(head, loss, features, targets, norm), expected, units, norm)


def test_a_batch_of_several_parts_equals_autograd_on_one_unit_at_a_time() -> None:
    head, (features, targets) = nn.Sequential(linear(4, 6, True), nn.ReLU(), linear(6, 3, True)), draw(1, 75, 4, 3, 3.0)
    expected = clip_and_sum(one_by_one(head, classification_loss, features, targets), head, 0.5)
    assert_same(clipped_sum(head, classification_loss, features, targets, 0.5), expected, 75, 0.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), widths, classes_, st.booleans(), norms, scales, seeds)
def test_one_unit_more_moves_the_sum_by_at_most_the_clipping_norm(
    units: int, width: int, classes: int, bias: bool, norm: float, scale: float, seed: int
) -> None:
    head = linear(width, classes, bias)
    features, targets = draw(seed, units, width, classes, scale)
    more = clipped_sum(head, squared_loss, features, targets, norm).values
    less = clipped_sum(head, squared_loss, features[1:], targets[1:], norm).values
    moved = math.sqrt(sum(float((more[name] - less[name]).square().sum()) for name in more))
    assert moved <= norm * (1 + 1e-12 * units)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_parameters_are_skipped_and_do_not_use_up_the_norm(frozen: str) -> None:
    head, (features, targets) = linear(4, 3, True), draw(1, 5, 4, 3, 3.0)
    head.get_parameter(frozen).requires_grad_(False)
    expected = clip_and_sum(one_by_one(head, classification_loss, features, targets), head, 0.5)
    assert frozen not in expected
    assert_same(clipped_sum(head, classification_loss, features, targets, 0.5), expected, 5, 0.5)


def test_a_partly_frozen_network_sums_its_trained_part_only() -> None:
    head, (features, targets) = nn.Sequential(linear(4, 6, True), nn.ReLU(), linear(6, 3, True)), draw(1, 5, 4, 3, 3.0)
    head[0].requires_grad_(False)
    expected = clip_and_sum(one_by_one(head, classification_loss, features, targets), head, 0.5)
    assert set(expected) == {"2.weight", "2.bias"}
    assert_same(clipped_sum(head, classification_loss, features, targets, 0.5), expected, 5, 0.5)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_units_that_are_not_finite_count_zero_and_are_counted(wrap: bool, bad: float) -> None:
    """A stop that shows a NaN would be an un-noised bit."""
    line = linear(4, 3, True)
    head = nn.Sequential(line) if wrap else line
    features, targets = draw(1, 5, 4, 3, 1.0)
    spoilt = features.clone()
    spoilt[2] = bad
    rest = [0, 1, 3, 4]
    expected = clipped_sum(head, squared_loss, features[rest], targets[rest], 1.0)
    found = clipped_sum(head, squared_loss, spoilt, targets, 1.0)
    if math.isfinite(bad):  # huge, yet finite in float64: clipped like any other
        assert found.non_finite == 0
        assert all(value.isfinite().all() for value in found.values.values())
    else:
        assert found.non_finite == 1
        assert_same(found, expected.values, 5, 1.0)


@pytest.mark.parametrize("wrap", [False, True])
def test_an_empty_batch_gives_zeros(wrap: bool) -> None:
    head = nn.Sequential(linear(4, 3, True)) if wrap else linear(4, 3, True)
    found = clipped_sum(head, classification_loss, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1.0)
    assert {name: tuple(value.shape) for name, value in found.values.items()} == {
        name: tuple(value.shape) for name, value in head.named_parameters()
    }
    assert not any(value.any() for value in found.values.values())
    assert found.non_finite == 0


@pytest.mark.parametrize("wrap", [False, True])
def test_the_callers_head_is_left_as_it_was(wrap: bool) -> None:
    head = nn.Sequential(linear(4, 3, True), nn.Dropout(0.5)) if wrap else linear(4, 3, True)
    head.eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    features, targets = draw(1, 5, 4, 3, 1.0)
    found = clipped_sum(head, classification_loss, features, targets, 1.0)
    assert_same(found, clip_and_sum(one_by_one(head, classification_loss, features, targets), head, 1.0), 5, 1.0)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert all(value.grad is None and not hasattr(value, "grad_sample") for value in head.parameters())
    assert not any(module._forward_hooks or module._backward_hooks or module.training for module in head.modules())
    assert features.grad is None
    assert not features.requires_grad


def test_a_layer_that_mixes_units_is_refused_with_the_reason() -> None:
    features, targets = draw(1, 5, 4, 3, 1.0)
    head = nn.Sequential(linear(4, 3, True), nn.BatchNorm1d(3))
    for batch in (5, 0):
        with pytest.raises(PrivacyError, match="BatchNorm"):
            clipped_sum(head, classification_loss, features[:batch], targets[:batch], 1.0)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_reduced_loss_is_refused(wrap: bool) -> None:
    head = nn.Sequential(linear(4, 3, True)) if wrap else linear(4, 3, True)
    features, targets = draw(1, 5, 4, 3, 1.0)
    with pytest.raises(PrivacyError, match="unreduced"):
        clipped_sum(head, nn.functional.cross_entropy, features, targets, 1.0)


def test_the_tasks_loss_of_a_unit_does_not_depend_on_the_others() -> None:
    head, (features, targets) = linear(4, 3, True), draw(1, 5, 4, 3, 1.0)
    whole = clipped_sum(head, classification_loss, features, targets, 0.3).values
    parts = [clipped_sum(head, classification_loss, features[i : i + 1], targets[i : i + 1], 0.3) for i in range(5)]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(part.values[name] for part in parts), rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clipping_norm_that_bounds_nothing_is_refused(norm: float) -> None:
    features, targets = draw(1, 5, 4, 3, 1.0)
    with pytest.raises(PrivacyError, match="clipping norm"):
        clipped_sum(linear(4, 3, True), classification_loss, features, targets, norm)


def plan(norm: float = 2.0, sigma: float = 3.0, rate: float = 0.5, size: int = 100) -> PrivacyPlan:
    return PrivacyTerms("record", "local", rate, 10, 1, norm, sigma, 1e-5).for_node(size)


def zeros(norm: float = 2.0, shape: tuple[int, ...] = (200, 200)) -> ClippedSum:
    return ClippedSum({"weight": torch.zeros(shape, dtype=torch.float64)}, norm, 0)


def has_std(noise: Tensor, std: float) -> bool:
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=noise.numel())
    return bool(low <= float((noise / std).square().sum()) <= high)


def test_an_empty_batch_is_noised_like_any_other() -> None:
    noise = noisy_gradient(zeros(), plan(), SeededRandomness(1, "a", 1, "train"))["weight"]
    assert noise.dtype == torch.float64
    assert has_std(noise, 2.0 * 3.0 / 50)


def test_noise_for_a_batch_that_was_drawn_larger_is_caught() -> None:
    """The divisor must be q N: dividing by a live batch of 53 for 50 fails the same check."""
    noise = noisy_gradient(zeros(), plan(), SeededRandomness(1, "a", 1, "train"))["weight"]
    assert not has_std(noise * 50 / 53, 2.0 * 3.0 / 50)


def test_the_divisor_is_the_plans_whatever_the_batch() -> None:
    features, targets = draw(1, 7, 4, 3, 1.0)
    head = linear(4, 3, True)
    for units in (0, 1, 7):
        clipped = clipped_sum(head, classification_loss, features[:units], targets[:units], 2.0)
        noisy = noisy_gradient(clipped, plan(), SeededRandomness(1, "a", 1, "train"))
        noise = noisy_gradient(
            ClippedSum({k: 0 * v for k, v in clipped.values.items()}, 2.0, 0),
            plan(),
            SeededRandomness(1, "a", 1, "train"),
        )
        for name, value in clipped.values.items():
            torch.testing.assert_close(noisy[name] - noise[name], value / 50, rtol=0, atol=1e-12)


def test_every_released_value_carries_noise_of_its_own() -> None:
    features, targets = draw(1, 7, 4, 3, 1.0)
    clipped = clipped_sum(linear(4, 3, True), classification_loss, features, targets, 2.0)
    noisy = noisy_gradient(clipped, plan(), SeededRandomness(1, "a", 1, "train"))
    added = torch.cat([(noisy[name] * 50 - clipped.values[name]).flatten() for name in noisy])
    assert set(noisy) == {"weight", "bias"}
    assert len(np.unique(added.numpy().round(9))) == added.numel()
    assert float(added.abs().min()) > 1e-9


def test_two_rounds_do_not_share_noise() -> None:
    one, other = (noisy_gradient(zeros(), plan(), SeededRandomness(1, "a", r, "train"))["weight"] for r in (1, 2))
    assert has_std(one - other, math.sqrt(2) * 2.0 * 3.0 / 50)


def test_the_same_noise_in_two_rounds_is_caught() -> None:
    one, other = (noisy_gradient(zeros(), plan(), SeededRandomness(1, "a", 1, "train"))["weight"] for _ in range(2))
    assert not has_std(one - other, math.sqrt(2) * 2.0 * 3.0 / 50)


def test_a_sum_clipped_to_another_norm_gets_no_noise_of_this_plan() -> None:
    with pytest.raises(PrivacyError, match="clipped"):
        noisy_gradient(zeros(norm=2.5), plan(), SeededRandomness(1, "a", 1, "train"))


def test_sums_of_many_nodes_are_noised_as_each_by_itself() -> None:
    """Heads of two sizes among them, and of one size but two layouts; plans of different divisors and deviations."""
    heads = [linear(4, 3, bias) for bias in (True, False, True)] + [linear(2, 6, bias=False)]
    sums = [
        clipped_sum(head, classification_loss, *draw(1, 7, head.in_features, head.out_features, 1.0), 2.0)
        for head in heads
    ]
    plans = [plan(), plan(sigma=5.0), plan(size=900), plan(size=300)]

    def randomness(node: int) -> SeededRandomness:
        return SeededRandomness(1, f"node-{node}", 1, "train")

    asked = [Noising(sums[node], plans[node], randomness(node)) for node in range(4)]
    for node, together in enumerate(noisy_gradients(asked)):
        alone = noisy_gradient(sums[node], plans[node], randomness(node))
        assert list(together) == list(alone)
        assert all(torch.equal(together[name], alone[name]) for name in alone)


@pytest.mark.parametrize("bad", [zeros(norm=2.5), ClippedSum({"weight": torch.ones(3).to_sparse()}, 2.0, 0)])
def test_nothing_is_drawn_where_one_of_many_sums_is_refused(bad: ClippedSum) -> None:
    """Who is asked again, by itself, finds the noise that it would have had."""
    good, refused = SeededRandomness(1, "a", 1, "train"), SeededRandomness(1, "b", 1, "train")
    with pytest.raises((PrivacyError, TypeError)):
        noisy_gradients([Noising(zeros(), plan(), good), Noising(bad, plan(), refused)])
    fresh = SeededRandomness(1, "a", 1, "train")
    assert np.array_equal(good.normal((5,)), fresh.normal((5,)))


@pytest.mark.parametrize("fails", range(3))
def test_noise_that_could_not_be_drawn_for_all_is_drawn_again(fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = [zeros(), ClippedSum({"weight": torch.zeros(5)}, 2.0, 0), zeros()]
    asked = [Noising(each, plan(), SeededRandomness(1, str(node), 1, "train")) for node, each in enumerate(sums)]
    words, drawn = SeededRandomness.noise_words, []

    def short_of_memory(source: SeededRandomness, n: int) -> np.ndarray:
        drawn.append(source)
        if len(drawn) > fails:
            raise MemoryError
        return words(source, n)

    monkeypatch.setattr(SeededRandomness, "noise_words", short_of_memory)
    with pytest.raises(MemoryError):
        noisy_gradients(asked)
    monkeypatch.undo()
    for node, each in enumerate(asked):
        fresh = noisy_gradient(each.clipped, each.plan, SeededRandomness(1, str(node), 1, "train"))
        again = noisy_gradients([each])[0]
        assert all(torch.equal(again[name], fresh[name]) for name in fresh)

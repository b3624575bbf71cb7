"""Clipped sums of a layer over tokens with the tasks' own losses: against autograd, alone and in company."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.clipping import ClippedSum
from client.mechanism import clipped_sum
from common.heads import build_head
from common.metrics import CUT_OFF, IGNORED
from common.tasks import span_loss, task_named
from common.token_heads import TokenLinear

CLASSES = 3
LENGTHS, WIDTHS = st.integers(1, 30), st.integers(1, 9)
TASKS = st.sampled_from(["tokens", "spans"])


def token_head(task: str, length: int, width: int, seed: int = 0) -> TokenLinear:
    head = build_head("linear", ((length, width), (length,)), CLASSES, task=task)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    assert isinstance(head, TokenLinear)
    return head


def draw(task: str, units: int, length: int, width: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Records of any length: their features, and tags (some ignored, three cut off) or ends of answers (or cut off)."""
    generator = torch.Generator().manual_seed(seed)
    states = scale * torch.randn(units, length, width, generator=generator)
    lengths = torch.randint(1, length + 1, (units, 1), generator=generator)
    mask = (torch.arange(length) < lengths).float()
    features = torch.cat([states.flatten(1), mask], dim=1)
    if task == "spans":
        ends = (torch.rand(units, 2, generator=generator) * lengths).long().sort(dim=1).values
        return features, ends.masked_fill(torch.rand(units, 1, generator=generator) < 0.2, CUT_OFF)
    tags = torch.randint(0, CLASSES, (units, length + 3), generator=generator)
    seen = torch.cat([mask, torch.ones(units, 3)], dim=1)
    ignored = (seen == 0) | (torch.rand(units, length + 3, generator=generator) < 0.3)
    return features, tags.masked_fill(ignored, IGNORED)


def gradients(head: TokenLinear, task: str, features: Tensor, targets: Tensor) -> list[dict[str, Tensor]]:
    """Each record's by plain autograd, in float64."""
    double = copy.deepcopy(head).double()
    trained = {name: value for name, value in double.named_parameters() if value.requires_grad}
    found = []
    for unit in range(len(features)):
        one = slice(unit, unit + 1)
        total = task_named(task).loss(double(features[one].double()), targets[one]).sum()
        found.append(dict(zip(trained, torch.autograd.grad(total, list(trained.values())), strict=True)))
    return found


def clip_and_sum(each: list[dict[str, Tensor]], norm: float) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(value) for name, value in each[0].items()}
    for gradient in each:
        for name, value in gradient.items():
            total[name] += value * min(1.0, norm / max(length_of(gradient), 1e-300))
    return total


def length_of(values: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in values.values()))


def distance(found: ClippedSum, other: ClippedSum | dict[str, Tensor]) -> float:
    values = dict(other.values) if isinstance(other, ClippedSum) else other
    assert set(found.values) == set(values)
    return length_of({name: found.values[name] - value for name, value in values.items()})


norms, scales, seeds = st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(TASKS, st.integers(1, 20), LENGTHS, WIDTHS, norms, scales, st.sampled_from([None, "weight", "bias"]), seeds)
def test_it_equals_autograd_on_one_record_at_a_time(
    task: str, units: int, length: int, width: int, norm: float, scale: float, frozen: str | None, seed: int
) -> None:
    head, (features, targets) = (
        token_head(task, length, width, seed % 99),
        draw(task, units, length, width, seed, scale),
    )
    if frozen is not None:
        head.get_parameter(frozen).requires_grad_(False)
    found = clipped_sum(head, task_named(task).loss, features, targets, norm)
    expected = clip_and_sum(gradients(head, task, features, targets), norm)
    # a bias before a softmax over positions has a gradient of zero: what is there is rounding, clipped or not
    assert distance(found, expected) <= 1e-12 * units * max(norm, 1.0)


@settings(max_examples=40, deadline=None)
@given(TASKS, st.integers(1, 20), LENGTHS, WIDTHS, norms, scales, seeds)
def test_one_record_more_moves_the_sum_by_at_most_the_clipping_norm(
    task: str, units: int, length: int, width: int, norm: float, scale: float, seed: int
) -> None:
    head, (features, targets) = token_head(task, length, width), draw(task, units, length, width, seed, scale)
    loss = task_named(task).loss
    more = clipped_sum(head, loss, features, targets, norm)
    assert distance(more, clipped_sum(head, loss, features[1:], targets[1:], norm)) <= norm * (1 + 1e-12 * units)


def test_an_unclipped_record_moves_the_sum_by_more() -> None:
    """The control: without clipping the bound does not hold."""
    head, (features, targets) = token_head("tokens", 9, 4), draw("tokens", 5, 9, 4, 1, 10.0)
    norm = length_of(gradients(head, "tokens", features[:1], targets[:1])[0]) / 2
    more, less = (clipped_sum(head, task_named("tokens").loss, features[i:], targets[i:], 1e9) for i in (0, 1))
    assert distance(more, less) > norm * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(TASKS, st.integers(0, 40), LENGTHS, st.integers(1, 70), st.sampled_from([1e-2, 1.0, 1e8]), st.data(), seeds)
def test_a_records_gradient_has_the_same_bits_in_any_company(
    task: str, others: int, length: int, width: int, scale: float, data: st.DataObject, seed: int
) -> None:
    """Neighbours that are not finite add nothing, so that the sum is the one record's gradient."""
    place = data.draw(st.integers(0, others))
    head, (features, targets) = token_head(task, length, width), draw(task, others + 1, length, width, seed, scale)
    company = torch.where(torch.arange(others + 1)[:, None] == place, features, torch.nan)
    company[:, -length:] = features[:, -length:]
    loss = task_named(task).loss
    alone = clipped_sum(head, loss, features[place : place + 1], targets[place : place + 1], 1.0)
    found = clipped_sum(head, loss, company, targets, 1.0)
    assert all(torch.equal(value, alone.values[name]) for name, value in found.values.items())
    with_a_loss = (targets[:, :length] != IGNORED).any(dim=1)
    assert found.non_finite == int(with_a_loss.sum()) - int(with_a_loss[place])


@pytest.mark.parametrize("task", ["tokens", "spans"])
def test_no_records_give_zeros(task: str) -> None:
    head, (features, targets) = token_head(task, 5, 4), draw(task, 3, 5, 4, 0)
    found = clipped_sum(head, task_named(task).loss, features[:0], targets[:0], 1.0)
    assert {name: value.shape for name, value in found.values.items()} == {
        name: value.shape for name, value in head.named_parameters()
    }
    assert not any(value.any() for value in found.values.values())


def test_a_record_without_a_tag_adds_nothing() -> None:
    head, (features, targets) = token_head("tokens", 5, 4), draw("tokens", 3, 5, 4, 0)
    targets[1] = IGNORED
    loss = task_named("tokens").loss
    found, rest = (clipped_sum(head, loss, features[rows], targets[rows], 1.0) for rows in ([0, 1, 2], [0, 2]))
    assert found.non_finite == 0
    assert all(torch.equal(value, rest.values[name]) for name, value in found.values.items())


@pytest.mark.parametrize("task", ["tokens", "spans"])
def test_a_loss_of_ones_own_gives_what_the_tasks_does(task: str) -> None:
    head, (features, targets) = token_head(task, 20, 4), draw(task, 30, 20, 4, 0)
    known = clipped_sum(head, task_named(task).loss, features, targets, 0.5)
    asked = clipped_sum(head, lambda *pair: task_named(task).loss(*pair), features, targets, 0.5)
    assert distance(known, asked) <= 1e-12 * 30


def test_everything_frozen_sums_to_nothing() -> None:
    head, (features, targets) = token_head("spans", 5, 4).requires_grad_(False), draw("spans", 3, 5, 4, 0)
    assert clipped_sum(head, span_loss, features, targets, 1.0).values == {}

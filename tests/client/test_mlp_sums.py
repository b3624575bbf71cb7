"""Clipped sums of a head of one hidden layer: against each record by itself, alone and in company."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from client.clipping import ClippedSum
from client.deep_heads import deep_clipped_sum
from client.mechanism import clipped_sum
from client.mlp_sums import is_mlp
from common.heads import build_head
from common.tasks import PerUnitLoss, classification_loss, task_named

CLASSES = 4
LOSSES: dict[str, PerUnitLoss] = {"classes": classification_loss, "labels": task_named("multilabel").loss}
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")
norms, scales, seeds = st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 2**32)


def mlp(width: int, hidden: int, seed: int = 0) -> nn.Module:
    head = build_head("mlp", width, CLASSES, hidden=hidden, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    assert is_mlp(head)
    return head


def draw(units: int, width: int, seed: int, scale: float, task: str = "classes") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(units, width, generator=generator)
    if task == "classes":
        return features, torch.randint(0, CLASSES, (units,), generator=generator)
    return features, torch.randint(0, 2, (units, CLASSES), generator=generator).float()


def distance(one: ClippedSum, other: ClippedSum) -> float:
    assert one.values.keys() == other.values.keys()
    return math.sqrt(sum(float((one.values[name] - other.values[name]).square().sum()) for name in one.values))


@given(
    st.sampled_from(sorted(LOSSES)),
    st.integers(0, 20),
    st.integers(1, 40),
    st.integers(1, 20),
    norms,
    scales,
    st.sets(st.sampled_from(NAMES)),
    seeds,
)
def test_it_equals_each_record_by_itself(
    task: str, units: int, width: int, hidden: int, norm: float, scale: float, frozen: set[str], seed: int
) -> None:
    head, (features, targets) = mlp(width, hidden, seed % 99), draw(units, width, seed, scale, task)
    for name in frozen:
        head.get_parameter(name).requires_grad_(False)
    if units:
        features[0, 0] = torch.nan if seed % 2 else features[0, 0]
    found = clipped_sum(head, LOSSES[task], features, targets, norm)
    if len(frozen) == len(NAMES):
        assert not found.values
        return
    one_by_one = deep_clipped_sum(head, LOSSES[task], features, targets, norm)
    assert found.non_finite == one_by_one.non_finite
    assert distance(found, one_by_one) <= 1e-12 * max(units, 1) * norm


@given(
    st.sampled_from(sorted(LOSSES)),
    st.integers(0, 40),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([1e-2, 1.0, 1e8]),
    st.data(),
    seeds,
)
def test_a_records_gradient_has_the_same_bits_in_any_company(
    task: str, others: int, width: int, hidden: int, scale: float, data: st.DataObject, seed: int
) -> None:
    """Neighbours that are not finite add nothing, so that the sum is the one record's gradient."""
    place = data.draw(st.integers(0, others))
    head, (features, targets) = mlp(width, hidden), draw(others + 1, width, seed, scale, task)
    alone = clipped_sum(head, LOSSES[task], features[place : place + 1], targets[place : place + 1], 1.0)
    company = torch.where(torch.arange(others + 1)[:, None] == place, features, torch.nan)
    found = clipped_sum(head, LOSSES[task], company, targets, 1.0)
    assert all(torch.equal(value, alone.values[name]) for name, value in found.values.items())
    assert found.non_finite == others


@pytest.mark.parametrize("others", range(1, 24))
def test_weights_that_blow_up_a_last_bit_do_not_let_a_record_change_the_others(others: int) -> None:
    """Two logits whose slopes are the same number in one place of torch's loops, and not in another, times 2^100."""
    head = build_head("mlp", 4, 2, hidden=3, task="multilabel")
    blown_up = 2.0**100
    with torch.no_grad():
        for value in head.parameters():
            value.zero_()
        head.get_parameter("0.bias")[:] = torch.tensor([2.0**-126, 2.0**-126, 1.0])
        head.get_parameter("2.weight")[:] = torch.tensor([[blown_up, -blown_up, 0], [-blown_up, blown_up, 2.0**-50]])
        head.get_parameter("2.bias")[:] = 2.599423885345459
    labels = torch.tensor([[1.0, 1.0]] * others + [[0.0, 1.0]])
    without, whole = (
        clipped_sum(head, LOSSES["labels"], torch.ones(len(some), 4), some, 1.0) for some in (labels[:-1], labels)
    )
    assert distance(without, whole) <= 1.0 + 1e-9


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Linear(3, 2),
    ],
)
def test_other_heads_are_left_to_other_ways(other: nn.Module) -> None:
    assert not is_mlp(other)

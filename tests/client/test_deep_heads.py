"""Clipped sums of heads with several layers: against each unit by itself, for every kind of stage and of training."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from client.mechanism import clipped_sum
from common.errors import PrivacyError
from common.heads import build_head
from common.tasks import PerUnitLoss, classification_loss
from tests.stages import KINDS, Then, features_for, perturbed, stages

CLASSES = 3
SEQUENCE = ((6, 4), (6,))
FLOAT32 = 2e-5  # upper stages compute in float32: what that leaves of a gradient, relative to it


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Several labels a record."""
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    return losses.reshape(targets.shape).sum(dim=1)


def span_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none").sum(dim=1)  # over positions, for each end


def one_by_one(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor) -> list[dict[str, Tensor]]:
    """Each unit's gradient by plain autograd on a batch of one, in float64."""
    double = copy.deepcopy(head).double().eval()
    trained = {name: value for name, value in double.named_parameters() if value.requires_grad}
    gradients = []
    for row, target in zip(features.double(), targets, strict=True):
        value = loss(double(row[None]), target[None]).sum()
        found = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
        gradients.append(dict(zip(trained, found, strict=True)))
    return gradients


def norm_of(gradient: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))


def clipped_by_definition(gradients: list[dict[str, Tensor]], norm: float) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(value) for name, value in gradients[0].items()}
    for gradient in gradients:
        for name, value in gradient.items():
            total[name] += value * min(1.0, norm / max(norm_of(gradient), 1e-300))
    return total


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert set(one) == set(other)
    return norm_of({name: one[name] - other[name] for name in one})


@functools.cache
def upper_head(kind: str, train: str) -> nn.Module:
    upper, layout = stages(kind)
    return perturbed(build_head("upper", layout, CLASSES, upper=upper, train=train, seed=1))


def upper_data(kind: str, units: int, seed: int) -> tuple[Tensor, Tensor]:
    targets = torch.randint(0, CLASSES, (units,), generator=torch.Generator().manual_seed(seed))
    return features_for(stages(kind)[1], units, seed), targets


EVERY = [
    (kind, train)
    for kind in KINDS
    for train in ("all", "biases", "adapters")
    if (kind, train) != ("recurrent", "adapters")
]


@pytest.mark.parametrize(("kind", "train"), EVERY)
def test_upper_stages_equal_autograd_on_one_unit_at_a_time(kind: str, train: str) -> None:
    head, (features, targets) = upper_head(kind, train), upper_data(kind, 7, 1)
    gradients = one_by_one(head, classification_loss, features, targets)
    norm = sorted(map(norm_of, gradients))[3]  # the median: some are clipped and some are not
    found = clipped_sum(head, classification_loss, features, targets, norm)
    assert found.non_finite == 0
    assert all(value.dtype == torch.float64 for value in found.values.values())
    assert distance(dict(found.values), clipped_by_definition(gradients, norm)) <= FLOAT32 * 7 * norm
    for unit, gradient in enumerate(gradients):
        alone = clipped_sum(head, classification_loss, features[unit : unit + 1], targets[unit : unit + 1], 1e6)
        assert distance(dict(alone.values), gradient) <= FLOAT32 * (norm_of(gradient) + 0.1)


HEADS: dict[str, tuple[Callable[[], nn.Module], PerUnitLoss, Callable[[int, torch.Generator], Tensor]]] = {
    "linear": (
        lambda: build_head("linear", 5, CLASSES),
        classification_loss,
        lambda units, generator: torch.randint(0, CLASSES, (units,), generator=generator),
    ),
    "labels": (
        lambda: build_head("linear", 5, CLASSES, task="multilabel"),
        label_loss,
        lambda units, generator: torch.randint(0, 2, (units, CLASSES), generator=generator).float(),
    ),
    "mlp": (
        lambda: build_head("mlp", 5, CLASSES, hidden=4),
        classification_loss,
        lambda units, generator: torch.randint(0, CLASSES, (units,), generator=generator),
    ),
    "tokens": (
        lambda: build_head("linear", SEQUENCE, CLASSES, task="tokens"),
        token_loss,
        lambda units, generator: torch.tensor([-100, 0, 1, 2])[torch.randint(0, 4, (units, 6), generator=generator)],
    ),
    "tokens mlp": (
        lambda: build_head("mlp", SEQUENCE, CLASSES, hidden=4, task="tokens"),
        token_loss,
        lambda units, generator: torch.tensor([-100, 0, 1, 2])[torch.randint(0, 4, (units, 6), generator=generator)],
    ),
    "spans": (
        lambda: build_head("linear", SEQUENCE, 2, task="spans"),
        span_loss,
        lambda units, generator: torch.zeros(units, 2, dtype=torch.int64),
    ),
    "spans mlp": (
        lambda: build_head("mlp", SEQUENCE, 2, hidden=4, task="spans"),
        span_loss,
        lambda units, generator: torch.zeros(units, 2, dtype=torch.int64),
    ),
}


def data_for(name: str, units: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layout = SEQUENCE if "tokens" in name or "spans" in name else ((5,),)
    return features_for(layout, units, seed, scale), HEADS[name][2](units, generator)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(list(HEADS)), st.integers(1, 70), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 999)
)
def test_small_heads_equal_autograd_on_one_unit_at_a_time(
    name: str, units: int, norm: float, scale: float, seed: int
) -> None:
    make, loss, _ = HEADS[name]
    head, (features, targets) = perturbed(make(), seed), data_for(name, units, seed, scale)
    found = clipped_sum(head, loss, features, targets, norm)
    expected = clipped_by_definition(one_by_one(head, loss, features, targets), norm)
    assert distance(dict(found.values), expected) <= 1e-12 * units * norm


def moved_by_one(head: nn.Module, loss: PerUnitLoss, features: Tensor, targets: Tensor, norm: float) -> float:
    more = clipped_sum(head, loss, features, targets, norm).values
    less = clipped_sum(head, loss, features[1:], targets[1:], norm).values
    return distance(dict(more), dict(less))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(HEADS)), st.integers(1, 40), st.floats(1e-3, 1e2), st.floats(1e-2, 1e2), st.integers(0, 999)
)
def test_one_record_more_moves_a_small_heads_sum_by_at_most_the_clipping_norm(
    name: str, units: int, norm: float, scale: float, seed: int
) -> None:
    make, loss, _ = HEADS[name]
    features, targets = data_for(name, units, seed, scale)
    assert moved_by_one(perturbed(make(), seed), loss, features, targets, norm) <= norm * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(EVERY), st.integers(1, 8), st.floats(1e-3, 10), st.floats(0.1, 30), st.integers(0, 999))
def test_one_record_more_moves_an_upper_heads_sum_by_at_most_the_clipping_norm(
    case: tuple[str, str], units: int, norm: float, scale: float, seed: int
) -> None:
    features, targets = upper_data(case[0], units, seed)
    features[0] *= scale if len(stages(case[0])[1]) == 1 else 1.0
    assert moved_by_one(upper_head(*case), classification_loss, features, targets, norm) <= norm * (1 + 1e-6)


def test_an_unclipped_record_moves_the_sum_by_more() -> None:
    """The control: with a factor of one the bound does not hold."""
    features, targets = upper_data("bert", 4, 3)
    gradient = one_by_one(upper_head("bert", "all"), classification_loss, features[:1], targets[:1])[0]
    norm = norm_of(gradient) / 2
    assert moved_by_one(upper_head("bert", "all"), classification_loss, features, targets, 1e9) > norm * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["bert", "residual", "swin", "vit"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_records_that_are_not_finite_count_zero_and_are_counted(kind: str, bad: float) -> None:
    head, (features, targets) = upper_head(kind, "all"), upper_data(kind, 5, 4)
    spoilt = features.clone()
    spoilt[2, :3] = bad
    rest = [0, 1, 3, 4]
    expected = clipped_sum(head, classification_loss, features[rest], targets[rest], 0.5)
    found = clipped_sum(head, classification_loss, spoilt, targets, 0.5)
    if found.non_finite == 0:  # a norm layer may tame what is huge
        assert math.isfinite(bad)
        assert all(value.isfinite().all() for value in found.values.values())
    else:
        assert found.non_finite == 1
        assert distance(dict(found.values), dict(expected.values)) <= 1e-6 * 0.5 * 5


@pytest.mark.parametrize("name", ["tokens", "spans", "tokens mlp", "labels"])
def test_small_heads_leave_out_records_that_are_not_finite(name: str) -> None:
    make, loss, _ = HEADS[name]
    head, (features, targets) = perturbed(make()), data_for(name, 5, 1)
    spoilt = features.clone()
    spoilt[2, 0] = float("nan")
    rest = [0, 1, 3, 4]
    found = clipped_sum(head, loss, spoilt, targets, 0.5)
    assert found.non_finite == 1
    expected = clipped_sum(head, loss, features[rest], targets[rest], 0.5)
    assert distance(dict(found.values), dict(expected.values)) <= 1e-12


@pytest.mark.parametrize("name", ["tokens", "spans", "tokens mlp", "spans mlp"])
def test_what_stands_in_padding_does_not_matter(name: str) -> None:
    make, loss, _ = HEADS[name]
    head, (features, targets) = perturbed(make()), data_for(name, 8, 2)
    states, mask = features[:, :-6].reshape(8, 6, 4), features[:, -6:]
    targets = torch.where(mask > 0, targets, -100) if "tokens" in name else targets
    other = torch.cat([torch.where(mask[..., None] > 0, states, 9.0).flatten(1), mask], dim=1)
    one, two = (clipped_sum(head, loss, each, targets, 0.5).values for each in (features, other))
    assert distance(dict(one), dict(two)) <= 1e-12


@pytest.mark.parametrize("kind", ["bert", "vit", "convnext", "swin"])
def test_dropout_is_off(kind: str) -> None:
    head, (features, targets) = upper_head(kind, "all"), upper_data(kind, 4, 5)
    head.train()
    assert not any(module.training for module in head.modules())
    one, two = (clipped_sum(head, classification_loss, features, targets, 0.5).values for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_dropout_of_a_head_in_train_mode_is_off_too() -> None:
    head, (features, targets) = (
        nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
        data_for("linear", 4, 1),
    )
    one = clipped_sum(head.train(), classification_loss, features, targets, 0.5).values
    two = clipped_sum(head.eval(), classification_loss, features, targets, 0.5).values
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not head.training


@pytest.mark.parametrize("kind", ["residual", "bert", "swin"])
def test_a_step_writes_to_nothing(kind: str) -> None:
    head, (features, targets) = upper_head(kind, "all"), upper_data(kind, 4, 6)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    clipped_sum(head, classification_loss, features, targets, 0.5)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert all(value.grad is None for value in head.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in head.modules())


@pytest.mark.parametrize("kind", ["residual", "vit"])
def test_an_empty_batch_gives_zeros(kind: str) -> None:
    head, (features, targets) = upper_head(kind, "all"), upper_data(kind, 1, 6)
    found = clipped_sum(head, classification_loss, features[:0], targets[:0], 0.5)
    assert {name: value.shape for name, value in found.values.items()} == {
        name: value.shape for name, value in head.named_parameters() if value.requires_grad
    }
    assert not any(value.any() for value in found.values.values())


class ForFloat32(nn.Module):
    """A layer of a network that was never meant for another type."""

    def forward(self, values: Tensor) -> Tensor:
        if values.dtype != torch.float32:
            raise RuntimeError("expected float32")
        return values.tanh()


def test_stages_written_for_float32_alone_are_tried_in_float32() -> None:
    stage = nn.Sequential(nn.Linear(5, 5), ForFloat32()).requires_grad_(False)
    head = perturbed(build_head("upper", 5, CLASSES, upper={"stage": stage}))
    features, targets = data_for("linear", 6, 1)
    found = clipped_sum(head, classification_loss, features, targets, 0.5)
    plain = nn.Sequential(head.get_submodule("stages.stage.0"), nn.Tanh(), head.get_submodule("classifier"))
    gradients = one_by_one(plain, classification_loss, features, targets)
    expected = clipped_by_definition(gradients, 0.5)
    names = {"stages.stage.0": "0", "classifier": "2"}
    same = {
        name: expected[name.replace(old, new)] for name in found.values for old, new in names.items() if old in name
    }
    assert distance(dict(found.values), same) <= FLOAT32 * 6 * 0.5


class LessTheMean(nn.Module):
    """A layer that mixes units."""

    def forward(self, values: Tensor) -> Tensor:
        return values - values.mean(dim=0)


@pytest.mark.parametrize("mixing", [LessTheMean(), nn.BatchNorm1d(5, track_running_stats=False, affine=False)])
def test_a_stage_that_mixes_records_is_refused_with_the_reason(mixing: nn.Module) -> None:
    upper = {"layer": nn.Linear(5, 5).requires_grad_(False), "mixing": mixing}
    head = build_head("upper", 5, CLASSES, upper=upper)
    features, targets = data_for("linear", 4, 1)
    for units in (4, 1, 0):  # whatever the batch is
        with pytest.raises(PrivacyError, match="unit"):
            clipped_sum(head, classification_loss, features[:units], targets[:units], 0.5)


def test_a_layer_used_twice_and_a_shared_weight_count_with_all_their_uses() -> None:
    line, other = nn.Linear(5, 5), nn.Linear(5, 5)
    other.weight = line.weight
    twice = nn.Sequential(line, nn.Tanh(), line, nn.Tanh(), nn.Linear(5, CLASSES))
    shared = nn.Sequential(line, nn.Tanh(), other, nn.Tanh(), nn.Linear(5, CLASSES))
    features, targets = data_for("linear", 6, 1)
    for head in (twice, shared):
        expected = clipped_by_definition(one_by_one(head, classification_loss, features, targets), 0.5)
        found = clipped_sum(head, classification_loss, features, targets, 0.5)
        assert distance(dict(found.values), expected) <= 1e-12


def test_a_layer_may_be_given_other_rows_than_records() -> None:
    """Windows of a picture, say, that were made rows of the batch."""
    inner = nn.Linear(2, 3)
    windows = Then(Then(nn.Identity(), lambda rows: rows.reshape(-1, 2)), inner)
    head = nn.Sequential(windows, nn.Tanh(), Then(nn.Identity(), lambda rows: rows.reshape(-1, 2 * 3)))
    features = features_for(((4,),), 5, 1)
    targets = torch.zeros(5, dtype=torch.int64)
    expected = clipped_by_definition(one_by_one(head, classification_loss, features, targets), 0.5)
    assert distance(dict(clipped_sum(head, classification_loss, features, targets, 0.5).values), expected) <= 1e-12


@pytest.mark.parametrize("name", ["mlp", "tokens mlp"])
def test_opacus_ghost_norms_equal_those_of_one_unit_at_a_time(name: str) -> None:
    make, loss, _ = HEADS[name]
    head, (features, targets) = perturbed(make()).double(), data_for(name, 6, 1)
    module = GradSampleModuleFastGradientClipping(
        copy.deepcopy(head).train(), loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )
    torch.autograd.backward(loss(module(features.double().requires_grad_()), targets).sum())
    expected = torch.tensor([norm_of(each) for each in one_by_one(head, loss, features, targets)])
    torch.testing.assert_close(module.get_norm_sample(), expected.double(), rtol=1e-5, atol=1e-7)


def tied(kind: str, scale: float) -> tuple[nn.Module, int]:
    """A head whose two logits are equal but for the order of their terms, so that last bits decide the softmax."""
    rng = torch.Generator().manual_seed(1)
    order = torch.randperm(32, generator=rng)
    head = build_head("mlp" if kind == "mlp" else "linear", 64, 2, hidden=64)
    values, last = torch.randn(32, 64, generator=rng), torch.randn(32, generator=rng)
    with torch.no_grad():
        named = dict(head.named_parameters())
        if kind == "linear":
            named["weight"].copy_(scale * values[:1].expand(2, 64))
            return head, 64
        out = torch.zeros(2, 64)
        out[0, :32], out[1, 32:] = last, last[order]
        for (name, value), new in zip(
            named.items(),
            (torch.cat([values, values[order]]), torch.zeros(64), scale * out, torch.zeros(2)),
            strict=True,
        ):
            assert value.shape == new.shape, name
            value.copy_(new)
    return head, 64


@pytest.mark.parametrize("scale", [1e16, 1e30])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_weights_made_to_blow_up_rounding_do_not_let_a_record_change_the_others(kind: str, scale: float) -> None:
    """A server chooses the weights: what a record is in company with must not reach its own gradient."""
    head, width = tied(kind, scale)
    for units in (2, 7, 8, 15, 16, 33, 64):
        rng = torch.Generator().manual_seed(units)
        features, targets = torch.randn(units, width, generator=rng).abs(), torch.randint(0, 2, (units,), generator=rng)
        whole = dict(clipped_sum(head, classification_loss, features, targets, 1.0).values)
        for left in (slice(0, units - 1), slice(1, units)):
            less = dict(clipped_sum(head, classification_loss, features[left], targets[left], 1.0).values)
            assert distance(whole, less) <= 1 + 1e-9


@pytest.mark.parametrize("width", [16, 17, 18, 19, 33, 34, 70, 127])
@pytest.mark.parametrize("train", ["all", "biases", "adapters"])
def test_an_upper_stages_gradient_has_the_same_bits_at_any_place(width: int, train: str) -> None:
    """Products round by where their inputs lie; neighbours that are not finite add nothing to the sum."""
    head = perturbed(build_head("upper", width, CLASSES, upper={"stage": nn.Linear(width, 3)}, train=train))
    rng = torch.Generator().manual_seed(0)
    features, targets = torch.randn(6, width, generator=rng), torch.randint(0, CLASSES, (6,), generator=rng)
    for unit in range(6):
        alone = clipped_sum(head, classification_loss, features[unit : unit + 1].clone(), targets[unit : unit + 1], 1.0)
        company = torch.where(torch.arange(6)[:, None] == unit, features, torch.nan)
        found = clipped_sum(head, classification_loss, company, targets, 1.0)
        assert all(torch.equal(value, alone.values[name]) for name, value in found.values.items())


class Remembering(nn.Module):
    """Leaves a trace of each record in a buffer, too small for made-up records to show."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, inputs: Tensor) -> Tensor:
        assert isinstance(self.seen, Tensor)
        self.seen.add_(1e-9 * inputs.sum(dim=0))
        found: Tensor = self.layer(inputs)
        return found + self.seen


def test_what_a_stage_notes_of_a_record_is_gone_for_the_next() -> None:
    stage = Remembering()
    head = perturbed(build_head("upper", 5, CLASSES, upper={"stage": stage}))
    rng = torch.Generator().manual_seed(0)
    features, targets = torch.randn(4, 5, generator=rng), torch.randint(0, CLASSES, (4,), generator=rng)
    before = {name: value.clone() for name, value in head.named_buffers()}
    each = [clipped_sum(head, classification_loss, features[i : i + 1], targets[i : i + 1], 1.0) for i in range(4)]
    again = clipped_sum(head, classification_loss, features[:1], targets[:1], 1.0)
    assert all(torch.equal(value, each[0].values[name]) for name, value in again.values.items())
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())


@pytest.mark.parametrize("base", [1e3, 1e8, 1e12, 1e18])
def test_gradients_that_nearly_cancel_are_clipped_by_their_true_norm(base: float) -> None:
    """A norm made of products of positions loses everything where they cancel; one of the gradient itself does not."""
    layout = ((4, 64), (4,))
    head = build_head("linear", layout, 9, task="tokens")
    states = torch.full((1, 4, 64), base)
    states[0, 1, 0] = states[0, 3, 0] = torch.nextafter(torch.tensor(base), torch.tensor(3e38))
    with torch.no_grad():
        dict(head.named_parameters())["bias"][:2] = 50.0
    features = torch.cat([states.flatten(1), torch.ones(1, 4)], dim=1)
    found = clipped_sum(head, token_loss, features, torch.tensor([[0, 1, 0, 1]]), 1.0)
    assert norm_of(dict(found.values)) <= 1 + 1e-9
    deep = build_head("mlp", ((8, 384), (8,)), 32, task="tokens", hidden=64)
    with torch.no_grad():
        for name, value in deep.named_parameters():
            if name == "layers.0.weight":
                value.mul_(base**0.5)
            else:
                value.fill_({"layers.0.bias": base, "layers.2.weight": 0.0, "layers.2.bias": -100.0}[name])
        dict(deep.named_parameters())["layers.2.bias"][:2] = 0.0
    states = torch.randn(1, 8 * 384, generator=torch.Generator().manual_seed(0))
    features = torch.cat([states, torch.ones(1, 8)], dim=1)
    found = clipped_sum(deep, token_loss, features, torch.tensor([[0, 1] * 4]), 1.0)
    assert norm_of(dict(found.values)) <= 1 + 1e-9

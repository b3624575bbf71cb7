"""Heads: the same wherever they are made, pre-trained above the cut, and nothing but their trained part travels."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from common.adapters import RANK, Adapted
from common.backbones.controls import load_reference
from common.errors import ConfigError
from common.grafting import Trunk, flatten, layout, unflatten
from common.heads import HEADS, arrays_digest, arrays_digests, build_head, head_arrays, load_arrays
from common.rewriting import FixedNorm
from common.solved_heads import SOLVED_HEADS
from common.token_heads import PADDING_LOGIT, TokenLinear
from common.upper import TRAINABLE, UpperHead
from tests.stages import KINDS, Then, features_for, perturbed, stages

SEQUENCE = ((6, 4), (6,))


def upper_head(kind: str, train: str = "all", seed: int = 0, task: str = "classification") -> UpperHead:
    upper, shape = stages(kind)
    head = build_head("upper", shape, 3, upper=upper, train=train, seed=seed, task=task)
    assert isinstance(head, UpperHead)
    return head


def test_a_linear_head_is_torchs_own_and_a_number_means_a_vector() -> None:
    for shape in (5, ((5,),), [[5]], ((1, 2), (3,))):
        head = build_head("linear", shape, 3)
        assert type(head) is nn.Linear
        assert head.weight.shape == (3, 5)
        assert not any(value.any() for value in head.parameters())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("task", ["tokens", "spans"])
def test_a_head_over_tokens_gives_logits_for_every_position(kind: str, task: str) -> None:
    head = perturbed(build_head(kind, SEQUENCE, 5, hidden=7, task=task))
    features = features_for(SEQUENCE, 8, 1)
    states, mask = features[:, :24].reshape(8, 6, 4), features[:, 24:]
    logits = head(features)
    assert logits.shape == (8, 6, 2 if task == "spans" else 5)
    assert bool((logits == PADDING_LOGIT).any()) == (task == "spans")
    layers = head if isinstance(head, TokenLinear) else head.layers
    plain = nn.functional.linear(states, head.weight, head.bias) if isinstance(head, TokenLinear) else layers(states)  # type: ignore[operator]
    torch.testing.assert_close(logits[mask > 0], plain[mask > 0])
    if task == "spans":
        assert bool((logits.softmax(dim=1)[mask == 0] == 0).all())


@pytest.mark.parametrize("shape", [7, ((7,),), ((3, 4, 4),), ((6, 4), (5,)), ((6, 4), (6,), (1,))])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_tokens_need_a_sequence(kind: str, shape: int | tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError, match="cut"):
        build_head(kind, shape, 3, task="tokens")


def test_what_is_unknown_or_missing_is_refused() -> None:
    upper, shape = stages("bert")
    with pytest.raises(ConfigError, match="linear, mlp, upper"):
        build_head("svm", 5, 3)
    with pytest.raises(ConfigError, match="all, biases, adapters"):
        build_head("upper", shape, 3, upper=upper, train="norms")
    with pytest.raises(ConfigError, match="cut lower"):
        build_head("upper", shape, 3, upper={})
    constants = load_reference("embedded/glyph").stages["pool"]
    with pytest.raises(ConfigError, match="found nothing"):
        build_head("upper", ((128, 4, 4), (1200,)), 3, upper={"pool": constants})
    with pytest.raises(ConfigError, match="one vector"):
        build_head("upper", ((6, 4, 4),), 3, upper={"map": nn.Conv2d(6, 6, 1)})
    for train in TRAINABLE:
        with pytest.raises(ConfigError, match="found nothing"):
            build_head("upper", shape, 3, upper={"pool": upper["pool"]}, train=train)
    assert HEADS == ("linear", "mlp", "upper", "prototype", "ridge")
    for kind in SOLVED_HEADS:
        with pytest.raises(ConfigError, match="one class a record"):
            build_head(kind, 5, 3, task="multilabel")
    with pytest.raises(ConfigError, match="at most 2048"):
        build_head("ridge", 2049, 3)
    with pytest.raises(ConfigError, match="predict nothing"):
        build_head("ridge", 5, 3)(torch.zeros(1, 5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", ["all", "biases"])
def test_upper_stages_start_as_they_were_trained(kind: str, train: str) -> None:
    upper, shape = stages(kind)
    head = upper_head(kind, train)
    assert not head(features_for(shape, 4, 1)).any()  # the classifier is zero
    expected = unflatten(features_for(shape, 4, 1), shape)
    for stage in upper.values():
        expected = stage(expected)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(vectors(head, features_for(shape, 4, 1)), expected)


def vectors(head: UpperHead, features: Tensor) -> Tensor:
    """What the classifier is given."""
    seen: list[Tensor] = []
    handle = head.classifier.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    head(features)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("cut", ["stem", "stage1", "stage2"])
def test_trunk_and_upper_head_are_the_whole_model_for_every_cut(cut: str) -> None:
    backbone = load_reference("embedded/glyph")
    trunk, whole = Trunk(backbone, cut), Trunk(backbone)
    shape = layout(trunk, backbone.preprocessing)
    names = list(backbone.stages)
    upper = {name: backbone.stages[name] for name in names[names.index(cut) + 1 :]}
    head = build_head("upper", shape, 3, upper=upper)
    assert isinstance(head, UpperHead)
    inputs = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vectors(head, trunk(inputs)), whole(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", TRAINABLE)
def test_only_trained_parameters_travel_and_the_backbone_never_changes(kind: str, train: str) -> None:
    if (kind, train) == ("recurrent", "adapters"):
        return
    upper, _ = stages(kind)
    shape = stages(kind)[1]
    before = {
        f"{name}.{key}": value.clone() for name, stage in upper.items() for key, value in stage.state_dict().items()
    }
    head = build_head("upper", shape, 3, upper=upper, train=train)
    arrays = head_arrays(head)
    assert {"classifier.weight", "classifier.bias"} < set(arrays)
    above = [name for name in arrays if "classifier" not in name]
    if train == "biases":
        owners = [type(head.get_submodule(name.rpartition(".")[0])).__name__ for name in above]
        assert all("bias" in name or "Norm" in owner for name, owner in zip(above, owners, strict=True))
    if train == "adapters":
        assert all(".down." in name or ".up." in name for name in above)
    frozen = {name: value.clone() for name, value in head.state_dict().items() if name not in arrays}
    load_arrays(head, {name: value + 1 for name, value in arrays.items()})
    assert all(torch.equal(value + 1, head_arrays(head)[name]) for name, value in arrays.items())
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in frozen.items())
    after = {f"{name}.{key}": value for name, stage in upper.items() for key, value in stage.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    again = build_head("upper", shape, 3, upper=upper, train=train)
    assert arrays_digest(head_arrays(again)) == arrays_digest(arrays)


def test_a_head_is_the_same_wherever_it_is_made_and_draws_from_no_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = (head_arrays(upper_head("bert", "adapters", seed=3)) for _ in range(2))  # stages of their own each
    assert torch.equal(torch.get_rng_state(), before)
    assert arrays_digest(one) == arrays_digest(other)
    assert arrays_digest(one) != arrays_digest(head_arrays(upper_head("bert", "adapters", seed=4)))


def test_each_head_has_its_digest_whichever_tensors_they_share() -> None:
    one = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    equal = {name: value.clone() for name, value in one.items()}
    mixed, renamed = {**one, "bias": torch.ones(2)}, {"weight": one["weight"], "other": one["bias"]}
    heads = [one, dict(one), equal, mixed, renamed, one]
    assert arrays_digests(heads) == [arrays_digest(head) for head in heads]
    assert len(set(arrays_digests(heads))) == 3
    before = arrays_digests([one])
    one["weight"][0, 0] = 7
    assert arrays_digests([one]) == [arrays_digest(one)] != before


def test_a_name_cannot_pass_for_another_array() -> None:
    two = {"bias": torch.zeros(2), "weight": torch.ones(2, 3)}
    one = {"bias torch.float32 (2,)\n" + 8 * "\0" + "weight": torch.ones(2, 3)}
    assert arrays_digest(one) != arrays_digest(two)


def test_batch_norm_becomes_an_affine_map_with_its_running_statistics() -> None:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert value is not None
            value.copy_(torch.rand(4) + 0.5)
    fixed, maps = FixedNorm(norm), torch.randn(5, 4, 3, 3)
    torch.testing.assert_close(fixed(maps), norm.eval()(maps))
    torch.testing.assert_close(
        FixedNorm(nn.BatchNorm1d(4, affine=False))(maps[..., 0, 0]), maps[..., 0, 0], atol=1e-4, rtol=0
    )


def test_batch_norm_above_the_cut_is_trained_with_the_biases_only_and_its_statistics_never_move() -> None:
    names = set(head_arrays(upper_head("residual")))
    assert names == {name for name in names if "bn" not in name and "downsample.1" not in name}
    assert "stages.layer4.0.bn1.weight" in head_arrays(upper_head("residual", "biases"))
    for train in TRAINABLE:
        head = upper_head("residual", train)
        before = {name: value.clone() for name, value in head.named_buffers()}
        assert len(before) == 10
        head.train()
        head(features_for(((6, 4, 4),), 8, 1, 10.0)).sum().backward()
        assert all(torch.equal(before[name], value) for name, value in head.named_buffers())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in head.modules())


def test_what_is_frozen_is_shared_and_what_is_trained_is_not() -> None:
    upper, shape = stages("residual")
    one, other = (build_head("upper", shape, 3, upper=upper, train="adapters") for _ in range(2))
    for name, value in one.named_parameters():
        same = value.data_ptr() == other.get_parameter(name).data_ptr()
        assert same != value.requires_grad
    assert (
        one.get_parameter("stages.layer4.0.conv1.base.weight").data_ptr()
        == next(upper["layer4"].parameters()).data_ptr()
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "recurrent"])
def test_adapters_add_nothing_at_first_and_learn(kind: str) -> None:
    _, shape = stages(kind)
    features = features_for(shape, 4, 1)
    plain, adapted = upper_head(kind), upper_head(kind, "adapters")
    torch.testing.assert_close(vectors(adapted, features), vectors(plain, features))
    found = [module for module in adapted.modules() if isinstance(module, Adapted)]
    assert found
    assert all(
        len(value) <= RANK or "up" in name for name, value in head_arrays(adapted).items() if "classifier" not in name
    )
    perturbed(adapted)
    assert not torch.allclose(vectors(adapted, features), vectors(plain, features))


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_layers_whose_weight_is_used_without_calling_them_get_no_adapter(kind: str) -> None:
    names = {name for name in head_arrays(upper_head(kind, "adapters")) if "classifier" not in name}
    assert names
    assert all(".mlp." in name for name in names)


def test_a_span_over_upper_stages_leaves_out_the_stages_that_pool() -> None:
    _, shape = stages("bert")
    features = features_for(shape, 4, 1)
    for task, outputs in (("tokens", 3), ("spans", 2)):
        head = upper_head("bert", task=task)
        assert list(head.stages) == ["layer_1"]
        logits = perturbed(head)(features)
        assert logits.shape == (4, 5, outputs)
        assert bool((logits[features[:, -5:] == 0] == PADDING_LOGIT).all()) == (task == "spans")
    with pytest.raises(ConfigError, match="cut"):
        upper_head("residual", task="tokens")


@pytest.mark.parametrize("change", ["name", "shape", "missing"])
def test_arrays_of_another_head_are_refused(change: str) -> None:
    head = upper_head("bert", "biases")
    arrays = head_arrays(head)
    value = arrays.pop("classifier.bias")
    if change != "missing":
        arrays["bias" if change == "name" else "classifier.bias"] = value if change == "name" else torch.zeros(7)
    with pytest.raises(ConfigError, match="parameters"):
        load_arrays(head, arrays)


def test_a_head_can_be_copied_and_moved_to_float64() -> None:
    head = perturbed(upper_head("residual"))
    features = features_for(((6, 4, 4),), 3, 1)
    torch.testing.assert_close(copy.deepcopy(head).double()(features.double()).float(), head(features))
    assert math.prod(head(features).shape) == 9
    assert flatten(features).shape == features.shape


def test_stages_that_take_in_place_are_rewritten_and_the_originals_left() -> None:
    stage = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).requires_grad_(False)
    head = build_head("upper", 4, 3, upper={"stage": Then(stage, lambda rows: rows)})
    assert not any(getattr(module, "inplace", False) for module in head.modules())
    assert stage[1].inplace

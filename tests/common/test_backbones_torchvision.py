"""torchvision's networks, divided, are the same networks; their weights and their way with images are theirs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models

import fedgraft
from common.backbones.backbone import Backbone, stage_tensors
from common.backbones.centring import STAGE
from common.backbones.controls import load_reference
from common.backbones.package import save
from common.backbones.torchvision_family import Recipe, _is_all_state, build, load, load_file, model_names
from common.backbones.torchvision_stages import divide
from common.backbones.weight_files import read_state
from common.errors import ConfigError
from common.grafting import Trunk

SMALLEST = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 80,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_32": 64,
    "wide_resnet50_2": 32,
}
"""One of each family, with the pixels that it is tried with."""


def recipe(model: str, size: int = 32) -> Recipe:
    return Recipe(model, models.get_model_weights(model).DEFAULT.name, size)


def whole_network(model: str, size: int) -> nn.Module:
    """A network whose every statistic and classifier differ from what construction leaves."""
    network = build(recipe(model, size), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
    for name, value in divide(network)[1].named_parameters():
        value.normal_(0, 0.1, generator=generator) if "weight" in name else value.zero_()
    return network


def backbone_of(stages: dict[str, nn.Module]) -> Backbone:
    preprocessing = load_reference("pixels/8").preprocessing
    return Backbone("test/whole", stages, preprocessing, "none", "nothing", "0" * 64)


@torch.inference_mode()
@pytest.mark.parametrize("model", SMALLEST)
def test_trunk_then_upper_stages_then_classifier_are_the_whole_network_for_every_cut(model: str) -> None:
    network = whole_network(model, SMALLEST[model])
    stages, classifier = divide(network)
    images = torch.randn(2, 3, SMALLEST[model], SMALLEST[model], generator=torch.Generator().manual_seed(0))
    expected = network(images)
    assert expected.std() > 0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    names = list(stages)
    carried: Tensor = images
    for number, cut in enumerate(names):  # what passes one cut is reached from the one before: a trunk adds a stage
        kept = carried.clone()
        after = stages[cut](carried)
        assert torch.equal(kept, carried), f"{cut} changes its own input, which may be a cached feature"
        carried = after
        values = carried
        for name in names[number + 1 :] if number in (0, len(names) // 2) else ():
            values = stages[name](values)
        if number in (0, len(names) // 2):
            assert torch.allclose(classifier(values), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert carried.ndim == 2
    assert torch.allclose(classifier(carried), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("model", ["resnet18", "densenet121", "vit_b_32"])
def test_a_trunk_gives_what_its_stages_give_at_every_cut(model: str) -> None:
    stages, _ = divide(whole_network(model, SMALLEST[model]))
    images = torch.randn(2, 3, SMALLEST[model], SMALLEST[model])
    values = images
    for cut in stages:
        values = stages[cut](values)
        trunk = Trunk(backbone_of(stages), cut)
        assert torch.allclose(trunk(images), values.flatten(1), atol=1e-4)


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_a_forward_pass_that_asks_for_training_moves_no_parameter_and_no_statistic(model: str) -> None:
    stages, _ = divide(whole_network(model, SMALLEST[model]))
    before = {name: value.clone() for name, value in stage_tensors(stages).items()}
    outer = nn.Sequential(Trunk(backbone_of(stages)), nn.Flatten())
    outer.train()
    images = torch.randn(4, 3, SMALLEST[model], SMALLEST[model])
    first, second = outer(images), outer(images)
    assert torch.equal(first, second)  # no dropout, no stochastic depth
    assert not first.requires_grad
    assert all(torch.equal(before[name], value) for name, value in stage_tensors(stages).items())


def test_every_classification_network_is_a_backbone_or_refused_with_the_list() -> None:
    every = set(models.list_models(module=models))
    assert every - set(model_names()) == {"squeezenet1_0", "squeezenet1_1"}
    with pytest.raises(ConfigError, match=r"squeezenet1_0 is no row of stages .*alexnet, .*resnet18.*; "):
        load("torchvision/squeezenet1_0@random-0")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("torchvision/resnet81", "did you mean resnet18"),
        ("torchvision/fcn_resnet50", "is no row of stages"),
        ("torchvision/resnet18@IMAGENET1K_V9", r"has the weights IMAGENET1K_V1, not 'IMAGENET1K_V9'; choose"),
        ("torchvision/resnet18:8", "of 32 to 1024 pixels, got 8"),
        ("torchvision/resnet18:big", r"expected torchvision/<model>.*write it as in torchvision/resnet18:96@"),
        ("torchvision/", "expected torchvision/<model>"),
        ("torchvision/vit_b_16:100@random-0", "vit_b_16 cannot take images of 100 pixels; .*224 being its own"),
        ("torchvision/inception_v3:64@random-0", "inception_v3 cannot take images of 64 pixels; .*299 being its own"),
    ],
)
def test_a_wrong_reference_is_told_what_to_do(reference: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_reference(reference)


def test_random_weights_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = load_reference("torchvision/resnet18:32@random-0")
    again, other = (load_reference(f"torchvision/resnet18:32@random-{seed}") for seed in (0, 1))
    larger = load_reference("torchvision/resnet18:64@random-0")
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.digest == again.digest
    assert len({first.digest, other.digest, larger.digest}) == 3
    assert list(first.stages) == ["stem", "layer1", "layer2", "layer3", "layer4", "pool", STAGE]
    assert first.trained_on == "nothing: random weights"
    assert all(
        torch.equal(value, stage_tensors(again.stages)[name]) for name, value in stage_tensors(first.stages).items()
    )
    assert not any(value.requires_grad for stage in first.stages.values() for value in stage.parameters())


@pytest.mark.parametrize(
    "weights", ["resnet50@IMAGENET1K_V1", "resnet50@IMAGENET1K_V2", "swin_t", "efficientnet_b1@IMAGENET1K_V1"]
)
@pytest.mark.parametrize("shape", [(40, 40), (37, 64), (300, 211)])
def test_images_are_prepared_as_torchvision_prepares_them(weights: str, shape: tuple[int, int]) -> None:
    model, _, name = weights.partition("@")
    known = models.get_model_weights(model)
    own = (known[name] if name else known.DEFAULT).transforms()
    preprocessing = load_reference_preprocessing(weights)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = own(torch.from_numpy(image).permute(2, 0, 1))
    prepared = preprocessing(image[None])[0]
    # torchvision rounds to 8 bits after resizing, which is half a grey level: 0.5 / 255 / 0.224
    assert (prepared - expected).abs().max() < 0.012


def load_reference_preprocessing(weights: str) -> Any:
    from common.backbones.torchvision_family import _preprocessing, _read

    return _preprocessing(_read(f"torchvision/{weights}")[0])


def test_another_size_keeps_the_share_that_is_cut_away() -> None:
    preprocessing = load_reference_preprocessing("resnet18:96")
    assert (preprocessing.size, preprocessing.shorter_side) == (96, round(256 * 96 / 224))
    assert preprocessing(np.zeros((2, 28, 28), np.uint8)).shape == (2, 3, 96, 96)


def checkpoint(folder: Path, model: str, network: nn.Module) -> None:
    """Lay weights where torchvision keeps those that it has fetched."""
    url = models.get_model_weights(model).DEFAULT.url
    torch.save(network.state_dict(), folder / url.rpartition("/")[2])


@pytest.mark.parametrize("model", ["resnet18", "mnasnet0_5", "densenet121"])
def test_weights_that_torchvision_has_fetched_are_used(tmp_path: Path, model: str) -> None:
    network = whole_network(model, 32)
    checkpoint(tmp_path, model, network)
    backbone = load(f"torchvision/{model}:32", tmp_path)
    images = torch.randn(2, 3, 32, 32)
    values = images
    for stage in list(backbone.stages.values())[:-1]:
        values = stage(values)
    assert torch.allclose(divide(network)[1](values), network(images), atol=1e-4)
    assert "ImageNet" in backbone.trained_on


def test_a_vision_transformer_of_another_size_gets_its_positions_resampled(tmp_path: Path) -> None:
    checkpoint(tmp_path, "vit_b_32", whole_network("vit_b_32", 96))
    backbone = load("torchvision/vit_b_32:64", tmp_path)
    assert stage_tensors(backbone.stages)["embeddings.pos_embedding"].shape == (1, 1 + 4, 768)


def test_old_names_in_densenet_weights_are_understood(tmp_path: Path) -> None:
    network = whole_network("densenet121", 32)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): v for name, v in network.state_dict().items()
    }
    url = models.get_model_weights("densenet121").DEFAULT.url
    torch.save(old, tmp_path / url.rpartition("/")[2])
    loaded = stage_tensors(load("torchvision/densenet121:32", tmp_path).stages)
    expected = stage_tensors(divide(network)[0])
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items())


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    url = models.get_model_weights("resnet18").DEFAULT.url
    (tmp_path / url.rpartition("/")[2]).write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=r"arrived damaged .*; delete resnet18-.*\.pth"):
        load("torchvision/resnet18:32", tmp_path)


def test_without_a_network_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = "http://127.0.0.1:9"  # a port that refuses at once
    for name, value in {"TORCH_HOME": str(tmp_path), "https_proxy": nowhere, "HTTPS_PROXY": nowhere}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "")
    assert fedgraft.main(["backbones", "show", "torchvision/resnet18"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: the weights IMAGENET1K_V1 of torchvision/resnet18 are not on this machine")
    assert all(way in line for way in ("backbones pack", "package/FOLDER", "--weights FILE", "resnet18@random-0"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_of_weights_fills_a_network(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    network = whole_network("resnet18", 32)
    state = {f"module.{name}" if wrapped else name: value for name, value in network.state_dict().items()}
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": state} if wrapped else state, path)
    else:
        safetensors.torch.save_file(state, path)
    loaded = stage_tensors(load_file("torchvision/resnet18:32", path).stages)
    assert all(torch.equal(value, loaded[name]) for name, value in stage_tensors(divide(network)[0]).items())


@torch.inference_mode()
@pytest.mark.parametrize(
    "model",
    ["densenet121", "maxvit_t", "mnasnet0_5", "regnet_y_400mf", "resnet18", "swin_t", "swin_v2_t", "vit_b_32"],
)
def test_weights_of_a_file_make_the_network_whatever_was_drawn_before(tmp_path: Path, model: str) -> None:
    """Some of these are made without weights at first, some cannot be; a package goes the same way."""
    size = SMALLEST[model]
    network = whole_network(model, size)
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    before = torch.random.get_rng_state()
    mine = load_file(f"torchvision/{model}:{size}", path)
    save(mine, tmp_path / "packed")
    packed = load_reference(f"package/{tmp_path / 'packed'}")
    assert torch.equal(torch.random.get_rng_state(), before)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    for loaded in (mine, packed):
        tensors = stage_tensors(loaded.stages)
        assert all(torch.equal(value, tensors[name]) for name, value in stage_tensors(divide(network)[0]).items())
        assert not any(value.requires_grad for stage in loaded.stages.values() for value in stage.parameters())
        assert torch.equal(Trunk(loaded)(images), Trunk(backbone_of(divide(network)[0]))(images))


def test_no_weights_are_drawn_where_others_are_laid_in_and_the_state_is_all_there_is() -> None:
    assert all(value.is_meta for value in build(recipe("resnet18"), None).parameters())
    same = zip(*(build(recipe("regnet_y_400mf"), seed).parameters() for seed in (None, 0)), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


@pytest.mark.parametrize(
    "hold",
    [
        lambda layer: torch.ones(2),
        lambda layer: layer.weight.detach(),
        lambda layer: [layer.weight],
        lambda layer: {"kept": ({"within": torch.ones(2)},)},
        lambda layer: [nn.Linear(1, 1)],
    ],
)
def test_a_network_that_keeps_values_beside_its_state_is_noticed(hold: Any) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert _is_all_state(network)
    network[0].beside = hold(network[0])
    assert not _is_all_state(network)


def test_a_network_with_buffers_beside_its_state_is_noticed() -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    network[0].register_buffer("kept", torch.ones(2), persistent=False)
    assert not _is_all_state(network)


@pytest.mark.parametrize(
    "written",
    [
        lambda value: value.half() if value.is_floating_point() else value,
        lambda value: value.double(),  # averages of weights often make counters of floats
        lambda value: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value,
        nn.Parameter,
    ],
)
@pytest.mark.parametrize("model", ["resnet18", "regnet_y_400mf"])
def test_weights_of_a_file_take_the_networks_own_types_and_layout(tmp_path: Path, model: str, written: Any) -> None:
    network = whole_network(model, 32)
    state = {
        name: written(value) if value.is_floating_point() or written is not nn.Parameter else value
        for name, value in network.state_dict().items()
    }
    torch.save(state, tmp_path / "mine.pth")
    loaded = load_file(f"torchvision/{model}:32", tmp_path / "mine.pth")
    save(loaded, tmp_path / "packed")
    tensors = stage_tensors(load_reference(f"package/{tmp_path / 'packed'}").stages)
    for name, value in stage_tensors(divide(network)[0]).items():
        assert (tensors[name].dtype, tensors[name].stride()) == (value.dtype, value.stride())
        torch.testing.assert_close(tensors[name], value, rtol=1e-3, atol=1e-3)


def test_old_files_without_counters_leave_them_at_zero(tmp_path: Path) -> None:
    state = {
        name: value for name, value in whole_network("resnet18", 32).state_dict().items() if "num_batches" not in name
    }
    safetensors.torch.save_file(state, tmp_path / "mine.safetensors")
    loaded = stage_tensors(load_file("torchvision/resnet18:32", tmp_path / "mine.safetensors").stages)
    counters = [value for name, value in loaded.items() if "num_batches" in name]
    assert counters
    assert all(value.item() == 0 for value in counters)


def test_a_classifier_of_ones_own_does_no_harm(tmp_path: Path) -> None:
    state = whole_network("resnet18", 32).state_dict()
    del state["fc.weight"], state["fc.bias"]
    torch.save({**state, "fc.0.weight": torch.zeros(2, 512)}, tmp_path / "mine.pth")
    assert "pool" in load_file("torchvision/resnet18:32", tmp_path / "mine.pth").stages


class Evil:
    """What a pickle may do: call anything."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("evil",))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: {n: v for n, v in state.items() if n != "conv1.weight"}, r"lack 1 tensors \(conv1\.weight\)"),
        (lambda state: {**state, "neck.weight": torch.ones(1)}, r"beyond what the network knows, 1 tensors"),
        (lambda state: {**state, "conv1.weight": torch.ones(2, 3)}, r"expected conv1.weight of shape \(64, 3, 7, 7\)"),
        (lambda state: {**state, "bn1.bias": torch.full((64,), torch.nan)}, "not finite; give other weights"),
        (lambda state: {"state": 3}, "expected a state dict, tensors by name"),
        (lambda state: [torch.ones(1)], "expected a state dict, tensors by name"),
        (lambda state: {**state, "x": Evil()}, "holds more than tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    path = tmp_path / "mine.pth"
    torch.save(change(dict(build(recipe("resnet18")).state_dict())), path)
    with pytest.raises(ConfigError, match=sentence):
        load_file("torchvision/resnet18:32", path)
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.h5", b"x", "ends in .safetensors, .pth"),
        ("a.safetensors", b"x", "cannot be read .*; copy the file again"),
        ("a.pth", b"x", "cannot be read|more than tensors"),
        ("a.pth", b"junk", "cannot be read .*; copy the file again"),
        ("a.pth", b"", "cannot be read|more than tensors"),
        ("gone.pth", None, "found none; correct the path"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        read_state(tmp_path / name)

"""The registry hands out what the source pins, and nothing else."""

import json
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from common.backbones.backbone import backbone_digest
from common.backbones.registry import (
    CALIBRATION,
    GLYPH,
    assets_of,
    backbone_names,
    calibration_images,
    installed_assets,
    load_backbone,
    untrained_twin,
)
from common.errors import ConfigError


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """A folder like the installed one."""
    (tmp_path / GLYPH.file).write_bytes((installed_assets() / GLYPH.file).read_bytes())
    return tmp_path


def test_every_name_loads() -> None:
    for name in backbone_names():
        backbone = load_backbone(name)
        assert backbone.name == name
        assert backbone.licence == "Apache-2.0"
        assert "no human's data" in backbone.trained_on


def test_a_folder_with_the_right_weights_serves(assets: Path) -> None:
    assert load_backbone(GLYPH.name, assets).digest == GLYPH.digest


@pytest.mark.parametrize(
    ("origin", "root"),
    [
        (None, "site"),
        ({"url": "file:///somewhere/a.whl", "archive_info": {}}, "site"),
        ({"url": "file:///a%20project", "dir_info": {}}, "site"),
        ({"url": "file:///a%20project", "dir_info": {"editable": True}}, "/a project"),
    ],
)
def test_weights_are_where_the_distribution_says(tmp_path: Path, origin: dict[str, object] | None, root: str) -> None:
    info = tmp_path / "site" / "fedgraft-0.1.0.dist-info"
    info.mkdir(parents=True)
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    assert assets_of(PathDistribution(info)) == tmp_path / root / "common" / "backbones" / "assets"


@pytest.mark.parametrize("wrong", ["embedded/glyf", "glyph", "embeded/glyph"])
def test_an_unknown_name_is_told_the_nearest_right_one(wrong: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'embedded/glyph'"):
        load_backbone(wrong)


@pytest.mark.parametrize("other", ["x", "torchvision/resnet50"])
def test_a_name_like_none_of_ours_is_told_what_there_is(other: str) -> None:
    with pytest.raises(ConfigError, match=r"must be one of embedded/glyph, .*; choose one of them"):
        load_backbone(other)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file is there; install fedgraft anew"):
        load_backbone(GLYPH.name, tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_weights_cut_short_are_refused(assets: Path, kept: int) -> None:
    path = assets / GLYPH.file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        load_backbone(GLYPH.name, assets)


def test_one_flipped_bit_is_noticed(assets: Path) -> None:
    path = assets / GLYPH.file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="digest"):
        load_backbone(GLYPH.name, assets)


def test_other_weights_of_the_same_shape_are_noticed(assets: Path) -> None:
    path = assets / GLYPH.file
    tensors = safetensors.torch.load(path.read_bytes())
    tensors["stem.conv.weight"] = tensors["stem.conv.weight"] * 2
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(ConfigError, match="digest"):
        load_backbone(GLYPH.name, assets)


def test_the_digest_covers_architecture_preprocessing_names_and_values() -> None:
    tensors = {"a": torch.zeros(2, 3)}
    base = backbone_digest({"x": 1}, {"y": 1}, tensors)
    assert base == backbone_digest({"x": 1}, {"y": 1}, dict(tensors))
    others = [
        backbone_digest({"x": 2}, {"y": 1}, tensors),
        backbone_digest({"x": 1}, {"y": 2}, tensors),
        backbone_digest({"x": 1}, {"y": 1}, {"b": tensors["a"]}),
        backbone_digest({"x": 1}, {"y": 1}, {"a": torch.zeros(3, 2)}),
        backbone_digest({"x": 1}, {"y": 1}, {"a": torch.ones(2, 3)}),
    ]
    assert len({base, *others}) == 6


def test_the_model_card_tells_of_the_weights_that_are_shipped() -> None:
    card = json.loads((installed_assets() / GLYPH.card).read_text())
    assert card["digest"] == GLYPH.digest
    assert card["licence"] == GLYPH.licence
    assert card["architecture"] == GLYPH.architecture.describe()
    assert set(card["table"]) == {"5", "20"}


def test_the_file_is_small_enough_to_embed() -> None:
    assert (installed_assets() / GLYPH.file).stat().st_size <= 8e6


def test_the_twin_differs_in_its_weights_only() -> None:
    backbone = load_backbone(GLYPH.name)
    twin, again, other = (untrained_twin(backbone, seed) for seed in (1, 1, 2))
    assert list(twin.stages) == list(backbone.stages)
    assert twin.preprocessing == backbone.preprocessing
    assert twin.digest == again.digest
    assert len({twin.digest, other.digest, backbone.digest}) == 3
    assert "random" in twin.trained_on


def test_the_twin_leaves_the_global_generator_alone() -> None:
    backbone = load_backbone(GLYPH.name)
    before = torch.random.get_rng_state()
    untrained_twin(backbone, 5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_constants_of_both_come_from_the_images_in_the_file() -> None:
    backbone = load_backbone(GLYPH.name)
    images = calibration_images(GLYPH.name)
    assert images.shape[1:] == (32, 32)
    for made in (backbone, untrained_twin(backbone, 3)):
        pool = made.stages["pool"]
        seen: list[torch.Tensor] = []
        state = made.preprocessing(images)
        for stage in list(made.stages.values())[:-1]:
            state = stage(state)
        seen.append(state[1].mean(dim=0))
        assert torch.allclose(seen[0], pool.get_buffer("mean"), atol=1e-4)


def test_the_calibration_images_are_no_parameter() -> None:
    stages = nn.ModuleDict(dict(load_backbone(GLYPH.name).stages))
    assert CALIBRATION not in stages.state_dict()

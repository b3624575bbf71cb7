"""Constants that centre features are public, the same everywhere, and worth having."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common.backbones.backbone import Backbone, stage_tensors
from common.backbones.centring import STAGE, Centre, centred, centred_on, measure, without_centre
from common.backbones.controls import load_reference
from common.backbones.preprocessing import ImagePreprocessing
from common.errors import ConfigError
from common.grafting import Trunk
from common.paths import CACHE


class Shifted(nn.Module):
    """Features far from zero, of very differing scales."""

    def forward(self, pixels: Tensor) -> Tensor:
        means = pixels.mean(dim=(2, 3)).repeat(1, 4)
        return means * torch.tensor([1.0, 10.0, 1e-6, 0.0]) + torch.tensor([5.0, -3.0, 1.0, 2.0])


def shifted(digest: str = "0" * 64) -> Backbone:
    return Backbone("test/shifted", {"pool": Shifted()}, ImagePreprocessing(16, 1), "none", "nothing", digest)


@pytest.fixture
def cache(tmp_path: Path):
    """A cache folder of its own."""
    before = os.environ[CACHE]
    os.environ[CACHE] = str(tmp_path)
    yield tmp_path
    os.environ[CACHE] = before


def pictures(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (count, 1, 1)) + np.zeros((1, 16, 16))).astype(np.uint8)


def test_public_records_end_up_centred_and_of_one_norm():
    backbone = centred_on(shifted(), pictures(500))
    features = Trunk(backbone)(backbone.preprocessing(pictures(500)))
    assert torch.allclose(features.norm(dim=1), torch.full((500,), math.sqrt(4)), atol=1e-4)
    assert features.mean(dim=0)[:2].abs().max() < 0.2
    assert list(backbone.stages) == ["pool", STAGE]


def test_a_feature_that_hardly_varies_is_not_blown_up():
    centre = measure(shifted(), pictures(500))
    assert centre.std[2] == centre.std[3] >= 0.09 * centre.std[:2].square().mean().sqrt() / math.sqrt(2)


def test_blank_images_have_finite_features():
    backbone = centred(replace(shifted(), digest="1" * 64))
    for value in (0, 128, 255):
        assert torch.isfinite(Trunk(backbone)(backbone.preprocessing(np.full((1, 9, 9), value, np.uint8)))).all()


@given(st.integers(1, 6))
def test_a_record_is_centred_alone(count: int):
    centre = measure(shifted(), pictures(50))
    features = torch.randn(count, 4)
    assert torch.allclose(centre(features), torch.cat([centre(row[None]) for row in features]), atol=1e-6)


def test_constants_are_short_numbers_so_that_another_order_of_sums_gives_the_same():
    images = pictures(300)
    first, reordered = measure(shifted(), images), measure(shifted(), images[::-1].copy())
    assert torch.equal(first.mean, reordered.mean)
    assert torch.equal(first.std, reordered.std)
    assert torch.equal(first.mean, first.mean.bfloat16().float())


def test_the_digest_covers_the_recipe_and_the_network(cache: Path):
    first, again, other = (centred(shifted(digest * 64)) for digest in "aab")
    assert first.digest == again.digest != other.digest
    assert first.digest != shifted("a" * 64).digest
    assert len(list((cache / "centring").iterdir())) == 2


def test_constants_are_measured_once(cache: Path):
    first = centred(shifted())
    (file,) = (cache / "centring").iterdir()
    written = file.stat().st_mtime_ns
    assert stage_tensors(centred(shifted()).stages).keys() == stage_tensors(first.stages).keys()
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("content", [b"", b"damaged", "cut"])
def test_a_damaged_cache_file_is_measured_anew(cache: Path, content: bytes | str):
    first = stage_tensors(centred(shifted()).stages)
    (file,) = (cache / "centring").iterdir()
    file.write_bytes(content if isinstance(content, bytes) else file.read_bytes()[:-3])
    again = stage_tensors(centred(shifted()).stages)
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_centring_twice_is_centring_once():
    once = centred(shifted())
    assert centred(once) is once
    assert list(without_centre(once).stages) == ["pool"]
    assert list(centred_on(once, pictures(9)).stages) == ["pool", STAGE]


def test_what_takes_no_images_is_told_how():
    class Texts(ImagePreprocessing):
        @property
        def accepts(self) -> frozenset[str]:
            return frozenset({"text"})

    with pytest.raises(ConfigError, match=r"takes text, cannot be centred on images; pack it with --centre-on SOURCE"):
        centred(replace(shifted(), preprocessing=Texts(16, 1)))


@pytest.mark.parametrize("images", [pictures(0), pictures(1)])
def test_too_few_records_are_refused(images: np.ndarray):
    with pytest.raises(ConfigError, match="at least two public records"):
        centred_on(shifted(), images)


@pytest.mark.parametrize("stage", [nn.Identity(), nn.Sequential(Shifted(), nn.Threshold(1e9, math.nan))])
def test_features_that_are_no_finite_vectors_are_refused(stage: nn.Module):
    with pytest.raises(ConfigError, match=r"expected finite features \(N, D\) from test/shifted"):
        centred_on(replace(shifted(), stages={"pool": stage}), pictures(4))


def test_centring_survives_a_cut_below_it():
    backbone = load_reference("torchvision/shufflenet_v2_x0_5:32@random-0")
    assert Trunk(backbone, "stage3").cut == "stage3"
    assert isinstance(backbone.stages[STAGE], Centre)
    assert not backbone.stages[STAGE].training

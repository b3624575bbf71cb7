"""The embedded network keeps its promises, and its training was worth it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from common.backbones.backbone import Backbone
from common.backbones.embedded import deviations, histogram, standardise
from common.backbones.registry import load_backbone
from common.grafting import Trunk


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("embedded/glyph")


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    images: np.ndarray = (load_digits().images * 15.9375).astype(np.uint8)
    return images


def features(backbone: Backbone, images: np.ndarray) -> Tensor:
    features: Tensor = Trunk(backbone)(backbone.preprocessing(images))
    return features


def modules(backbone: Backbone) -> list[nn.Module]:
    return [module for stage in backbone.stages.values() for module in stage.modules()]


def test_it_is_small(backbone: Backbone) -> None:
    assert sum(value.numel() for stage in backbone.stages.values() for value in stage.parameters()) <= 2_000_000


def test_it_has_no_batch_normalisation_and_is_frozen(backbone: Backbone) -> None:
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules(backbone))
    assert not any(module.training for module in modules(backbone))
    assert not any(value.requires_grad for module in modules(backbone) for value in module.parameters())


def test_every_stage_puts_the_batch_first(backbone: Backbone, digits: np.ndarray) -> None:
    state = backbone.preprocessing(digits[:3])
    for stage in backbone.stages.values():
        state = stage(state)
        assert all(len(part) == 3 for part in (state if isinstance(state, tuple) else (state,)))
    assert isinstance(state, Tensor)
    assert state.ndim == 2


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_features_of_a_record_do_not_depend_on_its_batch(backbone: Backbone, digits: np.ndarray, batch: int) -> None:
    whole = features(backbone, digits[:130])
    parts = torch.cat([features(backbone, digits[start : min(start + batch, 130)]) for start in range(0, 130, batch)])
    assert torch.allclose(whole, parts, atol=1e-5)


def test_every_record_has_the_same_norm(backbone: Backbone, digits: np.ndarray) -> None:
    norms = features(backbone, digits[:100]).norm(dim=1)
    assert torch.allclose(norms, norms[:1].expand(100), rtol=1e-4)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_image_has_finite_features(backbone: Backbone, value: int) -> None:
    assert torch.isfinite(features(backbone, np.full((1, 16, 16), value, dtype=np.uint8))).all()


@given(st.floats(0.5, 2), st.floats(-1, 1), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_standardising_takes_brightness_and_contrast_away(contrast: float, brightness: float, seed: int) -> None:
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(standardise(images), standardise(contrast * images + brightness), atol=1e-4)


@given(st.integers(2, 20), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_a_histogram_counts_every_pixel_once(bins: int, seed: int) -> None:
    images = 2 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(histogram(images, bins).square().sum(dim=1), torch.ones(3), atol=1e-5)


@given(st.integers(2, 9), st.floats(0, 100), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_deviations_are_torchs(side: int, offset: float, seed: int) -> None:
    maps = torch.randn(3, 4, side, side, generator=torch.Generator().manual_seed(seed)) + offset
    exact = maps.double().flatten(2).std(dim=2).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.allclose(deviations(maps.contiguous(memory_format=layout)), exact, rtol=1e-4, atol=1e-6)


@given(st.floats(-1e4, 1e4))
def test_a_constant_map_has_no_deviation_and_a_finite_gradient(value: float) -> None:
    maps = torch.full((2, 3, 8, 8), value, requires_grad=True)
    found = deviations(maps)
    found.sum().backward()
    assert found.abs().max() <= 1e-6 * max(1, abs(value))
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


def test_five_labels_per_class_teach_more_than_with_raw_pixels(backbone: Backbone, digits: np.ndarray) -> None:
    labels = load_digits().target
    found = features(backbone, digits).numpy()
    gains = [
        few_label_accuracy(found, labels, seed) - few_label_accuracy(digits / 255, labels, seed) for seed in range(5)
    ]
    assert np.mean(gains) > 0.02


def few_label_accuracy(inputs: np.ndarray, labels: np.ndarray, seed: int) -> float:
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.choice(np.flatnonzero(labels == digit), 5, replace=False) for digit in range(10)])
    rows = inputs.reshape(len(inputs), -1)
    rows = rows / np.sqrt(np.square(rows).sum(axis=1).mean())
    model = LogisticRegression(C=20, max_iter=1000).fit(rows[chosen], labels[chosen])
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    return float(model.score(rows[rest], labels[rest]))

"""Images of every accepted shape become one kind of input; others are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from common.backbones.preprocessing import ImagePreprocessing
from common.errors import ConfigError

GREY = ImagePreprocessing(size=32, channels=1)


def flat(value: int, *shape: int) -> np.ndarray:
    return np.full(shape, value, dtype=np.uint8)


@given(
    images=st.integers(1, 3).flatmap(
        lambda n: st.sampled_from([(), (1,), (3,), (4,)]).flatmap(
            lambda channels: st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
                lambda side: arrays.arrays(np.uint8, (n, *side, *channels))
            )
        )
    ),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_every_accepted_shape_gives_finite_input_of_one_shape(images: np.ndarray, channels: int) -> None:
    prepared = ImagePreprocessing(size=32, channels=channels)(images)
    assert prepared.shape == (len(images), channels, 32, 32)
    assert prepared.dtype == torch.float32
    assert torch.isfinite(prepared).all()
    assert prepared.abs().max() <= 2 + 1e-4


def test_images_of_differing_sizes_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 256, shape, dtype=np.uint8) for shape in [(8, 8), (50, 31), (28, 28, 3), (9, 9, 4)])
    together = GREY(images)
    for row, image in zip(together, images, strict=True):
        assert torch.equal(row, GREY(image[None])[0])


def test_no_image_gives_an_empty_input() -> None:
    assert GREY(flat(0, 0, 8, 8)).shape == (0, 1, 32, 32)
    assert GREY(()).shape == (0, 1, 32, 32)


def test_black_and_white_reach_the_ends_of_the_scale() -> None:
    assert torch.allclose(GREY(flat(0, 1, 8, 8)), torch.tensor(-2.0))
    assert torch.allclose(GREY(flat(255, 1, 64, 64)), torch.tensor(2.0), atol=1e-5)


def test_grey_pixels_look_the_same_in_colour() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 20, 20), dtype=np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=3)
    assert torch.allclose(GREY(grey), GREY(colour), atol=1e-5)


def test_transparent_pixels_are_white() -> None:
    transparent = flat(0, 1, 8, 8, 4)
    assert torch.allclose(GREY(transparent), torch.tensor(2.0), atol=1e-5)


def test_small_images_are_enlarged_smoothly() -> None:
    edge = flat(0, 1, 8, 8)
    edge[:, :, 4:] = 255
    steps = GREY(edge)[0, 0, 16].diff()
    assert steps.min() >= 0
    assert steps.max() < 1.5  # a sharp edge would be a step of 4


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8)),
        flat(0, 2, 8),
        flat(0, 2, 8, 8, 2),
        flat(0, 2, 0, 8),
        (flat(0, 8, 8), np.zeros((8, 8), dtype=np.int32)),
    ],
)
def test_other_images_are_refused_with_what_to_do(images: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"expected uint8 images .* convert them"):
        GREY(images)


def test_each_setting_changes_the_description() -> None:
    others = [ImagePreprocessing(16, 1), ImagePreprocessing(32, 3), ImagePreprocessing(32, 1, mean=0.4)]
    assert all(other.describe() != GREY.describe() for other in others)

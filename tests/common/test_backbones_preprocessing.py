"""Images of every accepted shape become one kind of input; others are refused."""

from dataclasses import replace

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


@pytest.mark.parametrize("shape", [(40, 700, 600), (9, 900, 300, 3), (2, 1500, 1501)])
def test_large_images_give_together_what_each_gives_alone(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for row, image in zip(GREY(images), images, strict=True):
        assert torch.equal(row, GREY(image[None])[0])


@pytest.mark.parametrize("shape", [(3, 1500, 1500), (24, 300, 300), (2, 40, 30, 3)])
def test_reversed_images_are_taken(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert torch.equal(GREY(images[::-1, ::-1]), GREY(images[::-1, ::-1].copy()))


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


COLOUR = ImagePreprocessing(
    size=24, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), shorter_side=32, interpolation="bicubic"
)


def test_constants_by_channel_are_taken_and_divided_by_channel() -> None:
    white = COLOUR(flat(255, 1, 40, 30, 3))
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        assert torch.allclose(white[0, channel], torch.tensor((1 - mean) / std), atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
def test_a_square_is_cut_out_of_the_middle(shape: tuple[int, int]) -> None:
    image = flat(0, 1, *shape)
    middle = slice(30, 70)
    if shape[1] == 100:
        image[:, :, middle] = 255
    else:
        image[:, middle] = 255
    cropped = ImagePreprocessing(size=24, channels=1, shorter_side=32)(image)
    assert cropped.shape == (1, 1, 24, 24)
    assert torch.allclose(cropped, torch.tensor(2.0), atol=1e-4)  # the black ends are gone


def test_bicubic_never_overshoots() -> None:
    edge = flat(0, 1, 8, 8)
    edge[:, :, 4:] = 255
    prepared = ImagePreprocessing(size=32, channels=1, interpolation="bicubic")(edge)
    assert prepared.abs().max() <= 2


@pytest.mark.parametrize("preprocessing", [GREY, COLOUR, ImagePreprocessing(8, 3, mean=(0.1, 0.2, 0.3))])
def test_a_description_is_enough_to_make_it_again(preprocessing: ImagePreprocessing) -> None:
    assert ImagePreprocessing.from_description(preprocessing.describe()) == preprocessing


@pytest.mark.parametrize("missing", ["size", "mean", "resize"])
def test_a_description_that_lacks_something_is_refused(missing: str) -> None:
    described = COLOUR.describe()
    del described[missing]
    with pytest.raises(ConfigError, match=f"one without '{missing}'"):
        ImagePreprocessing.from_description(described)


def test_a_description_from_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="this version knows"):
        ImagePreprocessing.from_description({**COLOUR.describe(), "opacity": "black"})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"interpolation": "nearest"}, "expected bilinear or bicubic"),
        ({"shorter_side": 7}, "a shorter side of at least the size"),
        ({"mean": (0.1, 0.2)}, "expected one constant or 3"),
        ({"std": (0.1, 0.2, 0.3, 0.4)}, "expected one constant or 3"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ImagePreprocessing(size=8, channels=3, **settings)


def test_every_setting_for_colour_changes_the_description() -> None:
    others = [
        replace(COLOUR, shorter_side=33),
        replace(COLOUR, shorter_side=None),
        replace(COLOUR, interpolation="bilinear"),
        replace(COLOUR, std=0.2),
    ]
    assert len({str(other.describe()) for other in (COLOUR, *others)}) == 5

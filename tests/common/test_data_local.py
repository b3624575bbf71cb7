from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.data import LocalData, load_source
from common.errors import ConfigError

IMAGES = arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)))


def unlabelled(images: np.ndarray | tuple[np.ndarray, ...]) -> LocalData:
    return LocalData(images, np.zeros(len(images), np.int64), ("a", "b"))


@given(IMAGES)
def test_a_digest_depends_on_the_image_alone(images: np.ndarray) -> None:
    stacked, apart = unlabelled(images), unlabelled(tuple(images))
    reverse = stacked.take(np.arange(len(images))[::-1])
    assert (stacked.record_digests() == apart.record_digests()).all()
    assert (stacked.record_digests() == reverse.record_digests()[::-1]).all()


def test_a_digest_is_sha256_over_type_shape_and_pixels() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = hashlib.sha256(b"|u1 (2, 3)\n" + image.tobytes()).digest()
    assert unlabelled(image[None]).record_digests().tobytes() == expected


def test_images_of_equal_pixels_and_different_shape_differ() -> None:
    flat = np.arange(6, dtype=np.uint8)
    digests = unlabelled((flat.reshape(2, 3), flat.reshape(3, 2))).record_digests()
    assert (digests[0] != digests[1]).any()


def test_take_takes_every_column_in_the_order_asked() -> None:
    data = LocalData(
        np.arange(3, dtype=np.uint8).reshape(3, 1, 1),
        np.array([0, 1, 0]),
        ("a", "b"),
        site=np.array(["x", "y", "z"]),
        patient=np.array(["p", "q", "r"]),
        split=np.array(["train", "test", "train"]),
    )
    some = data.take([2, 1])
    assert np.asarray(some.inputs).ravel().tolist() == [2, 1]
    assert some.labels.tolist() == [0, 1]
    assert [None if column is None else column.tolist() for column in (some.site, some.patient, some.split)] == [
        ["z", "y"],
        ["r", "q"],
        ["train", "test"],
    ]


def test_nothing_may_be_taken() -> None:
    for data in (load_source("digits"), unlabelled((np.zeros((2, 2), np.uint8), np.zeros((3, 2), np.uint8)))):
        none = data.take([])
        assert len(none) == 0
        assert none.record_digests().shape == (0, 32)


@pytest.mark.parametrize(
    ("images", "what_to_do"),
    [
        (np.zeros((2, 8, 8), np.float32), r"255 \* x"),
        (np.zeros((2, 8, 8), np.bool_), "255"),
        (np.zeros((2, 8, 8), np.uint16), "full range"),
        (np.zeros((2, 8), np.uint8), r"got \(2, 8\)"),
        (np.zeros((2, 0, 8), np.uint8), r"got \(2, 0, 8\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"np.moveaxis\(x, 1, -1\)"),
        (np.zeros((2, 8, 8, 2), np.uint8), "channels last"),
        ((np.zeros((3, 8, 9), np.uint8),), r"np.moveaxis\(x, 0, -1\)"),
        ((np.zeros((8, 9), np.uint8), np.zeros(8, np.uint8)), r"got \(8,\)"),
    ],
)
def test_images_that_are_not_uint8_grey_or_colour_are_refused(
    images: np.ndarray | tuple[np.ndarray, ...], what_to_do: str
) -> None:
    with pytest.raises(ConfigError, match=what_to_do):
        unlabelled(images)


def test_columns_of_other_lengths_are_refused() -> None:
    images, labels = np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64)
    with pytest.raises(ConfigError, match="labels must have one entry for each of the 2 images"):
        LocalData(images, labels[:1], ("a",))
    with pytest.raises(ConfigError, match="patient must have one entry"):
        LocalData(images, labels, ("a",), patient=np.array(["p", "q", "r"]))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_class_list_is_refused(label: int) -> None:
    with pytest.raises(ConfigError, match="indices into the 2 classes"):
        LocalData(np.zeros((1, 8, 8), np.uint8), np.array([label]), ("a", "b"))


def test_another_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'train' or 'test' for each record, got \['dev'\]"):
        LocalData(np.zeros((1, 8, 8), np.uint8), np.array([0]), ("a",), split=np.array(["dev"]))

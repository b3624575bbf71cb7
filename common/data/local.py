"""The records of one place: images, labels, and where each record comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Images: TypeAlias = Pixels | tuple[Pixels, ...]
Labels: TypeAlias = npt.NDArray[np.int64]
Indices: TypeAlias = npt.NDArray[np.int64]
Column: TypeAlias = npt.NDArray[np.str_]

SPLITS = ("train", "test")

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, eq=False)
class LocalData:
    """Images with their labels, in a fixed order.

    >>> data = LocalData(np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), ("benign", "malignant"))
    >>> len(data.take(np.array([1])))
    1

    Attributes:
        images: uint8, (N, H, W) grey, or (N, H, W, C) with C = 1, 3 or 4 (grey, RGB, RGB and opacity); or, where
            shapes differ, a tuple of N arrays (H, W) or (H, W, C).
        labels: shape (N,), int64, indices into ``classes``.
        classes: names of the classes; a public constant, agreed by the whole federation.
        site: shape (N,), the place of each record, or None.
        patient: shape (N,), the patient of each record, or None; sensitive.
        split: shape (N,), ``"train"`` or ``"test"``, or None where nobody has divided the records yet.

    Guarantees:
        All columns are as long as the images, labels lie in [0, len(classes)), pixels are uint8.

    Raises:
        ConfigError: one of these does not hold.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    site: Column | None = None
    patient: Column | None = None
    split: Column | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        _check_lengths(self)
        _check_labels(self.labels, len(self.classes))
        _check_split(self.split)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.ArrayLike) -> LocalData:
        """The records at ``indices``, integers of shape (M,), in that order; the class list stays whole."""
        chosen = np.asarray(indices, dtype=np.int64)
        return LocalData(
            images=_take_images(self.images, chosen),
            labels=self.labels[chosen],
            classes=self.classes,
            site=None if self.site is None else self.site[chosen],
            patient=None if self.patient is None else self.patient[chosen],
            split=None if self.split is None else self.split[chosen],
        )

    def record_digests(self) -> Pixels:
        """Name each image by its content.

        Returns:
            Shape (N, 32), uint8: SHA-256 over type, shape and pixels of one image alone, so that an image has the same
            digest in every data set and order. Sensitive: it tells whether a known image is among the records.
        """
        digests = b"".join(_digest(image) for image in self.images)
        return np.frombuffer(digests, dtype=np.uint8).reshape(len(self), hashlib.sha256().digest_size)


def check_images(images: Images) -> None:
    """Refuse what is not uint8 grey or RGB with channels last.

    Raises:
        ConfigError: another type or shape, with what to do.
    """
    if isinstance(images, tuple):
        for image in images:
            _check_pixels(image, leading=())
    else:
        _check_pixels(images, leading=("N",))


def _check_pixels(array: Pixels, leading: tuple[str, ...]) -> None:
    expected = " or ".join(f"({', '.join((*leading, *size))})" for size in (("H", "W"), ("H", "W", "3")))
    size = array.shape[len(leading) :]
    if array.dtype != np.uint8:
        raise ConfigError(f"images must be uint8, got {array.dtype}; {_to_uint8(array.dtype)}")
    if len(size) == 3 and size[0] in _CHANNELS and size[2] not in _CHANNELS:
        move = f"np.moveaxis(x, {len(leading)}, -1)"
        raise ConfigError(f"images must be {expected}, got {array.shape}; move the channels last with {move}")
    if not (len(size) == 2 or (len(size) == 3 and size[2] in _CHANNELS)) or 0 in size:
        raise ConfigError(f"images must be {expected}, got {array.shape}; save single 2-D images with channels last")


def _to_uint8(dtype: np.dtype[np.uint8]) -> str:
    if dtype.kind == "f":
        return (
            "scale by the format's full range (not the data's) and cast: np.rint(255 * x).astype(np.uint8) for [0, 1]"
        )
    if dtype.kind == "b":
        return "cast them: 255 * x.astype(np.uint8)"
    return "scale by the format's full range (not the data's) to 0..255 and cast with astype(np.uint8)"


def _check_lengths(data: LocalData) -> None:
    expected = (len(data.images),)
    columns = {"labels": data.labels, "site": data.site, "patient": data.patient, "split": data.split}
    for name, column in columns.items():
        if column is not None and column.shape != expected:
            raise ConfigError(
                f"{name} must have one entry for each of the {expected[0]} images, got shape {column.shape}; "
                "save columns of the same length"
            )


def _check_labels(labels: Labels, classes: int) -> None:
    if labels.dtype != np.int64 or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise ConfigError(
            f"labels must be int64 indices into the {classes} classes, got {labels.dtype} with others among them; "
            "check the class list"
        )


def _check_split(split: Column | None) -> None:
    if split is not None and not np.isin(split, SPLITS).all():
        unknown = sorted(set(np.unique(split).tolist()) - set(SPLITS))[:3]
        raise ConfigError(f"split must be 'train' or 'test' for each record, got {unknown}; rename these values")


def _take_images(images: Images, indices: Indices) -> Images:
    if isinstance(images, tuple):
        return tuple(images[index] for index in indices)
    return images[indices]


def _digest(image: Pixels) -> bytes:
    header = f"{image.dtype.str} {image.shape}\n".encode()
    return hashlib.sha256(header + image.tobytes()).digest()

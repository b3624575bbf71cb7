"""What a record can be: an image, a text, words, a question on a text, a sound, a row of a table."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Images: TypeAlias = Pixels | tuple[Pixels, ...]
Modality = Literal["image", "text", "words", "pair", "audio", "table"]
TaskName = Literal["classification", "multilabel", "tokens", "spans"]
Indices: TypeAlias = npt.NDArray[np.int64]


class Pair(NamedTuple):
    """A question and the text that it is about (or any two texts, in order)."""

    question: str
    context: str


class Clip(NamedTuple):
    """A sound, mono.

    Attributes:
        samples: int16, shape (S,).
        rate: samples a second.
    """

    samples: npt.NDArray[np.int16]
    rate: int


Inputs: TypeAlias = Any
"""N records of one modality, which ``check_inputs`` holds them to:

- ``image``: uint8, (N, H, W) or (N, H, W, C) with C = 1, 3 or 4 (grey, RGB, RGB and opacity), or a tuple of N images;
- ``text``: N strings; ``words``: N tuples of words; ``pair``: N ``Pair``; ``audio``: N ``Clip``;
- ``table``: float64, (N, F), NaN where a value is missing.
"""

_CHANNELS = (1, 3, 4)


def check_inputs(inputs: Inputs, modality: Modality) -> None:
    """Refuse records that are not of their modality.

    Raises:
        ConfigError: another type or shape, with what to do.
    """
    if modality == "image":
        check_images(inputs)
    elif modality == "table":
        _check_table(inputs)
    elif not isinstance(inputs, tuple) or not all(map(_IS[modality], inputs)):
        raise ConfigError(
            f"records of modality {modality!r} must be {_NAMED[modality]}, got others; look at the loader"
        )


def take_inputs(inputs: Inputs, indices: Indices) -> Inputs:
    """The records at ``indices``, in that order."""
    if isinstance(inputs, tuple):
        return tuple(inputs[index] for index in indices)
    return inputs[indices]


def record_digest(record: Any) -> bytes:
    """SHA-256 over kind and content of one record alone; an image's depends on type, shape and pixels."""
    if isinstance(record, Clip):
        return hashlib.sha256(f"clip {record.rate}\n".encode() + record.samples.astype("<i2").tobytes()).digest()
    if isinstance(record, str):
        return hashlib.sha256(b"text\n" + record.encode()).digest()
    if isinstance(record, tuple):
        kind = b"pair" if isinstance(record, Pair) else b"words"
        parts = [part.encode() for part in record]
        return hashlib.sha256(kind + b"\n" + b"".join(b"%d:" % len(part) + part for part in parts)).digest()
    header = f"{record.dtype.str} {record.shape}\n".encode()
    return hashlib.sha256(header + record.tobytes()).digest()


def check_images(images: Any) -> None:
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


def _check_table(rows: Any) -> None:
    fine = isinstance(rows, np.ndarray) and rows.dtype == np.float64 and rows.ndim == 2 and rows.shape[1] > 0
    if not fine or bool(np.isinf(rows).any()):
        raise ConfigError(
            "a table must be float64 (N, F), NaN where a value is missing, got something else; convert it"
        )


def _is_clip(record: Any) -> bool:
    return (
        isinstance(record, Clip) and record.samples.dtype == np.int16 and record.samples.ndim == 1 and record.rate > 0
    )


def _is_words(record: Any) -> bool:
    return type(record) is tuple and all(isinstance(word, str) for word in record)


_IS = {
    "text": lambda record: isinstance(record, str),
    "words": _is_words,
    "pair": lambda record: isinstance(record, Pair),
    "audio": _is_clip,
}
_NAMED = {
    "text": "a tuple of strings",
    "words": "a tuple of tuples of words",
    "pair": "a tuple of pairs of texts",
    "audio": "a tuple of int16 mono clips with their rates",
}

"""Class names: from what a file says to indices into a public list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.local import Column, Labels, LocalData
from common.errors import ConfigError
from common.printable import is_printable


def index_labels(raw: npt.NDArray[Any], declared: tuple[str, ...] | None = None) -> tuple[Labels, tuple[str, ...]]:
    """Turn labels as they are stored into indices and a class list.

    A class list is a public constant of the federation. Where none is declared it is taken from all records at hand,
    which is right for a simulation, whose data are all in one place, and would be a release for one real node.

    >>> index_labels(np.array([10, 2, 10]))
    (array([1, 0, 1]), ('2', '10'))

    Args:
        raw: shape (N,) or (N, 1): integers >= 0 or non-empty strings.
        declared: the class list, in order; then ``raw`` holds its names, or indices into it.

    Returns:
        Shape (N,), int64, and the names: as declared, else sorted (by number where all are numbers).

    Raises:
        ConfigError: labels are neither, are missing (NaN, negative, empty), or are not in ``declared``.
    """
    flat = raw[:, 0] if raw.ndim == 2 and raw.shape[1] == 1 else raw
    if flat.ndim != 1:
        raise ConfigError(
            f"labels must have shape (N,), or (N, K) of 0 and 1 for several classes a record, got {raw.shape}; for "
            "one-hot labels save labels.argmax(axis=1)"
        )
    if flat.dtype.kind in "iub":
        return _index_integers(flat.astype(np.int64), declared)
    return _index_names(text_column("labels", flat), declared)


def index_several(
    names: Sequence[Sequence[str]], declared: tuple[str, ...] | None = None
) -> tuple[Labels, tuple[str, ...]]:
    """Turn the class names of each record into 0 and 1 for each class.

    >>> index_several([["b"], [], ["a", "b"]])
    (array([[0, 1],
           [0, 0],
           [1, 1]]), ('a', 'b'))

    Args:
        names: of each record, any number of them.
        declared: the class list, in order; else the sorted names.

    Returns:
        Shape (N, K), int64, and the names.

    Raises:
        ConfigError: a name is not in ``declared``, or no record has any.
    """
    flat = [name for several in names for name in several]
    if not flat:
        raise ConfigError("labels must name a class in at least one record, got none at all; check the column")
    indices, classes = _index_names(np.array(flat), declared)
    labels = np.zeros((len(names), len(classes)), dtype=np.int64)
    labels[np.repeat(np.arange(len(names)), [len(several) for several in names]), indices] = 1
    return labels, classes


def index_indicators(raw: npt.NDArray[Any], declared: tuple[str, ...] | None = None) -> tuple[Labels, tuple[str, ...]]:
    """Several classes a record, as 0 and 1 for each class.

    Args:
        raw: shape (N, K), whole numbers.
        declared: K names; else 0, 1, … are the names.

    Raises:
        ConfigError: another number of names.
    """
    classes = declared or tuple(str(index) for index in range(raw.shape[1]))
    if len(classes) != raw.shape[1]:
        raise ConfigError(
            f"classes must name the {raw.shape[1]} columns of labels, got {len(classes)} names; correct either"
        )
    return raw.astype(np.int64), classes


def text_column(name: str, raw: npt.NDArray[Any]) -> Column:
    """Read a column of names or whole numbers as text.

    Raises:
        ConfigError: another type, or an empty entry.
    """
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.dtype.kind == "f":
        came = "NaN among them" if np.isnan(raw).any() else str(raw.dtype)
        raise ConfigError(f"{name} must be whole numbers or strings, got {came}; drop those records or convert them")
    if raw.dtype.kind == "S":
        raw = np.char.decode(raw, "utf-8", "replace")
    if raw.dtype.kind not in "iubU":
        raise ConfigError(f"{name} must be whole numbers or strings, got {raw.dtype}; convert them and save again")
    column = raw.astype(np.str_)
    if (column == "").any():
        raise ConfigError(f"{name} must be given for each record, got {int((column == '').sum())} empty; fill them in")
    return column


def require_every_class(data: LocalData) -> None:
    """Refuse data, taken together, from which some class could never be learnt.

    Raises:
        ConfigError: no record, fewer than two classes, or one without an example.
    """
    if len(data) == 0:
        raise ConfigError(
            "expected at least two records of different classes, got none; check that this is the right data"
        )
    if len(data.classes) < 2 and data.task != "multilabel":
        raise ConfigError(
            f"expected at least two classes to tell apart, got only {data.classes[0]!r}; add another class"
        )
    counts = _examples(data)
    missing = [name for name, count in zip(data.classes, counts, strict=True) if count == 0]
    if missing:
        raise ConfigError(
            f"class with no example in the whole federation: {', '.join(missing)}; "
            "add examples or take it off the class list"
        )


def require_printable_names(data: LocalData) -> None:
    """Refuse names that no configuration, report or terminal can hold.

    Raises:
        ConfigError: a class or a site whose name is not UTF-8 or has control characters.
    """
    sites = [] if data.site is None else np.unique(data.site).tolist()
    for kind, names in (("class", data.classes), ("site", sites)):
        for name in names:
            if not is_printable(name):
                raise ConfigError(
                    f"the name of a {kind} must be text in UTF-8 without control characters, got {ascii(name)[:80]}; "
                    "rename it"
                )


def _examples(data: LocalData) -> Labels:
    """How many examples each class has, shape (K,)."""
    if data.task == "spans":
        return np.ones(len(data.classes), dtype=np.int64)
    if data.task == "multilabel":
        return np.asarray(data.labels.sum(axis=0))
    return np.bincount(data.labels[data.labels >= 0], minlength=len(data.classes))


def _index_integers(raw: Labels, declared: tuple[str, ...] | None) -> tuple[Labels, tuple[str, ...]]:
    if len(raw) and raw.min() < 0:
        raise ConfigError(
            f"labels must be 0 or more, got {raw.min()}, which often means 'not labelled'; "
            "drop those records or use names"
        )
    if declared is None:
        values, labels = np.unique(raw, return_inverse=True)
        return labels.astype(np.int64), tuple(str(value) for value in values)
    if len(raw) and raw.max() >= len(declared):
        raise ConfigError(
            f"labels must index the {len(declared)} declared classes from 0, got {raw.max()}; "
            "correct the labels or the classes"
        )
    return raw, declared


def _index_names(raw: Column, declared: tuple[str, ...] | None) -> tuple[Labels, tuple[str, ...]]:
    values, inverse = np.unique(raw, return_inverse=True)
    names = [str(value) for value in values]
    classes = tuple(sorted(names, key=_by_number(names))) if declared is None else declared
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ConfigError(
            f"labels must be among the declared classes {', '.join(classes)}, got {', '.join(unknown[:3])}; "
            "correct the labels or the classes"
        )
    return np.array([classes.index(name) for name in names], dtype=np.int64)[inverse], classes


def _by_number(names: list[str]) -> Any:
    """A sort key: numbers where all names are numbers, so that class 10 follows class 9."""
    if all(name.isascii() and name.isdigit() for name in names):
        return lambda name: (int(name), name)
    return None

"""Rows of numbers with a label: one file, or one for each hospital."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.fields import ORIGINS, Fields, declared_classes, read_origins
from common.data.labels import index_labels
from common.data.local import Labels, LocalData
from common.data.rows import is_missing
from common.errors import ConfigError

Codes = Mapping[str, tuple[str, ...]]
_MISSING = ("na", "nan")
_MOST_CLASSES = 100


def read_table(fields: Fields) -> LocalData:
    """Read every column but the label and the origins as a number; an empty value (NA, NaN) is NaN.

    Keys: ``label``, the column to predict; ``threshold``, above which a numeric label counts as positive;
    ``columns``, the ones to use (commas between), instead of all; ``codes``, for columns of words, the words that
    become 0, 1, … (``sex=female,male; thal=normal,fixed``).

    Raises:
        ConfigError: no label, a value that is no number, columns that are not there.
    """
    labels, classes = _read_label(fields)
    names = _feature_names(fields)
    rows = table_rows(fields, names, parse_codes(fields.keys.get("codes", "")))
    return LocalData(rows, labels, classes, modality="table", columns=names, **read_origins(fields))


def table_rows(fields: Fields, names: tuple[str, ...], codes: Codes) -> npt.NDArray[np.float64]:
    """The columns ``names`` as float64, shape (N, F), NaN where a value is missing.

    Raises:
        ConfigError: a column is missing or holds something else than numbers.
    """
    unknown = [name for name in codes if name not in names]
    if unknown:
        raise ConfigError(
            f"codes must name columns in use ({', '.join(names)}), got {unknown[0]!r}; correct or remove it"
        )
    lacking = [name for name in names if name in fields.rows.absent]
    if lacking:
        raise ConfigError(
            f"all files of a table must have the same columns, but {fields.rows.absent[lacking[0]]} has no column "
            f'{lacking[0]!r}; add it there, empty, or leave it out by columns = "…" in [data.keys]'
        )
    columns = [_numbers(Fields(fields.rows, {"columns": name}), codes.get(name, ())) for name in names]
    return np.stack(columns, axis=1)


def parse_codes(text: str) -> dict[str, tuple[str, ...]]:
    """Read ``column=word,word; column=word,word``.

    >>> parse_codes("sex=female,male; thal=normal,fixed")
    {'sex': ('female', 'male'), 'thal': ('normal', 'fixed')}

    Raises:
        ConfigError: another form, or a word twice.
    """
    codes = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, words = part.partition("=")
        listed = tuple(word.strip() for word in words.split(","))
        if "" in listed or len(set(listed)) != len(listed):
            raise ConfigError(f'codes must be like "sex=female,male; thal=normal,fixed", got {part!r}; correct it')
        codes[name.strip()] = listed
    return codes


def _read_label(fields: Fields) -> tuple[Labels, tuple[str, ...]]:
    values = fields.read("label")
    fields.refuse("label", [_is_absent(value) for value in values], "a class name or a number for each record")
    numbers = [_number(value) for value in values]
    if "threshold" in fields.keys:
        return _binary(fields, numbers)
    if any(number is None or np.isinf(number) for number in numbers):
        return index_labels(np.array([str(value).strip() for value in values]), declared_classes(fields))
    labels = np.array([_plain(number) for number in numbers if number is not None])
    if len(np.unique(labels)) > _MOST_CLASSES:
        raise ConfigError(
            f"{fields.name('label')} must tell at most {_MOST_CLASSES} classes apart, got {len(np.unique(labels))} "
            'different numbers; if it is a measured value, divide it by threshold = "…" in [data.keys]'
        )
    return index_labels(labels, declared_classes(fields))


def _binary(fields: Fields, numbers: list[float | None]) -> tuple[Labels, tuple[str, ...]]:
    name, text = fields.name("label"), fields.keys["threshold"]
    threshold = _number(text)
    if threshold is None or not np.isfinite(threshold):
        raise ConfigError(f'threshold must be a number in quotes, such as "0", got {text!r}; correct it')
    fields.refuse(
        "label", [number is None for number in numbers], "a number for each record, to compare with threshold"
    )
    labels = np.array([number is not None and number > threshold for number in numbers], dtype=np.int64)
    return labels, (f"{name} <= {_plain(threshold)}", f"{name} > {_plain(threshold)}")


def _feature_names(fields: Fields) -> tuple[str, ...]:
    known = list(fields.rows.columns)
    if "columns" in fields.keys:
        names = [name.strip() for name in fields.keys["columns"].split(",")]
        unknown = [name for name in names if name not in known]
        if unknown or len(set(names)) != len(names):
            raise ConfigError(
                f"columns must name columns of the table, each once, got {', '.join(unknown or names)}; "
                f"the table has {', '.join(known)}"
            )
        return tuple(names)
    taken = {fields.name(role) for role in ("label", *ORIGINS)}
    names = [name for name in known if name not in taken]
    if not names:
        raise ConfigError("a table must have columns beside the label, got none; check the file")
    return tuple(names)


def _numbers(fields: Fields, words: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """One column, shape (N,)."""
    values = fields.read("columns")
    if words:
        coded = [np.nan if _is_absent(value) else _code(value, words) for value in values]
        fields.refuse("columns", [value is None for value in coded], f"one of {', '.join(words)}")
        return np.array(coded, dtype=np.float64)
    numbers = [np.nan if _is_absent(value) else _number(value) for value in values]
    wrong = [number is None or np.isinf(number) for number in numbers]
    name = fields.name("columns")
    fields.refuse(
        "columns",
        wrong,
        f'numbers (with a point, empty where unknown; leave the column out by columns = "…" in [data.keys], or say '
        f'what its words stand for by codes = "{name}=first,second")',
    )
    return np.array(numbers, dtype=np.float64)


def _code(value: Any, words: tuple[str, ...]) -> int | None:
    word = str(value).strip()
    return words.index(word) if word in words else None


def _is_absent(value: Any) -> bool:
    return is_missing(value) or value != value or (isinstance(value, str) and value.strip().lower() in _MISSING)


def _number(value: Any) -> float | None:
    if isinstance(value, str) and "_" in value:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _plain(number: float) -> str:
    """A number as people write it: 3 rather than 3.0."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))

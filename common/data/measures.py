"""Sizes, lengths and missing values, by modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.data.local import LocalData

Measures = tuple[dict[str, str], list[str]]

_SHORTEST_S = 0.1


def measure(data: LocalData) -> Measures:
    """Measure the records.

    Returns:
        Name -> value, in words; and remarks on what would mislead.
    """
    by_modality = {
        "image": _images,
        "text": _texts,
        "words": _words,
        "pair": _pairs,
        "audio": _sounds,
        "table": _table,
    }
    return by_modality[data.modality](data)


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "file"), counted(2000, "file")
    ('1 file', '2,000 files')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _images(data: LocalData) -> Measures:
    shapes = [image.shape for image in data.inputs]
    kinds = Counter("grey" if len(shape) == 2 or shape[2] == 1 else "colour" for shape in shapes)
    blank = sum(int(image.min() == image.max()) for image in data.inputs)
    rows = {
        "height": _spread([shape[0] for shape in shapes], "px"),
        "width": _spread([shape[1] for shape in shapes], "px"),
        "colours": ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()),
    }
    remarks = [f"{counted(blank, 'image')} of one single colour; look at them"] if blank else []
    return rows, remarks


def _texts(data: LocalData) -> Measures:
    return {"text length": _spread([len(text.split()) for text in data.inputs], "words")}, []


def _pairs(data: LocalData) -> Measures:
    rows = {
        "question length": _spread([len(pair.question.split()) for pair in data.inputs], "words"),
        "context length": _spread([len(pair.context.split()) for pair in data.inputs], "words"),
    }
    if data.task == "spans":
        answers = data.labels[data.labels[:, 0] >= 0]
        rows["answer length"] = _spread((answers[:, 1] - answers[:, 0]).tolist(), "characters")
    return rows, []


def _words(data: LocalData) -> Measures:
    rows = {"sentence length": _spread([len(words) for words in data.inputs], "words")}
    loose = _loose_tags(data)
    text = f"{counted(loose, 'tag')} I-… without B-… or I-… of the same kind before it; an entity should begin with B-"
    return rows, [text] if loose else []


def _loose_tags(data: LocalData) -> int:
    """How many I- tags begin an entity, in data that also have B- tags."""
    if not any(name.startswith("B-") for name in data.classes):
        return 0
    kinds = [name[2:] if name[:2] in ("B-", "I-") else "" for name in data.classes]
    of_tag = np.array([*(sorted(set(kinds)).index(kind) for kind in kinds), -1])
    inside = np.array([*(name.startswith("I-") for name in data.classes), False])
    before = np.pad(of_tag[data.labels][:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return int((inside[data.labels] & (of_tag[data.labels] != before)).sum())


def _sounds(data: LocalData) -> Measures:
    seconds = [len(clip.samples) / clip.rate for clip in data.inputs]
    rates = Counter(clip.rate for clip in data.inputs)
    rows = {
        "length": _spread(seconds, "s"),
        "sampling rate": ", ".join(f"{rate:,} Hz ({count:,})" for rate, count in rates.most_common(5)),
    }
    short = sum(length < _SHORTEST_S for length in seconds)
    silent = sum(int(not clip.samples.any()) for clip in data.inputs)
    remarks = [f"{counted(short, 'sound')} shorter than {_SHORTEST_S} s; listen to them"] if short else []
    return rows, [
        *remarks,
        *([f"{counted(silent, 'sound')} with nothing but silence; listen to them"] if silent else []),
    ]


def _table(data: LocalData) -> Measures:
    missing = np.isnan(data.inputs)
    rows = {"columns": str(len(data.columns))}
    for name, column in zip(data.columns, missing.T, strict=True):
        if column.any():
            rows[f"missing in {name}"] = f"{int(column.sum()):,} of {len(data):,}{_worst_site(data, column)}"
    empty = [name for name, column in zip(data.columns, missing.T, strict=True) if column.all()]
    known = [values[~np.isnan(values)] for values in data.inputs.T]
    constant = [name for name, values in zip(data.columns, known, strict=True) if len(values) and np.ptp(values) == 0]
    remarks = [f"no value at all in {', '.join(empty)}; leave out by columns in [data.keys]"] if empty else []
    return rows, [*remarks, *([f"one and the same value throughout in {', '.join(constant)}"] if constant else [])]


def _worst_site(data: LocalData, missing: npt.NDArray[np.bool_]) -> str:
    """The sites that lack a column altogether."""
    if data.site is None:
        return ""
    whole = [str(name) for name in np.unique(data.site) if missing[data.site == name].all()]
    return f" (all of {', '.join(whole)})" if whole else ""


def _spread(values: Sequence[float], unit: str) -> str:
    """Smallest, median and largest value."""
    if not values:
        return "none"
    low, middle, high = (float(np.quantile(values, part)) for part in (0, 0.5, 1))
    if low == high:
        return f"{low:,.4g} {unit}"
    return f"{low:,.4g} to {high:,.4g} {unit}, half of them up to {middle:,.4g}"

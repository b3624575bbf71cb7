"""What a data set holds, and what a run on it would stumble over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from common.data.decoding import Unreadable
from common.data.doubles import NO_DOUBLES, Doubles, find_doubles
from common.data.holdout import hold_out
from common.data.local import Column, Labels, LocalData
from common.data.measures import counted, measure
from common.data.sources import NO_KEYS, load_source
from common.errors import ConfigError

FEW = 10  # examples of a class, below which neither learning nor measuring means much
_SOME = 5

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that a person should know before a run.

    Attributes:
        level: ``error``, a run would be refused; ``warning``, it would mislead; ``note``, to choose settings by.
        text: what, and what to do.
    """

    level: Level
    text: str


@dataclass(frozen=True)
class Inspection:
    """What was found; sensitive, for the data's own people.

    Attributes:
        source: as it was given.
        modality: of the records; None where nothing could be read.
        task: what the labels say.
        records: how many could be read.
        classes: examples of each class (for tags: words; for answers: questions with and without).
        splits: records of each part, empty where nobody has divided them.
        sites: of each site, the examples of each class.
        patients: how many, and the most records of one; None without a patient column.
        groups: how many groups the hold-out keeps together; None without them.
        unreadable: every file that could not be read.
        doubles: records that occur more than once.
        measures: sizes, lengths, missing values: name -> text.
        findings: worst first.
    """

    source: str
    modality: str | None = None
    task: str | None = None
    records: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    patients: Mapping[str, int] | None = None
    groups: int | None = None
    unreadable: tuple[Unreadable, ...] = ()
    doubles: Doubles = NO_DOUBLES
    measures: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def fit(self) -> bool:
        """Whether a run would start."""
        return not any(finding.level == "error" for finding in self.findings)


def inspect_source(
    source: str, keys: Mapping[str, str] = NO_KEYS, root: Path = Path(), test_fraction: float = 0.2, seed: int = 0
) -> Inspection:
    """Read every record as a run would, leaving out and listing the files that cannot be read.

    Args:
        source: as ``data.source``.
        keys: as ``data.keys``.
        root: what a relative path is relative to.
        test_fraction: of the hold-out that is tried where there is no split.
        seed: of that hold-out.

    Raises:
        ConfigError: the source cannot be read at all.
    """
    unreadable: list[Unreadable] = []
    try:
        data = load_source(source, keys, root, unreadable)
    except ConfigError as error:
        if not unreadable:
            raise
        findings = (_unreadable(unreadable), Finding("error", f"without the files that cannot be read: {error}"))
        return Inspection(source, unreadable=tuple(unreadable), findings=findings)
    return _inspect(source, data, tuple(unreadable), test_fraction, seed)


def _inspect(
    source: str, data: LocalData, unreadable: tuple[Unreadable, ...], fraction: float, seed: int
) -> Inspection:
    doubles = find_doubles(data)
    measures, remarks = measure(data)
    findings = [
        *([_unreadable(unreadable)] if unreadable else []),
        *_division(data, fraction, seed),
        *_classes(data),
        *_places(data),
        *_doubles(data, doubles),
        *(Finding("warning", text) for text in remarks),
        *_privacy(data),
    ]
    return Inspection(
        source=source,
        modality=data.modality,
        task=data.task,
        records=len(data),
        classes=_named_counts(data),
        splits=_counts(data.split),
        sites={} if data.site is None else {name: _named_counts(part) for name, part in _parts(data, data.site)},
        patients=None if data.patient is None else _patients(data.patient),
        groups=None if data.group is None else len(np.unique(data.group)),
        unreadable=unreadable,
        doubles=doubles,
        measures=measures,
        findings=tuple(sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))),
    )


def _examples(data: LocalData) -> Labels:
    """Examples of each entry of ``_names``, shape (K,)."""
    if data.task == "multilabel":
        return np.asarray(data.labels.sum(axis=0))
    flat = data.labels[data.labels >= 0] if data.task == "tokens" else data.strata
    return np.bincount(flat, minlength=len(_names(data)))


def _names(data: LocalData) -> tuple[str, ...]:
    return data.strata_names if data.task == "spans" else data.classes


def _named_counts(data: LocalData) -> dict[str, int]:
    return dict(zip(_names(data), _examples(data).tolist(), strict=True))


def _counts(column: Column | None) -> dict[str, int]:
    if column is None:
        return {}
    names, counts = np.unique(column, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _parts(data: LocalData, column: Column) -> list[tuple[str, LocalData]]:
    return [(str(name), data.take(np.flatnonzero(column == name))) for name in np.unique(column)]


def _patients(patient: Column) -> dict[str, int]:
    counts = _counts(patient).values()
    return {"count": len(counts), "most_records": max(counts)}


def _unreadable(files: list[Unreadable] | tuple[Unreadable, ...]) -> Finding:
    return Finding("error", f"{counted(len(files), 'file')} cannot be read (listed above); repair or remove them")


def _division(data: LocalData, fraction: float, seed: int) -> list[Finding]:
    """What the hold-out says, and classes that the test would not see."""
    try:
        _, test = hold_out(data, fraction, seed)
    except ConfigError as error:
        return [Finding("error", str(error))]
    counts = _named_counts(data.take(test))
    absent = [name for name, count in counts.items() if count == 0 and data.task != "spans"]
    if not absent:
        return []
    how = "" if data.split is not None else f" (drawn with data.test_fraction = {fraction})"
    return [Finding("warning", f"no test record{how} of {_some(absent)}: how well it is told cannot be measured")]


def _classes(data: LocalData) -> list[Finding]:
    few = [f"{name} ({count})" for name, count in _named_counts(data).items() if 0 < count < FEW]
    return (
        [Finding("warning", f"fewer than {FEW} examples of {_some(few)}: too few to learn from; add some")]
        if few
        else []
    )


def _places(data: LocalData) -> list[Finding]:
    if data.site is None:
        return []
    found = []
    if data.task != "spans":
        for name, part in _parts(data, data.site):
            absent = [label for label, count in _named_counts(part).items() if count == 0]
            if absent:
                found.append(Finding("warning", f"site {name} has no example of {_some(absent)}"))
    if data.patient is not None:
        pairs = np.unique(np.stack([data.patient, data.site]), axis=1)
        moved = len(pairs[0]) - len(np.unique(pairs[0]))
        if moved:
            text = f'{counted(moved, "patient")} at several sites: data.partition = "site" would be refused'
            found.append(Finding("warning", f"{text}; if numbers coincide by chance, put the site into them"))
    return found


def _doubles(data: LocalData, doubles: Doubles) -> list[Finding]:
    found = []
    if doubles.across_splits:
        text = f"{counted(doubles.across_splits, 'test record')} also in train: accuracy would come out too high"
        found.append(Finding("warning", f"{text}; remove them from one"))
    if doubles.other_labels:
        text = f"{counted(doubles.other_labels, 'record')} there before with another label"
        found.append(Finding("warning", f"{text}; decide which is right"))
    if doubles.records and data.patient is None:
        text = f"{counted(doubles.records, 'repetition')} of a record: whoever is in the data twice is protected less"
        found.append(Finding("warning", f"{text}; remove them, or name the patients"))
    if doubles.records and data.split is None and data.patient is None and data.group is None:
        found.append(Finding("note", "a drawn hold-out may put two copies of a record on both sides"))
    return found


def _privacy(data: LocalData) -> list[Finding]:
    train = data if data.split is None else data.take(np.flatnonzero(data.split == "train"))
    found = []
    if len(train):
        sizes = [len(train)] if train.site is None else list(_counts(train.site).values())
        where = "with all of them at one node" if train.site is None else "for the largest site"
        text = f"privacy.delta must be at most 1 / (training records of a node): {1 / max(sizes):.1e} {where}"
        found.append(Finding("note", f"{text} ({max(sizes):,})"))
    if data.patient is None:
        found.append(
            Finding("note", 'no patient column: privacy would protect single records (privacy.unit = "record")')
        )
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SOME]) + (f" and {len(names) - _SOME} more" if len(names) > _SOME else "")

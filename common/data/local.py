"""The records of one place: inputs, labels, and where each record comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from common.data.records import (
    Images,
    Indices,
    Inputs,
    Modality,
    Pixels,
    TaskName,
    check_images,
    check_inputs,
    record_digest,
    take_inputs,
)
from common.errors import ConfigError

Labels: TypeAlias = npt.NDArray[np.int64]
Column: TypeAlias = npt.NDArray[np.str_]

SPLITS = ("train", "test")

__all__ = ["SPLITS", "Column", "Images", "Indices", "Labels", "LocalData", "Pixels", "TaskName", "check_images"]


@dataclass(frozen=True, eq=False)
class LocalData:
    """Records with their labels, in a fixed order.

    >>> data = LocalData(np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), ("benign", "malignant"))
    >>> len(data.take(np.array([1])))
    1

    Attributes:
        inputs: N records of one modality, see ``records.Inputs``.
        labels: by task, int64: ``classification`` (N,), indices into ``classes``; ``multilabel`` (N, K) of 0 and 1;
            ``tokens`` (N, W), an index into ``classes`` (the tags) for each word, -1 after the last; ``spans`` (N, 2),
            the answer's first character in the context and the one after its last, or (-1, -1) where there is none.
        classes: names of the classes; a public constant, agreed by the whole federation.
        site: shape (N,), the place of each record, or None.
        patient: shape (N,), the patient of each record, or None; sensitive.
        split: shape (N,), ``"train"`` or ``"test"``, or None where nobody has divided the records yet.
        group: shape (N,), records that a hold-out keeps together (the article that questions are about), or None;
            it makes no privacy promise.
        file: shape (N,), the path of each record below the data source, or None where records are no files of their
            own; sensitive.
        modality: of the inputs.
        task: what the labels say.
        columns: names of a table's columns, in order; empty for other modalities.

    Guarantees:
        All columns are as long as the inputs, labels lie in [0, len(classes)), inputs are of their modality.

    Raises:
        ConfigError: one of these does not hold.
    """

    inputs: Inputs
    labels: Labels
    classes: tuple[str, ...]
    site: Column | None = None
    patient: Column | None = None
    split: Column | None = None
    modality: Modality = "image"
    task: TaskName = "classification"
    columns: tuple[str, ...] = ()
    group: Column | None = None
    file: Column | None = None

    def __post_init__(self) -> None:
        check_inputs(self.inputs, self.modality)
        _check_lengths(self)
        _check_labels(self)
        _check_split(self.split)

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: npt.ArrayLike) -> LocalData:
        """The records at ``indices``, integers of shape (M,), in that order; the class list stays whole."""
        chosen = np.asarray(indices, dtype=np.int64)
        return LocalData(
            inputs=take_inputs(self.inputs, chosen),
            labels=self.labels[chosen],
            classes=self.classes,
            site=None if self.site is None else self.site[chosen],
            patient=None if self.patient is None else self.patient[chosen],
            split=None if self.split is None else self.split[chosen],
            modality=self.modality,
            task=self.task,
            columns=self.columns,
            group=None if self.group is None else self.group[chosen],
            file=None if self.file is None else self.file[chosen],
        )

    def record_digests(self) -> Pixels:
        """Name each record by its content.

        Returns:
            Shape (N, 32), uint8: SHA-256 over one record's input alone, so that a record has the same digest in every
            data set and order. Sensitive: it tells whether a known record is among them.
        """
        whole = bytearray()
        for record in self.inputs:
            whole += record_digest(record)
        digests = np.frombuffer(whole, dtype=np.uint8).reshape(len(self), hashlib.sha256().digest_size)
        digests.flags.writeable = False
        return digests

    @property
    def strata(self) -> Labels:
        """What splits and partitions are balanced by, shape (N,), indices into ``strata_names``.

        The class; for several labels a record, its first one; for tags, whether a word has one; for spans, whether
        there is an answer.
        """
        if self.task == "tokens":
            outside = self.classes.index("O") if "O" in self.classes else -1
            return np.asarray(((self.labels >= 0) & (self.labels != outside)).any(axis=1), dtype=np.int64)
        if self.task == "multilabel":
            return np.where(self.labels.any(axis=1), self.labels.argmax(axis=1), len(self.classes)).astype(np.int64)
        if self.task == "spans":
            return (self.labels[:, 0] >= 0).astype(np.int64)
        return self.labels

    @property
    def strata_names(self) -> tuple[str, ...]:
        """Names of the strata, in order."""
        if self.task == "tokens":
            return ("no entity", "an entity")
        if self.task == "spans":
            return ("no answer", "an answer")
        return (*self.classes, "none of them") if self.task == "multilabel" else self.classes


def _check_lengths(data: LocalData) -> None:
    expected = len(data.inputs)
    columns = {"labels": data.labels, "site": data.site, "patient": data.patient, "split": data.split}
    columns |= {"group": data.group, "file": data.file}
    named = "images" if data.modality == "image" else "records"
    for name, column in columns.items():
        flat = name != "labels" or data.task == "classification"
        if column is not None and (column.shape[:1] != (expected,) or (flat and column.ndim != 1)):
            raise ConfigError(
                f"{name} must have one entry for each of the {expected} {named}, got shape {column.shape}; "
                "save columns of the same length"
            )


def _check_labels(data: LocalData) -> None:
    labels, classes = data.labels, len(data.classes)
    lowest, top = {
        "classification": (0, classes - 1),
        "multilabel": (0, 1),
        "tokens": (-1, classes - 1),
        "spans": (-1, np.iinfo(np.int64).max),
    }[data.task]
    fine = labels.dtype == np.int64 and _is_shaped(data)
    if not fine or (labels.size and not lowest <= labels.min() <= labels.max() <= top):
        expected = {
            "classification": f"int64 indices into the {classes} classes",
            "multilabel": f"int64 of 0 and 1, shape (N, {classes})",
            "tokens": f"int64 indices into the {classes} tags for each word, -1 after the last",
            "spans": "int64 pairs of character positions, shape (N, 2)",
        }[data.task]
        raise ConfigError(f"labels must be {expected}, got {labels.dtype} with others among them; check the class list")


def _is_shaped(data: LocalData) -> bool:
    if data.task == "tokens":
        lengths = np.array([len(words) for words in data.inputs], dtype=np.int64)
        tagged = data.labels.ndim == 2 and data.labels.shape[1] >= lengths.max(initial=0)
        return tagged and data.modality == "words" and bool(((data.labels >= 0).sum(axis=1) == lengths).all())
    shapes = {"classification": (len(data.labels),), "multilabel": (len(data.labels), len(data.classes))}
    return data.labels.shape == shapes.get(data.task, (len(data.labels), 2))


def _check_split(split: Column | None) -> None:
    if split is not None and not np.isin(split, SPLITS).all():
        unknown = sorted(set(np.unique(split).tolist()) - set(SPLITS))[:3]
        raise ConfigError(f"split must be 'train' or 'test' for each record, got {unknown}; rename these values")

"""Which records are kept apart for the test."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from common.data.draws import Purpose, generator
from common.data.local import Column, Indices, Labels, LocalData
from common.errors import ConfigError


def hold_out(data: LocalData, fraction: float, seed: int, key: str = "data.test_fraction") -> tuple[Indices, Indices]:
    """Divide records into training and test records.

    A ``split`` column decides where there is one. Otherwise the test records are drawn: class by class in proportion
    (largest remainders), and patient by patient (group by group) where there is a ``patient`` (``group``) column.

    Args:
        data: N records.
        fraction: of the test records, in (0, 1); ignored where ``split`` decides.
        seed: >= 0; the same seed gives the same division.
        key: of the configuration that the fraction is from, for errors.

    Returns:
        (train, test): sorted indices, int64, disjoint, together 0..N-1.

    Guarantees:
        Neither is empty; every class that occurs keeps a training record; no patient and no group is in both.
        Without patients, groups and split there are exactly ceil(fraction * N) test records; with them, about as many.

    Raises:
        ConfigError: this cannot be had.
    """
    if data.split is not None:
        train, test = _as_declared(data.split)
    elif not 0 < fraction < 1:
        raise ConfigError(f"{key} must lie between 0 and 1, got {fraction}; 0.2 holds out a fifth")
    else:
        rng = generator(seed, Purpose.HOLD_OUT)
        strata = data.strata
        wanted = _test_counts(np.bincount(strata, minlength=len(data.strata_names)), fraction, key)
        chosen = _draw_records(strata, wanted, rng)
        together = _kept_together(data)
        if together is not None:
            chosen = _draw_patients(strata, together, wanted, rng)
        train, test = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    _check(data, train, test, key)
    return train, test


def _kept_together(data: LocalData) -> Column | None:
    """Patient or group of each record; with both, everything that either links, shape (N,)."""
    if data.patient is None or data.group is None:
        return data.group if data.patient is None else data.patient
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, patients = np.unique(data.patient, return_inverse=True)
    others, groups = np.unique(data.group, return_inverse=True)
    size = len(names) + len(others)
    links = coo_array((np.ones(len(data)), (patients, groups + len(names))), shape=(size, size))
    _, linked = connected_components(links, directed=False)
    return np.asarray(linked[patients].astype(np.str_))


def _as_declared(split: Column) -> tuple[Indices, Indices]:
    return np.flatnonzero(split == "train"), np.flatnonzero(split == "test")


def _test_counts(counts: Labels, fraction: float, key: str) -> Labels:
    """How many records of each class to hold out: in proportion, one always stays behind, shape (K,)."""
    total = math.ceil(fraction * counts.sum() - 1e-9)  # 0.07 * 100 is 7.000000000000001
    most = np.maximum(counts - 1, 0)
    if most.sum() < total:
        raise ConfigError(
            f"holding out {total} records must leave one of each class, but only {most.sum()} can be spared; "
            f"add records or lower {key}"
        )
    wanted: Labels = np.minimum(np.floor(fraction * counts).astype(np.int64), most)
    for _ in range(total - int(wanted.sum())):
        wanted[np.where(wanted < most, fraction * counts - wanted, -np.inf).argmax()] += 1
    return wanted


def _draw_records(labels: Labels, wanted: Labels, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(len(labels), dtype=np.bool_)
    order = rng.permutation(len(labels))
    for label, count in enumerate(wanted):
        chosen[order[labels[order] == label][:count]] = True
    return chosen


def _draw_patients(labels: Labels, patient: Column, wanted: Labels, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Go through the patients in random order and take those who bring the test records nearer to ``wanted``."""
    names, of_record = np.unique(patient, return_inverse=True)
    classes = len(wanted)
    records = np.bincount(of_record * classes + labels, minlength=len(names) * classes).reshape(-1, classes)
    chosen, missing, left = np.zeros(len(names), dtype=np.bool_), wanted.copy(), records.sum(axis=0)
    for index in rng.permutation(len(names)):
        theirs = records[index]
        nearer = np.abs(missing - theirs).sum() < np.abs(missing).sum()
        if nearer and ((left > theirs) | (theirs == 0)).all():
            chosen[index], missing, left = True, missing - theirs, left - theirs
    return chosen[of_record]


def _check(data: LocalData, train: Indices, test: Indices, key: str) -> None:
    if len(train) == 0 or len(test) == 0:
        raise ConfigError(
            f"expected both training and test records, got {len(train)} and {len(test)}; "
            f"change {key} or mark the records in a split column"
        )
    lost = np.setdiff1d(data.strata, data.strata[train])
    if len(lost):
        names = ", ".join(data.strata_names[label] for label in lost)
        raise ConfigError(f"every class must have a training record, but {names} has none; change the split column")
    _check_apart("patient", data.patient, train, test)
    _check_apart("group", data.group, train, test)


def _check_apart(name: str, column: Column | None, train: Indices, test: Indices) -> None:
    shared = 0 if column is None else len(np.intersect1d(column[train], column[test]))
    if shared:
        raise ConfigError(
            f"a {name} must be either in train or in test, but {shared} are in both; "
            "correct the split column, or leave it out to have one drawn"
        )

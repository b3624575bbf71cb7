from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data import LocalData, hold_out, load_source
from common.errors import ConfigError

LABELS = st.lists(st.integers(0, 3), min_size=2, max_size=60)
FRACTIONS = st.floats(0.05, 0.6)
SEEDS = st.integers(0, 2**32)


def records(labels: list[int], patients: list[int] | None = None, split: list[str] | None = None) -> LocalData:
    return LocalData(
        np.zeros((len(labels), 1, 1), np.uint8),
        np.array(labels, dtype=np.int64),
        ("a", "b", "c", "d"),
        patient=None if patients is None else np.array(patients).astype(np.str_),
        split=None if split is None else np.array(split),
    )


def divides(count: int, train: np.ndarray, test: np.ndarray) -> bool:
    whole = np.sort(np.concatenate([train, test]))
    return bool((np.diff(train) > 0).all() and (np.diff(test) > 0).all() and np.array_equal(whole, np.arange(count)))


def test_a_fifth_of_the_digits_is_360_test_records() -> None:
    digits = load_source("digits")
    train, test = hold_out(digits, 0.2, seed=7)
    assert (len(train), len(test)) == (1437, 360)
    held, all_of = np.bincount(digits.labels[test]), np.bincount(digits.labels)
    assert (np.abs(held - 0.2 * all_of) < 1).all()


def test_a_fraction_that_is_not_a_binary_number_counts_exactly() -> None:
    assert len(hold_out(records([0, 1] * 50), 0.07, seed=0)[1]) == 7  # 0.07 * 100 > 7 in floating point


@given(LABELS, FRACTIONS, SEEDS)
def test_exactly_the_fraction_is_held_out_and_every_class_stays(labels: list[int], fraction: float, seed: int) -> None:
    wanted, spare = math.ceil(fraction * len(labels) - 1e-9), len(labels) - len(set(labels))
    if wanted > spare:
        with pytest.raises(ConfigError, match=f"only {spare} can be spared"):
            hold_out(records(labels), fraction, seed)
        return
    train, test = hold_out(records(labels), fraction, seed)
    assert divides(len(labels), train, test)
    assert len(test) == wanted
    assert set(np.array(labels)[train]) == set(labels)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=2, max_size=80), FRACTIONS, SEEDS)
def test_no_patient_is_in_both(rows: list[tuple[int, int]], fraction: float, seed: int) -> None:
    labels, patients = [row[0] for row in rows], [row[1] for row in rows]
    try:
        train, test = hold_out(records(labels, patients), fraction, seed)
    except ConfigError:
        return
    of_record = np.array(patients)
    assert divides(len(labels), train, test)
    assert len(test) > 0
    assert not set(of_record[train]) & set(of_record[test])
    assert set(np.array(labels)[train]) == set(labels)


def test_patients_are_held_out_in_about_the_fraction() -> None:
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(0, 4, 2000).tolist(), rng.integers(0, 400, 2000).tolist()
    _, test = hold_out(records(labels, patients), 0.2, seed=0)
    assert abs(len(test) - 400) <= 20
    assert (np.abs(np.bincount(np.array(labels)[test]) - 0.2 * np.bincount(labels)) <= 20).all()


@given(SEEDS)
def test_the_only_patient_of_a_class_stays(seed: int) -> None:
    labels, patients = [0] * 24 + [1], [*range(21), *[99] * 4]
    train, test = hold_out(records(labels, patients), 0.4, seed)
    assert set(range(21, 25)) <= set(train.tolist())
    assert len(test) == 10


def test_patients_of_one_record_each_are_held_out_exactly() -> None:
    _, test = hold_out(records([0, 0, 0, 1, 1] * 20, list(range(100))), 0.2, seed=3)
    assert np.bincount(np.array([0, 0, 0, 1, 1] * 20)[test]).tolist() == [12, 8]


def test_the_same_seed_gives_the_same_division_and_another_seed_another() -> None:
    digits = load_source("digits")
    assert np.array_equal(hold_out(digits, 0.2, seed=1)[1], hold_out(digits, 0.2, seed=1)[1])
    assert not np.array_equal(hold_out(digits, 0.2, seed=1)[1], hold_out(digits, 0.2, seed=2)[1])


def test_which_records_are_held_out_does_not_depend_on_their_place() -> None:
    """Over seeds each place is held out about equally often; false alarm < 1e-6, a first-come rule always fails."""
    seeds, labels = 500, [0, 1] * 20
    times = np.zeros(40)
    for seed in range(seeds):
        times[hold_out(records(labels), 0.25, seed)[1]] += 1
    assert evenly_often(times, seeds)
    assert not evenly_often(np.repeat([seeds, 0.0], [10, 30]), seeds)


def evenly_often(times: np.ndarray, seeds: int) -> bool:
    """Each of 40 counts is binomial(seeds, 1/4); 6 standard deviations are passed by one with p = 2e-9."""
    return bool((np.abs(times - seeds / 4) < 6 * math.sqrt(seeds * 3 / 16)).all())


def grouped(count: int, patients: list[int] | None, groups: list[int]) -> LocalData:
    data = records([0, 1] * (count // 2), patients)
    return replace(data, group=np.array(groups).astype(np.str_))


@given(st.lists(st.integers(0, 12), min_size=10, max_size=60).filter(lambda groups: len(groups) % 2 == 0), SEEDS)
def test_no_group_is_in_both(groups: list[int], seed: int) -> None:
    try:
        train, test = hold_out(grouped(len(groups), None, groups), 0.3, seed)
    except ConfigError:
        return
    assert divides(len(groups), train, test)
    assert not set(np.array(groups)[train]) & set(np.array(groups)[test])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=20, max_size=60), SEEDS)
def test_what_patient_and_group_link_stays_together(rows: list[tuple[int, int]], seed: int) -> None:
    rows = rows[: len(rows) // 2 * 2]
    patients, groups = ([row[column] for row in rows] for column in (0, 1))
    try:
        train, test = hold_out(grouped(len(rows), patients, groups), 0.3, seed)
    except ConfigError:
        return
    for column in (np.array(patients), np.array(groups)):
        assert not set(column[train]) & set(column[test])


def test_a_split_column_decides() -> None:
    train, test = hold_out(records([0, 1, 0], split=["train", "train", "test"]), 0.9, seed=0)
    assert (train.tolist(), test.tolist()) == ([0, 1], [2])


class TestRefused:
    @pytest.mark.parametrize("fraction", [0, 1, -0.5, math.nan])
    def test_a_fraction_outside_0_and_1(self, fraction: float) -> None:
        with pytest.raises(ConfigError, match="between 0 and 1"):
            hold_out(records([0, 1] * 5), fraction, seed=0)

    def test_a_negative_seed(self) -> None:
        with pytest.raises(ConfigError, match="0 or more"):
            hold_out(records([0, 1] * 5), 0.2, seed=-1)

    def test_a_split_without_test_records(self) -> None:
        with pytest.raises(ConfigError, match="got 2 and 0"):
            hold_out(records([0, 1], split=["train", "train"]), 0.2, seed=0)

    def test_a_split_that_keeps_a_class_from_training(self) -> None:
        with pytest.raises(ConfigError, match="b has none"):
            hold_out(records([0, 1, 0], split=["train", "test", "test"]), 0.2, seed=0)

    def test_a_split_through_a_patient(self) -> None:
        with pytest.raises(ConfigError, match="1 are in both") as caught:
            hold_out(records([0, 1, 0], [7001, 2, 7001], ["train", "train", "test"]), 0.2, seed=0)
        assert "7001" not in str(caught.value)

    def test_patients_too_large_to_hold_out(self) -> None:
        with pytest.raises(ConfigError, match="got 8 and 0"):
            hold_out(records([0, 1] * 4, [1] * 4 + [2] * 4), 0.1, seed=0)

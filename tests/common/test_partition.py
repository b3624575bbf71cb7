from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from common.data.partition import SCHEMES, node_names, partition
from common.errors import ConfigError

FALSE_ALARM = 1e-6  # of each statistical test; its control says what passes no more often than that
CLASSES = 5

LABELS = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=120)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of ``partition``, with patients or without; a patient is at one site."""
    labels = np.array(draw(LABELS), dtype=np.int64)
    patients = np.array(draw(st.lists(st.integers(0, 30), min_size=len(labels), max_size=len(labels))))
    return {
        "labels": labels,
        "classes_count": CLASSES,
        "scheme": draw(st.sampled_from(SCHEMES)),
        "nodes": draw(st.integers(1, 8)),
        "seed": draw(st.integers(0, 2**32)),
        "alpha": draw(st.floats(0.1, 100)),
        "shards_per_node": draw(st.integers(1, 3)),
        "sites": np.array(["x", "Y", "z z"])[patients % 3],
        "patients": patients.astype(np.str_) if draw(st.booleans()) else None,
    }


def divided(given: dict[str, Any]) -> list[np.ndarray] | None:
    """The parts, or None where so many nodes cannot all be served."""
    try:
        return partition(**given)
    except ConfigError as error:
        if re.search("nodes need at least|shards each need|every node must have data", str(error)):
            return None
        raise


@given(arguments())
def test_every_record_is_on_one_node_and_no_node_is_empty(given: dict[str, Any]) -> None:
    parts = divided(given)
    if parts is not None:
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(given["labels"])))
        assert all(len(part) > 0 and (np.diff(part) > 0).all() for part in parts)
        assert given["scheme"] == "site" or len(parts) == given["nodes"]


@given(arguments())
def test_the_same_arguments_give_the_same_division(given: dict[str, Any]) -> None:
    one, other = divided(given), divided(given)
    assert (one is None) == (other is None)
    assert all(np.array_equal(a, b) for a, b in zip(one or [], other or [], strict=True))


@given(arguments())
def test_no_patient_is_on_two_nodes(given: dict[str, Any]) -> None:
    parts, patients = divided(given), given["patients"]
    if parts is not None and patients is not None:
        homes = [set(patients[part].tolist()) for part in parts]
        assert sum(map(len, homes)) == len(set(patients.tolist()))


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "site"])
def test_another_seed_gives_another_division(scheme: str) -> None:
    labels = np.arange(500) % CLASSES
    one, other = (partition(labels, CLASSES, scheme, 5, seed, alpha=1.0) for seed in (1, 2))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(LABELS, st.integers(1, 8))
def test_iid_nodes_differ_by_at_most_one_record(labels: list[int], nodes: int) -> None:
    if nodes <= len(labels):
        sizes = [len(part) for part in partition(np.array(labels), CLASSES, "iid", nodes, seed=0)]
        assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))
def test_a_shard_holds_neighbouring_classes_only(shards_per_node: int, nodes: int, records_per_shard: int) -> None:
    shards = shards_per_node * nodes
    labels = np.random.default_rng(0).permutation(np.arange(shards * records_per_shard) // records_per_shard)
    parts = partition(labels, shards, "shards", nodes, seed=3, shards_per_node=shards_per_node)
    assert all(len(set(labels[part])) == shards_per_node for part in parts)  # one class a shard here
    assert {len(part) for part in parts} == {shards_per_node * records_per_shard}


def same_mix(labels: np.ndarray, parts: list[np.ndarray]) -> bool:
    """Pearson's test that all nodes draw from one distribution of classes."""
    counts = np.array([np.bincount(labels[part], minlength=CLASSES) for part in parts])
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    freedom = (len(parts) - 1) * (CLASSES - 1)
    return bool(((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - FALSE_ALARM, freedom))


class TestStatistics:
    labels = np.arange(20_000) % CLASSES

    def test_iid_and_quantity_nodes_have_one_mix_of_classes(self) -> None:
        assert same_mix(self.labels, partition(self.labels, CLASSES, "iid", 10, seed=0))
        assert same_mix(self.labels, partition(self.labels, CLASSES, "quantity", 10, seed=0, alpha=5.0))

    @pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards", "quantity"])
    def test_within_a_class_a_record_goes_anywhere(self, scheme: str) -> None:
        """Whatever sorts the file (a site, a date) reaches all nodes alike; dealing by place is the control."""
        hidden, one_class = np.sort(self.labels), np.zeros(20_000, dtype=np.int64)
        assert same_mix(hidden, partition(one_class, 1, scheme, 10, seed=0, alpha=5.0))
        assert not same_mix(hidden, np.array_split(np.arange(20_000), 10))

    def test_dirichlet_and_shards_do_not(self) -> None:
        """The control: even alpha = 100 gives each count a spread of 40 where chance gives 20."""
        assert not same_mix(self.labels, partition(self.labels, CLASSES, "dirichlet", 10, seed=0, alpha=100.0))
        assert not same_mix(self.labels, partition(self.labels, CLASSES, "shards", 10, seed=0))

    def test_dirichlet_shares_have_the_promised_spread(self) -> None:
        assert has_concentration(class_shares(alpha=0.5), 0.5)

    def test_dirichlet_shares_of_another_alpha_are_caught(self) -> None:
        assert not has_concentration(class_shares(alpha=0.6), 0.5)

    def test_quantity_shares_have_the_promised_spread(self) -> None:
        assert has_concentration(node_shares(alpha=5.0), 5.0)

    def test_quantity_shares_of_another_alpha_are_caught(self) -> None:
        assert not has_concentration(node_shares(alpha=6.0), 5.0)


def class_shares(alpha: float) -> np.ndarray:
    """How 6,000 classes of 200 records were shared by 5 nodes, shape (6000, 5)."""
    labels = np.repeat(np.arange(300), 200)
    runs = (partition(labels, 300, "dirichlet", 5, seed, alpha=alpha) for seed in range(20))
    return (
        np.concatenate([np.stack([np.bincount(labels[p], minlength=300) for p in run], axis=1) for run in runs]) / 200
    )


def node_shares(alpha: float) -> np.ndarray:
    """How 2,000 times 2,000 records were shared by 5 nodes, shape (2000, 5)."""
    labels = np.zeros(2000, dtype=np.int64)
    runs = (partition(labels, 1, "quantity", 5, seed, alpha=alpha) for seed in range(2000))
    return np.array([[len(part) for part in run] for run in runs]) / 2000


def has_concentration(shares: np.ndarray, alpha: float) -> bool:
    """Whether the mean sum of squared shares is that of Dirichlet(alpha): 1/n + (1 - 1/n) / (n alpha + 1).

    A z-test at FALSE_ALARM. The controls lie 5 false-alarm widths off or more, so one passes with probability < 1e-6.
    """
    squares = (shares**2).sum(axis=1)
    nodes = shares.shape[1]
    expected = 1 / nodes + (1 - 1 / nodes) / (nodes * alpha + 1)
    width = norm.ppf(1 - FALSE_ALARM / 2) * squares.std() / np.sqrt(len(squares))
    return bool(abs(squares.mean() - expected) < width)


class TestSites:
    def test_each_site_is_a_node_in_the_order_of_names(self) -> None:
        sites = np.array(["Ulm", "aachen", "Ulm", "Bern"])
        parts = partition(np.zeros(4, np.int64), 1, "site", 99, seed=0, sites=sites)
        assert node_names(99, sites=sites) == ("aachen", "bern", "ulm")
        assert [part.tolist() for part in parts] == [[1], [3], [0, 2]]

    def test_a_patient_at_two_sites_is_refused_without_saying_who(self) -> None:
        sites, patients = np.array(["x", "y", "y"]), np.array(["7001", "7001", "7002"])
        with pytest.raises(ConfigError, match="1 are at several") as caught:
            partition(np.zeros(3, np.int64), 1, "site", 2, seed=0, sites=sites, patients=patients)
        assert "7001" not in str(caught.value)

    def test_data_without_sites_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="site column or a folder level"):
            partition(np.zeros(3, np.int64), 1, "site", 2, seed=0)


class TestNames:
    @pytest.mark.parametrize(("count", "last"), [(1, "node-000"), (1000, "node-999"), (1001, "node-1000")])
    def test_counted_names_sort_in_order(self, count: int, last: str) -> None:
        names = node_names(count)
        assert names[-1] == last
        assert len(set(names)) == count
        assert list(names) == sorted(names)

    @given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=12))
    def test_site_names_are_distinct_sorted_and_safe(self, sites: list[str]) -> None:
        column = np.array([site.replace("\0", "") for site in sites])
        names = node_names(0, sites=column)
        assert len(set(names)) == len(names) == len(set(column.tolist()))
        assert list(names) == sorted(names)
        assert all(re.fullmatch("[a-z][a-z0-9-]*", name) for name in names)

    @given(st.lists(st.text(max_size=4), min_size=1, max_size=12))
    def test_site_names_follow_the_parts(self, sites: list[str]) -> None:
        column = np.array([site.replace("\0", "") for site in sites])
        parts = partition(np.zeros(len(sites), np.int64), 1, "site", 0, seed=0, sites=column)
        names = node_names(0, sites=column)
        for name, part in zip(names, parts, strict=True):
            (site,) = set(column[part].tolist())
            assert name in (alone := node_names(0, sites=np.array([site]))) or name.startswith(alone[0])

    def test_sites_that_look_alike_are_numbered(self) -> None:
        assert node_names(0, sites=np.array(["St Mary", "st. mary", "7", "大学"])) == (
            "site",
            "site-7",
            "st-mary",
            "st-mary-2",
        )


class TestRefused:
    labels = np.arange(10) % CLASSES

    def test_an_unknown_scheme_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="got 'dirichelt'; did you mean 'dirichlet'"):
            partition(self.labels, CLASSES, "dirichelt", 2, seed=0)

    @pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards", "quantity"])
    def test_more_nodes_than_records(self, scheme: str) -> None:
        with pytest.raises(ConfigError, match="11 nodes need at least 11 training records, got 10"):
            partition(self.labels, CLASSES, scheme, 11, seed=0)

    def test_more_nodes_than_patients(self) -> None:
        with pytest.raises(ConfigError, match="3 training patients, got 2"):
            partition(self.labels, CLASSES, "iid", 3, seed=0, patients=np.array(["p", "q"] * 5))

    def test_more_shards_than_records(self) -> None:
        with pytest.raises(ConfigError, match="need 12 records, got 10"):
            partition(self.labels, CLASSES, "shards", 4, seed=0, shards_per_node=3)

    def test_nodes_that_stay_empty_are_named(self) -> None:
        with pytest.raises(ConfigError, match=r"after 100 draws node-\d{3}.* had none; use a larger data\.alpha"):
            partition(self.labels, CLASSES, "dirichlet", 10, seed=0, alpha=0.01)

    @pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf])
    def test_an_alpha_out_of_range(self, alpha: float) -> None:
        with pytest.raises(ConfigError, match=r"data\.alpha must be above 0"):
            partition(self.labels, CLASSES, "dirichlet", 2, seed=0, alpha=alpha)

    def test_counts_below_one(self) -> None:
        with pytest.raises(ConfigError, match=r"federation\.nodes must be at least 1, got 0"):
            partition(self.labels, CLASSES, "iid", 0, seed=0)
        with pytest.raises(ConfigError, match=r"data\.shards_per_node must be at least 1"):
            partition(self.labels, CLASSES, "shards", 2, seed=0, shards_per_node=0)


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 1e6])
def test_extreme_concentrations_deal_or_refuse(alpha: float) -> None:
    labels = np.arange(1000) % CLASSES
    try:
        parts = partition(labels, CLASSES, "dirichlet", 3, seed=0, alpha=alpha)
    except ConfigError:
        assert alpha < 1
    else:
        assert sum(map(len, parts)) == 1000

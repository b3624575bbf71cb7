"""The comparison of where noise is added: its worlds hold the noise they say, and its intervals are Student's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2, ttest_rel

from client.clipping import ClippedSum
from common.errors import ConfigError
from common.privacy.accountant import noise_multiplier_for
from simulations.benchmarks import distributed_noise
from simulations.benchmarks.distributed_noise import summary
from simulations.benchmarks.distributed_noise.summary import Run
from simulations.benchmarks.distributed_noise.worlds import DELTA, STEPS, WORLDS, Split, Sums, accuracy

FALSE_ALARM = 1e-6  # the noise is seeded: it passes always or never
NUMBERS, NODES, NORM = 20_000, 8, 0.5


def split_of(records: int = 200) -> Split:
    """Two classes that a line tells apart."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.arange(2 * records) % 2)
    features = torch.from_numpy(rng.standard_normal((2 * records, 8))) + 1.5 * (2 * labels[:, None] - 1)
    return Split(features[:records], labels[:records], features[records:], labels[records:], 2)


def runs() -> list[Run]:
    rng = np.random.default_rng(1)
    return [
        Run("digits", nodes, epsilon, seed, world, float(rng.random()))
        for nodes in (5, 10)
        for epsilon in (1.0, 2.0)
        for seed in range(4)
        for world in WORLDS
    ]


@pytest.mark.parametrize("world", WORLDS)
def test_the_learning_rate_is_told_the_noise_that_a_world_really_holds(world: str) -> None:
    nodes = 1 if world == "pooled" else NODES
    sums = Sums(world, [torch.arange(20)] * nodes, 4.0, NORM, NUMBERS, seed=1)
    silent = ClippedSum({"w": torch.zeros(NUMBERS, dtype=torch.float64)}, NORM, 0)
    noise = sums.noised([silent] * nodes, 0)
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], NUMBERS)
    assert low <= np.square(noise / (sums.noise_over_norm * NORM)).sum() <= high


def test_the_worlds_differ_in_noise_as_they_should() -> None:
    held = {
        world: Sums(world, [torch.arange(20)] * (1 if world == "pooled" else NODES), 4.0, NORM, 650, 1).noise_over_norm
        for world in WORLDS
    }
    assert held["pooled"] == held["trusted server"] == 4.0
    assert 4.0 < held["secagg"] < 4.0 * 1.01
    assert held["local noise"] == pytest.approx(4.0 * NODES**0.5)
    assert held["secagg, one lost, one colluding"] == pytest.approx(4.0 * (8 / 6) ** 0.5, rel=0.01)


def test_with_little_noise_every_world_learns_and_with_much_only_shares_do() -> None:
    split = split_of()
    assert noise_multiplier_for(1000.0, DELTA, 1.0, STEPS) < 1
    for world in WORLDS:
        assert accuracy(world, split, 3, 1000.0, 0) > 0.95
    few = split_of(60)
    means = {w: np.mean([accuracy(w, few, 20, 0.5, seed) for seed in (0, 2)]) for w in ("pooled", "secagg", WORLDS[-1])}
    assert min(means["pooled"], means["secagg"]) > means["local noise"] + 0.05


def test_a_seed_repeats_a_run() -> None:
    split = split_of(60)
    assert accuracy("secagg", split, 3, 2.0, 5) == accuracy("secagg", split, 3, 2.0, 5)


def test_intervals_are_those_of_a_paired_t_test() -> None:
    one, other = np.array([0.9, 0.8, 0.95, 0.7]), np.array([0.85, 0.8, 0.9, 0.72])
    found = summary.paired("a", "b", one - other)
    interval = ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(float((one - other).mean()))


def test_table_plot_and_file_hold_every_cell(tmp_path: Path) -> None:
    found = list(summary.cells(runs()))
    assert [(cell.nodes, cell.epsilon, cell.seeds) for cell in found] == [(5, 1, 4), (5, 2, 4), (10, 1, 4), (10, 2, 4)]
    assert summary.table(found).row_count == 4
    summary.write(runs(), found, tmp_path)
    told = json.loads((tmp_path / "accuracy.json").read_text())
    assert len(told["runs"]) == len(runs())
    assert told["cells"][0]["means"].keys() == set(WORLDS)
    assert (tmp_path / "accuracy.svg").read_text().startswith("<?xml")


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    alone = [run for run in runs() if run.seed == 0]
    summary.write(alone, list(summary.cells(alone)), tmp_path)
    difference = json.loads((tmp_path / "accuracy.json").read_text())["cells"][0]["differences"][0]
    assert difference["low"] is None
    assert difference["high"] is None


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_SETTINGS", "digits dogs")
    with pytest.raises(ConfigError, match="dogs"):
        distributed_noise.main()

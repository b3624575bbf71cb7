"""The comparison of where noise is added: its worlds hold the noise they say, and its intervals are Student's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chisquare, norm, ttest_rel

from client.clipping import ClippedSum
from client.distributed_noise import noised_share, rounded
from client.mechanism import clipped_sum
from common.data.local import LocalData
from common.errors import ConfigError
from common.heads import build_head
from common.privacy.accountant import noise_multiplier_for
from common.privacy.noise import SeededRandomness
from common.privacy.shares import Cohort, share_out
from common.privacy.skellam_noise import skellam_from_words
from common.tasks import classification_loss
from simulations.benchmarks import distributed_noise
from simulations.benchmarks.distributed_noise import EPSILONS, claims, plot, results, summary
from simulations.benchmarks.distributed_noise.results import Run
from simulations.benchmarks.distributed_noise.stacked import Heads, clipped_sums
from simulations.benchmarks.distributed_noise.worlds import DELTA, STEPS, WORLDS, Setting, Split, Sums, scores

FALSE_ALARM = 1e-6  # the noise is seeded: it passes always or never
NUMBERS, NODES, NORM = 20_000, 8, 0.5


def split_of(records: int = 200) -> Split:
    """Two classes that a line tells apart."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.arange(2 * records) % 2)
    features = (torch.from_numpy(rng.standard_normal((2 * records, 8))) + 1.5 * (2 * labels[:, None] - 1)).float()
    return Split(features[:records], labels[:records], features[records:], labels[records:], 2)


def runs() -> list[Run]:
    rng = np.random.default_rng(1)
    return [
        Run(data, nodes, epsilon, seed, world, {metric: float(rng.random()) for metric in metrics})
        for data, metrics in (("digits", ("accuracy",)), ("pneumonia", ("accuracy", "AUROC")))
        for nodes in (5, 10)
        for epsilon in (1.0, 2.0)
        for seed in range(4)
        for world in WORLDS
    ]


@pytest.mark.parametrize("world", WORLDS)
def test_the_learning_rate_is_told_the_noise_that_a_world_really_holds(world: str) -> None:
    nodes = 1 if world == "pooled" else NODES
    sums = Sums(world, [20] * nodes, 4.0, NORM, NUMBERS, seed=1)
    silent = ClippedSum({"w": torch.zeros(NUMBERS, dtype=torch.float64)}, NORM, 0)
    noise = sums.noised([silent] * nodes, 0)
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], NUMBERS)
    assert low <= np.square(noise / (sums.noise_over_norm * NORM)).sum() <= high


def test_the_worlds_differ_in_noise_as_they_should() -> None:
    held = {
        world: Sums(world, [20] * (1 if world == "pooled" else NODES), 4.0, NORM, 650, 1).noise_over_norm
        for world in WORLDS
    }
    assert held["pooled"] == held["trusted server"] == 4.0
    assert 4.0 < held["secagg"] < 4.0 * 1.01
    assert held["local noise"] == pytest.approx(4.0 * NODES**0.5)
    assert held["secagg, one lost, one colluding"] == pytest.approx(4.0 * (8 / 6) ** 0.5, rel=0.01)


def test_with_little_noise_every_world_learns_and_with_much_only_shares_do() -> None:
    split = split_of()
    assert noise_multiplier_for(1000.0, DELTA, 1.0, STEPS) < 1
    assert min(score["accuracy"] for score in scores(split, 3, 0, [Setting(world, 1000.0) for world in WORLDS])) > 0.95
    worlds = ("pooled", "secagg", "local noise")
    found = [scores(split_of(60), 20, seed, [Setting(world, 0.5) for world in worlds]) for seed in (0, 2)]
    pooled, shared, local = np.mean([[score["AUROC"] for score in each] for each in found], axis=0)
    assert min(pooled, shared) > local + 0.05


def test_a_head_is_the_same_alone_and_beside_others() -> None:
    split = split_of(60)
    settings = [Setting("secagg", 0.5), Setting("local noise", 2.0)]
    together = scores(split, 3, 5, settings)
    assert together == [scores(split, 3, 5, [setting])[0] for setting in settings]


def test_sums_of_many_heads_are_those_that_nodes_clip() -> None:
    split, generator = split_of(50), torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, 8, generator=generator)
    bias = torch.randn(3, 2, generator=generator)
    found = clipped_sums(Heads(weight, bias), split.features, split.labels, NORM)
    for i in range(3):
        head = build_head("linear", 8, 2)
        head.load_state_dict({"weight": weight[i], "bias": bias[i]})
        asked = clipped_sum(head, classification_loss, split.features, split.labels, NORM)
        for name, value in asked.values.items():
            assert torch.allclose(found[i].values[name], value, rtol=1e-5, atol=1e-5)
            assert float(value.norm()) > 0.01


def test_a_head_moves_as_a_server_moves_it() -> None:
    changes = torch.arange(1, 7, dtype=torch.float64)[None] / 3  # K = 2, D = 2: biases first
    moved = Heads.untrained(1, 2, 2).moved(changes)
    assert torch.equal(moved.bias[0].float(), changes[0, :2].float())
    assert torch.equal(moved.weight[0].float(), changes[0, 2:].view(2, 2).float())


def opened_and_plain(add: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The opened sum of shares, and the plain sum of what the nodes rounded and noised, both in integers."""
    rng = np.random.default_rng(0)
    shares = share_out(Cohort(5, 0, 0), 4.0, NORM, 200, 20, sums=STEPS)
    sums = [ClippedSum({"w": torch.from_numpy(rng.standard_normal(200))}, NORM, 0) for _ in range(5)]

    def source(node: int) -> SeededRandomness:
        return SeededRandomness(0, f"node-{node}", 0, "secagg")

    sent = [noised_share(each, shares, source(node)) for node, each in enumerate(sums)]
    plain = [
        rounded(each.values["w"].numpy(), shares)
        + skellam_from_words(source(node).words, shares.numbers, shares.share_variance)
        for node, each in enumerate(sums)
    ]
    return shares.opened(add(shares, sent)) * shares.scale, np.sum(plain, axis=0)


def test_noise_drawn_at_once_is_what_shares_add_up_to() -> None:
    """Both against the claimed distribution, in thirds of its standard deviation; the control is a share less."""
    sums = Sums("secagg", [20] * NODES, 4.0, NORM, NUMBERS, seed=1)
    each = [
        skellam_from_words(SeededRandomness(0, f"node-{node}", 0, "share").words, NUMBERS, sums.shares.share_variance)
        for node in range(NODES)
    ]
    silent = ClippedSum({"w": torch.zeros(NUMBERS, dtype=torch.float64)}, NORM, 0)
    at_once = sums.noised([silent] * NODES, 0) * sums.shares.scale
    deviation = (NODES * sums.shares.share_variance) ** 0.5
    edges = np.linspace(-3, 3, 19)
    chances = NUMBERS * np.diff(norm.cdf([-np.inf, *edges, np.inf]))  # of this variance normal to 1e-6

    def fits(noise: np.ndarray) -> bool:
        counts = np.bincount(np.searchsorted(edges, noise / deviation), minlength=20)
        return bool(chisquare(counts, chances).pvalue > FALSE_ALARM)

    assert fits(at_once)
    assert fits(np.sum(each, axis=0))
    assert not fits(np.sum(each[1:], axis=0))


def test_without_masks_the_opened_sum_is_the_plain_sum_of_what_was_sent() -> None:
    opened, plain = opened_and_plain(lambda shares, sent: shares.add(sent))
    assert np.array_equal(opened, plain)


def test_a_share_that_is_left_out_shows() -> None:
    opened, plain = opened_and_plain(lambda shares, sent: shares.add(sent[1:]))
    assert not np.array_equal(opened, plain)


def test_intervals_are_those_of_a_paired_t_test() -> None:
    one, other = np.array([0.9, 0.8, 0.95, 0.7]), np.array([0.85, 0.8, 0.9, 0.72])
    found = summary.paired("a", "b", one - other)
    interval = ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(float((one - other).mean()))


def test_cells_are_of_one_metric_and_have_every_seed() -> None:
    found = list(summary.cells(runs()))
    places = [(cell.data, cell.metric, cell.nodes, cell.epsilon, cell.seeds) for cell in found]
    assert places[:4] == [("digits", "accuracy", nodes, epsilon, 4) for nodes in (5, 10) for epsilon in (1.0, 2.0)]
    assert [place[1] for place in places[4:]] == ["AUROC"] * 4 + ["accuracy"] * 4
    own = [run.scores["AUROC"] for run in runs() if (run.data, run.nodes, run.epsilon) == ("pneumonia", 5, 1.0)]
    assert found[4].means["pooled"] == pytest.approx(float(np.mean(own[:: len(WORLDS)])))
    assert summary.table(found[:4], "accuracy").row_count == 4


def test_the_plot_has_a_row_for_each_data_set_and_metric(tmp_path: Path) -> None:
    plot.draw(list(summary.cells(runs())), tmp_path / "accuracy.svg")
    drawn = (tmp_path / "accuracy.svg").read_text()
    assert drawn.startswith("<?xml")
    for words in ("digits, 5 nodes", "pneumonia, 10 nodes", "held-out AUROC", *WORLDS):
        assert f"<!-- {words} -->" in drawn


def test_runs_are_read_as_they_were_written_and_others_refused(tmp_path: Path) -> None:
    assert results.read(tmp_path) == []
    results.write(runs(), tmp_path)
    assert results.read(tmp_path) == runs()
    path = tmp_path / results.NAME
    path.write_text(path.read_text().replace(f'"steps": {STEPS}', '"steps": 7'))
    with pytest.raises(ConfigError, match="another folder"):
        results.read(tmp_path)
    path.write_text("nothing")
    with pytest.raises(ConfigError, match="another folder"):
        results.read(tmp_path)


def test_a_benchmark_that_was_stopped_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SETTINGS": "digits", "SEEDS": "1", "NODES": "3", "OUT": str(tmp_path)}.items():
        monkeypatch.setenv(f"FEDGRAFT_{name}", value)
    known = [Run("digits", 3, epsilon, 0, world, {"accuracy": 0.25}) for epsilon in EPSILONS for world in WORLDS]
    results.write(known, tmp_path)
    monkeypatch.setattr(distributed_noise, "EPSILONS", (1.0,))
    monkeypatch.setattr(distributed_noise, "read", lambda name: small_records())
    distributed_noise.main()
    assert results.read(tmp_path) == known
    monkeypatch.setenv("FEDGRAFT_SEEDS", "2")
    distributed_noise.main()
    found = results.read(tmp_path)
    assert found[: len(known)] == known
    assert {(run.seed, run.world) for run in found[len(known) :]} == {(1, world) for world in WORLDS}
    assert "held-out accuracy" in capsys.readouterr().out


def small_records() -> distributed_noise.Records:
    split = split_of(40)
    names = tuple(map(str, range(split.classes)))
    pixels = np.zeros((len(split.labels), 1, 1), dtype=np.uint8)
    return distributed_noise.Records(LocalData(pixels, split.labels.numpy(), names), split.features)


def cell_with(nodes: int, epsilon: float, pooled: float, local: float) -> summary.Cell:
    differences = [
        summary.Difference("secagg", "pooled", pooled, pooled - 0.005, pooled + 0.005),
        summary.Difference("secagg", "local noise", local, local - 0.01, local + 0.01),
    ]
    return summary.Cell("digits", "accuracy", nodes, epsilon, 20, {}, differences)


@pytest.mark.parametrize(
    ("epsilon", "pooled", "holds"),
    [(1.0, -0.004, True), (1.0, -0.006, False), (0.5, -0.024, True), (0.5, -0.026, False)],
)
def test_a_claim_about_pooled_data_is_about_the_whole_interval(epsilon: float, pooled: float, holds: bool) -> None:
    (said,) = claims.sentences([cell_with(5, epsilon, pooled, 0.2)])
    assert said.startswith("holds" if holds else "DOES NOT HOLD")


def test_the_gain_over_local_noise_is_claimed_of_ten_nodes_and_more() -> None:
    cells = [cell_with(5, 1.0, 0.0, 0.01), cell_with(10, 1.0, 0.0, 0.09), cell_with(20, 1.0, 0.0, 0.2)]
    about = [said for said in claims.sentences(cells) if "local" in said]
    assert [said.split(":")[0] for said in about] == ["DOES NOT HOLD", "holds"]


def test_a_single_seed_has_no_interval() -> None:
    difference = next(summary.cells([run for run in runs() if run.seed == 0])).differences[0]
    assert (difference.low, difference.high) == (-np.inf, np.inf)


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_SETTINGS", "digits dogs")
    with pytest.raises(ConfigError, match="dogs"):
        distributed_noise.main()

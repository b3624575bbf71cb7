"""Where the noise is added: accuracy against epsilon for local noise, shares of it, a trusted server, and pooled data.

scikit-learn's digits on ``embedded/glyph`` and PneumoniaMNIST on MobileNetV1 (left out where its data are not there).
Nodes' sums are rounded, noised and opened modulo 2^b; masks change no number, and there are none. Heads of all worlds
and epsilons are trained together, so that features are read once. What can be chosen:

- ``FEDGRAFT_SETTINGS="digits pneumonia"``: the data;
- ``FEDGRAFT_SEEDS``: how many, 20 by default;
- ``FEDGRAFT_NODES="5 10 20"``: the numbers of nodes;
- ``FEDGRAFT_OUT``: a folder for ``accuracy.json`` and ``accuracy.svg``, written anew after each seed; runs that are in
  that file already are not run again, so that a benchmark that was stopped goes on. Without it only the table is
  printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from common.data import LocalData, hold_out, load_source
from common.errors import ConfigError
from common.features import cached_backbone, default_cache
from simulations.benchmarks.distributed_noise import claims, plot, results, summary
from simulations.benchmarks.distributed_noise.results import Run
from simulations.benchmarks.distributed_noise.worlds import WORLDS, Setting, Split, scores
from simulations.benchmarks.tasks import DATA, MOBILENET

SOURCES = {
    "digits": ("digits", "embedded/glyph"),
    "pneumonia": (str(DATA / "image-pneumoniamnist/pneumoniamnist.npz"), MOBILENET),
}
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
NODES = (5, 10, 20)
SEEDS = 20
TEST_FRACTION = 0.2  # where the data do not say which records are held out
ALIKE = ("pooled", "trusted server")
"""Their noised sum is the same however many nodes there are, when all records take part in every step."""


@dataclass(frozen=True)
class Records:
    """A data set and its features, single precision."""

    data: LocalData
    features: torch.Tensor

    def split(self, seed: int) -> Split:
        """Training and held-out records of a seed."""
        train, test = (torch.from_numpy(np.asarray(part)) for part in hold_out(self.data, TEST_FRACTION, seed))
        labels = torch.from_numpy(self.data.labels)
        classes = len(self.data.classes)
        return Split(self.features[train], labels[train], self.features[test], labels[test], classes)


def main() -> None:
    """Run what is missing, seed by seed; write file and plot where a folder is given; print the table.

    Raises:
        ConfigError: a data set is not known, or the folder holds another benchmark's runs.
    """
    chosen = os.environ.get("FEDGRAFT_SETTINGS", "").split() or list(SOURCES)
    if unknown := set(chosen) - set(SOURCES):
        raise ConfigError(f"expected settings out of {', '.join(SOURCES)}, got {', '.join(sorted(unknown))}")
    nodes = tuple(map(int, os.environ.get("FEDGRAFT_NODES", "").split())) or NODES
    out = os.environ.get("FEDGRAFT_OUT")
    folder = Path(out) if out else None
    runs = [] if folder is None else results.read(folder)
    there = _there(chosen)
    for seed in range(int(os.environ.get("FEDGRAFT_SEEDS", SEEDS))):
        for name, records in there.items():
            missing = [count for count in nodes if not _done(runs, name, count, seed)]
            if not missing:
                continue
            runs += measure(name, records.split(seed), missing, seed)
            if folder is not None:
                results.write(runs, folder)
                plot.draw(list(summary.cells(runs)), folder / "accuracy.svg")
    found = list(summary.cells(runs))
    console = Console(width=240)
    for metric in dict.fromkeys(cell.metric for cell in found):
        console.print(summary.table([cell for cell in found if cell.metric == metric], metric))
    for sentence in claims.sentences(found):
        console.print(sentence)


def read(name: str) -> Records:
    """The records of a setting and their features.

    Raises:
        ConfigError: data or backbone are not there.
    """
    source, backbone = SOURCES[name]
    data = load_source(source)
    features = default_cache().features(cached_backbone(backbone), None, data)
    return Records(data, torch.from_numpy(np.array(features, dtype=np.float32)))


def measure(name: str, split: Split, nodes: list[int], seed: int) -> Iterator[Run]:
    """Every world at every epsilon and number of nodes, on the same records."""
    shared: dict[Setting, dict[str, float]] = {}
    for count in nodes:
        worlds = [world for world in WORLDS if not shared or world not in ALIKE]
        settings = [Setting(world, epsilon) for world in worlds for epsilon in EPSILONS]
        found = dict(zip(settings, scores(split, count, seed, settings), strict=True))
        shared = shared or {setting: found[setting] for setting in settings if setting.world in ALIKE}
        for setting, score in (shared | found).items():
            yield Run(name, count, setting.epsilon, seed, setting.world, score)


def _there(chosen: list[str]) -> dict[str, Records]:
    """The data sets that are there, with their features."""
    found = {}
    for name in chosen:
        try:
            found[name] = read(name)
        except ConfigError as error:
            Console(stderr=True).print(f"{name} is left out: {error}")
    return found


def _done(runs: list[Run], name: str, nodes: int, seed: int) -> bool:
    return any((run.data, run.nodes, run.seed) == (name, nodes, seed) for run in runs)

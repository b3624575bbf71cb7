"""Where the noise is added: accuracy against epsilon for local noise, shares of it, a trusted server, and pooled data.

scikit-learn's digits on ``embedded/glyph`` and PneumoniaMNIST on MobileNetV1 (left out where its data are not there).
Sums of shares are opened plainly, since masks change no number. What can be chosen:

- ``FEDGRAFT_SETTINGS="digits pneumonia"``: the data;
- ``FEDGRAFT_SEEDS``: how many, 3 by default;
- ``FEDGRAFT_NODES="5 10 20"``: the numbers of nodes;
- ``FEDGRAFT_OUT``: a folder for ``accuracy.json`` and ``accuracy.svg``; without it only the table is printed.
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
from simulations.benchmarks.distributed_noise import summary
from simulations.benchmarks.distributed_noise.summary import Run
from simulations.benchmarks.distributed_noise.worlds import WORLDS, Split, accuracy
from simulations.benchmarks.tasks import DATA, MOBILENET

SOURCES = {
    "digits": ("digits", "embedded/glyph"),
    "pneumonia": (str(DATA / "image-pneumoniamnist/pneumoniamnist.npz"), MOBILENET),
}
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
NODES = (5, 10, 20)
SEEDS = 3
TEST_FRACTION = 0.2  # where the data do not say which records are held out
ALIKE = ("pooled", "trusted server")
"""Their noised sum is the same however many nodes there are, when all records take part in every step."""


@dataclass(frozen=True)
class Records:
    """A data set and its features, double precision."""

    data: LocalData
    features: torch.Tensor

    def split(self, seed: int) -> Split:
        """Training and held-out records of a seed."""
        train, test = (torch.from_numpy(np.asarray(part)) for part in hold_out(self.data, TEST_FRACTION, seed))
        labels = torch.from_numpy(self.data.labels)
        classes = len(self.data.classes)
        return Split(self.features[train], labels[train], self.features[test], labels[test], classes)


def main() -> None:
    """Print the table as it grows; write file and plot where a folder is given.

    Raises:
        ConfigError: a data set is not known.
    """
    chosen = os.environ.get("FEDGRAFT_SETTINGS", "").split() or list(SOURCES)
    if unknown := set(chosen) - set(SOURCES):
        raise ConfigError(f"expected settings out of {', '.join(SOURCES)}, got {', '.join(sorted(unknown))}")
    nodes = tuple(map(int, os.environ.get("FEDGRAFT_NODES", "").split())) or NODES
    folder = os.environ.get("FEDGRAFT_OUT")
    runs: list[Run] = []
    for name in chosen:
        try:
            records = read(name)
        except ConfigError as error:
            Console(stderr=True).print(f"{name} is left out: {error}")
            continue
        for seed in range(int(os.environ.get("FEDGRAFT_SEEDS", SEEDS))):
            runs += measure(name, records.split(seed), nodes, seed)
            found = list(summary.cells(runs))
            if folder:
                summary.write(runs, found, Path(folder))
        Console(width=200).print(summary.table(found))


def read(name: str) -> Records:
    """The records of a setting and their features.

    Raises:
        ConfigError: data or backbone are not there.
    """
    source, backbone = SOURCES[name]
    data = load_source(source)
    features = default_cache().features(cached_backbone(backbone), None, data)
    return Records(data, torch.from_numpy(np.array(features)).double())


def measure(name: str, split: Split, nodes: tuple[int, ...], seed: int) -> Iterator[Run]:
    """Every world at every epsilon and number of nodes, on the same records."""
    for epsilon in EPSILONS:
        shared = {world: accuracy(world, split, nodes[0], epsilon, seed) for world in ALIKE}
        for count in nodes:
            for world in WORLDS:
                score = shared[world] if world in shared else accuracy(world, split, count, epsilon, seed)
                yield Run(name, count, epsilon, seed, world, score)

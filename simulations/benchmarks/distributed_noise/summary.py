"""What the runs say together: means, paired differences with 95 % intervals, and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from rich.table import Table
from scipy.stats import t as student

from simulations.benchmarks.distributed_noise.results import Run
from simulations.benchmarks.distributed_noise.worlds import WORLDS

COMPARED = (
    ("secagg", "pooled"),
    ("secagg", "local noise"),
    ("secagg", "trusted server"),
    ("secagg, one lost, one colluding", "pooled"),
)


@dataclass(frozen=True)
class Difference:
    """Mean difference of scores over seeds, first minus second, with a 95 % interval (Student's t)."""

    first: str
    second: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """All runs of one data set, metric, number of nodes and epsilon."""

    data: str
    metric: str
    nodes: int
    epsilon: float
    seeds: int
    means: dict[str, float]
    differences: list[Difference]

    def difference(self, first: str, second: str) -> Difference:
        """Of these two worlds."""
        return next(each for each in self.differences if (each.first, each.second) == (first, second))


def cells(runs: Sequence[Run]) -> Iterator[Cell]:
    """Sum the runs up; every world has to have the same seeds."""
    each = [(run.data, metric, run.nodes, run.epsilon, run) for run in runs for metric in run.scores]
    each.sort(key=lambda one: one[:4])
    for (data, metric, nodes, epsilon), group in groupby(each, key=lambda one: one[:4]):
        by_world: dict[str, dict[int, float]] = {}
        for *_, run in group:
            by_world.setdefault(run.world, {})[run.seed] = run.scores[metric]
        seeds = sorted(by_world[WORLDS[0]])
        found = {world: np.array([by_world[world][seed] for seed in seeds]) for world in WORLDS}
        differences = [paired(one, other, found[one] - found[other]) for one, other in COMPARED]
        means = {world: float(found[world].mean()) for world in WORLDS}
        yield Cell(data, metric, nodes, epsilon, len(seeds), means, differences)


def paired(first: str, second: str, differences: np.ndarray) -> Difference:
    """Mean and interval of differences, one a seed; without a second seed the interval is unbounded."""
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return Difference(first, second, mean, -math.inf, math.inf)
    half = float(student.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return Difference(first, second, mean, mean - half, mean + half)


def table(found: Sequence[Cell], metric: str) -> Table:
    """Scores, and differences in points."""
    compared = [f"{one} − {other}" for one, other in COMPARED]
    title = f"held-out {metric}, mean over seeds, and paired differences in points with 95 % intervals"
    printed = Table("data", "nodes", "ε", "seeds", *WORLDS, *compared, title=title)
    for cell in found:
        worlds = [f"{cell.means[world]:.4f}" for world in WORLDS]
        points = [in_points(cell.difference(*pair)) for pair in COMPARED]
        printed.add_row(cell.data, str(cell.nodes), f"{cell.epsilon:g}", str(cell.seeds), *worlds, *points)
    return printed


def in_points(difference: Difference) -> str:
    """Hundredths of the score."""
    return f"{100 * difference.mean:+.2f} ({100 * difference.low:+.2f} … {100 * difference.high:+.2f})"

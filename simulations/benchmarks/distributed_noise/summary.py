"""What the runs say together: means, paired differences with 95 % intervals, a table, a plot and a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from scipy.stats import t as student

from common.durable import write_bytes
from simulations.benchmarks.distributed_noise.worlds import WORLDS

COMPARED = (
    ("secagg", "pooled"),
    ("secagg", "local noise"),
    ("secagg", "trusted server"),
    ("secagg, one lost, one colluding", "pooled"),
)
COLOURS = ("#444444", "#8a5fbf", "#0a5fb4", "#6fa8dc", "#c4622d")


@dataclass(frozen=True)
class Run:
    """One training run's accuracy on held-out records."""

    data: str
    nodes: int
    epsilon: float
    seed: int
    world: str
    accuracy: float


@dataclass(frozen=True)
class Difference:
    """Mean difference of accuracies over seeds, first minus second, with a 95 % interval (Student's t)."""

    first: str
    second: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """All runs of one data set, number of nodes and epsilon."""

    data: str
    nodes: int
    epsilon: float
    seeds: int
    means: dict[str, float]
    differences: list[Difference]


def cells(runs: Sequence[Run]) -> Iterator[Cell]:
    """Sum the runs up; every world has to have the same seeds."""

    def place(run: Run) -> tuple[str, int, float]:
        return run.data, run.nodes, run.epsilon

    for (data, nodes, epsilon), group in groupby(sorted(runs, key=place), key=place):
        by_world: dict[str, dict[int, float]] = {}
        for run in group:
            by_world.setdefault(run.world, {})[run.seed] = run.accuracy
        seeds = sorted(by_world[WORLDS[0]])
        scores = {world: np.array([found[seed] for seed in seeds]) for world, found in by_world.items()}
        pairs = [(one, other) for one, other in COMPARED if one in scores and other in scores]
        differences = [paired(one, other, scores[one] - scores[other]) for one, other in pairs]
        means = {world: float(scores[world].mean()) for world in WORLDS if world in scores}
        yield Cell(data, nodes, epsilon, len(seeds), means, differences)


def paired(first: str, second: str, differences: np.ndarray) -> Difference:
    """Mean and interval of differences, one a seed; without a second seed the interval is unbounded."""
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return Difference(first, second, mean, -math.inf, math.inf)
    half = float(student.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count))
    return Difference(first, second, mean, mean - half, mean + half)


def table(found: Sequence[Cell]) -> Table:
    """Accuracies, and differences in points."""
    compared = [f"{one} − {other}" for one, other in COMPARED]
    title = "held-out accuracy, mean over seeds, and paired differences in points with 95 % intervals"
    printed = Table("data", "nodes", "ε", "seeds", *WORLDS, *compared, title=title)
    for cell in found:
        worlds = [f"{cell.means[world]:.4f}" if world in cell.means else "" for world in WORLDS]
        by_pair = {(each.first, each.second): each for each in cell.differences}
        points = [_points(by_pair[pair]) if pair in by_pair else "" for pair in COMPARED]
        printed.add_row(cell.data, str(cell.nodes), f"{cell.epsilon:g}", str(cell.seeds), *worlds, *points)
    return printed


def plot(found: Sequence[Cell], path: Path) -> None:
    """Accuracy against epsilon, a panel for each data set and number of nodes, as SVG."""
    places = sorted({(cell.data, cell.nodes) for cell in found})
    rows = sorted({data for data, _ in places})
    columns = sorted({nodes for _, nodes in places})
    figure = Figure(figsize=(1 + 3.2 * len(columns), 0.8 + 2.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row")
    for data, nodes in places:
        axes = grid[rows.index(data)][columns.index(nodes)]
        here = [cell for cell in found if (cell.data, cell.nodes) == (data, nodes)]
        for world, colour in zip(WORLDS, COLOURS, strict=True):
            points = [(cell.epsilon, cell.means[world]) for cell in here if world in cell.means]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=world)
        axes.set_title(f"{data}, {nodes} nodes", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("ε", fontsize=9)
        axes.set_xticks([cell.epsilon for cell in here], [f"{cell.epsilon:g}" for cell in here])
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for row in grid:
        row[0].set_ylabel("held-out accuracy", fontsize=9)
    grid[0][0].legend(fontsize=7, loc="lower right")
    figure.savefig(path, format="svg", metadata={"Date": None})


def write(runs: Sequence[Run], found: Sequence[Cell], folder: Path) -> None:
    """Put ``accuracy.json`` and ``accuracy.svg`` into a folder; intervals of a single seed are null."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"runs": [asdict(run) for run in runs], "cells": [_finite(asdict(cell)) for cell in found]}
    write_bytes(folder / "accuracy.json", json.dumps(told, indent=1, allow_nan=False).encode())
    plot(found, folder / "accuracy.svg")


def _finite(cell: dict[str, object]) -> dict[str, object]:
    differences = cell["differences"]
    assert isinstance(differences, list)
    for each in differences:
        each |= {end: each[end] if math.isfinite(each[end]) else None for end in ("low", "high")}
    return cell


def _points(difference: Difference) -> str:
    return f"{100 * difference.mean:+.2f} ({100 * difference.low:+.2f} … {100 * difference.high:+.2f})"

"""The picture: scores against epsilon, rows of panels for data sets and metrics, a panel for each number of nodes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from common.durable import write_bytes
from simulations.benchmarks.distributed_noise.summary import Cell
from simulations.benchmarks.distributed_noise.worlds import WORLDS

STYLES = (
    ("#444444", "-", "o"),
    ("#8a5fbf", "--", "s"),
    ("#0a5fb4", "-", "^"),
    ("#3fa7a0", ":", "v"),
    ("#c4622d", "-", "D"),
)
"""Of the worlds: colour, line, marker; markers differ, so that the picture can be read without colours."""


def draw(found: Sequence[Cell], path: Path) -> None:
    """Write the picture as SVG."""
    rows = list(dict.fromkeys((cell.data, cell.metric) for cell in found))
    columns = sorted({cell.nodes for cell in found})
    figure = Figure(figsize=(1 + 3.2 * len(columns), 1.1 + 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row")
    for row, (data, metric) in zip(grid, rows, strict=True):
        for axes, nodes in zip(row, columns, strict=True):
            here = [cell for cell in found if (cell.data, cell.metric, cell.nodes) == (data, metric, nodes)]
            for world, (colour, line, marker) in zip(WORLDS, STYLES, strict=True):
                points = [(cell.epsilon, cell.means[world]) for cell in here]
                axes.plot(*zip(*points, strict=True), line, marker=marker, markersize=4, color=colour, label=world)
            axes.set_title(f"{data}, {nodes} nodes", fontsize=9)
            axes.set_xscale("log", base=2)
            axes.set_xticks([cell.epsilon for cell in here], [f"{cell.epsilon:g}" for cell in here])
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        row[0].set_ylabel(f"held-out {metric}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("ε", fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(WORLDS), loc="outside lower center", frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_bytes(path, drawn.getvalue())

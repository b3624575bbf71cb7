"""Counts in two dimensions as tiles, shaded by one colour that works on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from simulations.report import wording
from simulations.report.figures import SMALL, WIDTH
from simulations.report.svg import ACCENT, FONT_SIZE, INK, MUTED, ON_ACCENT, canvas


def heat_map(
    counts: np.ndarray, row_names: Sequence[str], column_names: Sequence[str], *, by_row: bool, xlabel: str, ylabel: str
) -> Figure:
    """Draw counts as tiles, darker for more.

    Args:
        counts: shape (rows, columns), non-negative.
        row_names: a name for each row.
        column_names: a name for each column.
        by_row: shade by the share of the row, instead of the largest count.
        xlabel: what the columns are.
        ylabel: what the rows are.
    """
    rows, columns = counts.shape
    tilted = max(map(len, column_names), default=0) > 3
    left, foot = 96.0 if max(map(len, row_names), default=0) > 4 else 46.0, 74.0 if tilted else 34.0
    width = max(WIDTH, left + 15.0 * columns + 12) if columns > 12 else WIDTH
    figure, axes = canvas(width, 19.0 * rows + foot + 20, left=left, right=12, top=20, bottom=foot)
    scale = counts.sum(axis=1, keepdims=True) if by_row else np.full((rows, 1), counts.max(initial=0))
    share = counts / np.maximum(scale, 1)
    axes.add_collection(tiles(share))
    if columns <= 14 and rows <= 40 and len(str(int(counts.max(initial=0)))) <= 4:
        write_counts(axes, counts, share)
    size = FONT_SIZE if columns <= 14 else SMALL
    names = [wording.shorten(name, 14) for name in column_names]
    axes.set_xticks(range(columns), names, color=INK, fontsize=size)
    if tilted:
        for tick in axes.get_xticklabels():
            tick.set(rotation=45, ha="right", va="top", rotation_mode="anchor")
    axes.set_yticks(range(rows), [wording.shorten(name) for name in row_names], color=INK)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    figure.text(0.5 * (1 + (left - 12) / width), 4 / (19.0 * rows + foot + 20), xlabel, color=MUTED, ha="center")
    figure.text(4 / width, 1 - 14 / (19.0 * rows + foot + 20), ylabel, color=MUTED)
    return figure


def tiles(share: np.ndarray) -> PolyCollection:
    """Return a tile for each cell, as opaque as its share."""
    rows, columns = share.shape
    corners = np.array([(-0.47, -0.46), (0.47, -0.46), (0.47, 0.46), (-0.47, 0.46)])
    centres = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 1, 2)
    colours = [(ACCENT, round(0.05 + 0.95 * float(value), 3)) for value in share.ravel()]
    return PolyCollection(list(centres + corners), facecolors=colours, edgecolors="none")


def write_counts(axes: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    """Write each cell's count into it; an empty cell stays empty."""
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = ON_ACCENT if share[row, column] > 0.5 else INK
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=colour, fontsize=SMALL)

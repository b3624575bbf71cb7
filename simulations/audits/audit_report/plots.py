"""The audit's plots: each takes plain numbers and returns a figure, drawn under ``svg.theme()``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from simulations.audits.findings import Vector
from simulations.report import wording
from simulations.report.figures import SMALL, STEPS, WIDTH
from simulations.report.svg import ACCENT, BAR, INK, LINE, MUTED, WARM, blank, canvas

SMALLEST_RATE = 1e-3
COLOURS = (ACCENT, WARM, INK, MUTED)
DASHES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (5, 2)), (0, (1.5, 1.5)))
ROW = 21.0  # points of one row
APART = 6.5  # points between two methods of one row
KEYS = 3  # entries of a legend beside each other
MARKERS = ("o", "D", "s", "^", "v", "P")


@dataclass(frozen=True)
class Roc:
    """True against false positives, both ascending, each shape (k,); ``group`` shares a colour."""

    name: str
    false_positives: Vector
    true_positives: Vector
    group: int
    style: int = 0


@dataclass(frozen=True)
class Range:
    """A lower bound with its point estimate; ``conditional`` ones are drawn hollow, each attack has a row."""

    attack: str
    method: str
    low: float
    estimate: float | None
    conditional: bool
    alarming: bool = False


def roc_of(scores_in: Vector, scores_out: Vector) -> tuple[Vector, Vector]:
    """Return false and true positive rates of all thresholds, ascending, shape (k,) each; higher scores say "in"."""
    thresholds = np.unique(np.concatenate([scores_in, scores_out]))[::-1]
    false = 1 - np.searchsorted(np.sort(scores_out), thresholds, side="left") / len(scores_out)
    true = 1 - np.searchsorted(np.sort(scores_in), thresholds, side="left") / len(scores_in)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def allowed(epsilon: float, delta: float, false_positives: Vector) -> Vector:
    """Return the most true positives that (ε, δ)-DP leaves at each rate of false positives, shape (k,).

    Source: Kairouz et al. 2015, arXiv:1311.0776.
    """
    if epsilon == math.inf:
        return np.ones_like(false_positives)
    steep = math.exp(min(epsilon, 700.0)) * false_positives + delta
    flat = 1 - math.exp(-epsilon) * (1 - delta - false_positives)
    return np.minimum(np.minimum(steep, flat), 1.0)


def roc(curves: Sequence[Roc], epsilon: float, delta: float) -> Figure:
    """Draw curves on log axes, with what the promise allows at most."""
    legend = 13.0 * math.ceil((len(curves) + 2) / 2)
    figure, axes = canvas(WIDTH, 258 + legend, left=46, right=12, top=8, bottom=44 + legend)
    grid = np.geomspace(SMALLEST_RATE, 1, 200)
    if epsilon < math.inf:
        limit = allowed(epsilon, delta, grid)
        axes.fill_between(grid, limit, 1.0, color=WARM, alpha=0.08, linewidth=0)
        axes.plot(grid, limit, color=WARM, linewidth=1.2, linestyle=(0, (4, 3)), label="most that the promise allows")
    axes.plot(grid, grid, color=BAR, linewidth=1, label="blind guessing")
    for curve in curves:
        x, y = visible(curve.false_positives, curve.true_positives)
        colour = (ACCENT, INK, MUTED, BAR)[curve.group % 4]
        axes.plot(x, y, color=colour, linewidth=1.5, linestyle=DASHES[curve.style % 3], label=curve.name)
    axes.set(xscale="log", yscale="log", xlim=(SMALLEST_RATE, 1), ylim=(SMALLEST_RATE, 1.15))
    axes.set(xlabel="false positives: said to be in, but was not")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10, numticks=5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: percent_tick(value)))
    axes.grid()
    axes.set_ylabel("true positives", labelpad=2)
    below = (0, -38 / 206)  # of the axes' height: under the label
    axes.legend(loc="upper left", bbox_to_anchor=below, ncols=2, fontsize=SMALL, borderaxespad=0, labelspacing=0.3)
    return figure


def visible(false_positives: Vector, true_positives: Vector) -> tuple[Vector, Vector]:
    """Return at most 400 points of a step curve on log axes, from the smallest rate that was measured."""
    measured = false_positives[false_positives > 0].min(initial=1.0)
    grid = np.geomspace(min(max(SMALLEST_RATE, measured), 0.999), 1, 400)
    places = np.searchsorted(false_positives, grid, side="right") - 1
    rates = true_positives[np.maximum(places, 0)]
    shown = (rates > 0) & (places >= 0)
    return grid[shown], rates[shown]


def percent_tick(value: float) -> str:
    """Write a tick in per cent, as short as it goes.

    >>> percent_tick(0.001), percent_tick(1.0)
    ('0.1\u202f%', '100\u202f%')
    """
    return f"{100 * value:g}{wording.THIN}%"


def ranges(items: Sequence[Range], epsilon: float) -> Figure:
    """Draw each lower bound with its point estimate, a row for each attack, under the promised ε."""
    rows, methods = list(dict.fromkeys(one.attack for one in items)), list(dict.fromkeys(one.method for one in items))
    finite = [value for one in items for value in (one.low, one.estimate or 0.0) if math.isfinite(value)]
    most = 1.08 * max([0.5, *finite, *([epsilon] if math.isfinite(epsilon) else [])])
    pitch, top = max(ROW, APART * len(methods) + 6), 15.0 * math.ceil((len(methods) + 1) / KEYS) + 8
    figure, axes = canvas(2 * WIDTH, pitch * len(rows) + top + 40, left=140, right=20, top=top, bottom=34)
    for one in items:
        place = len(rows) - 1 - rows.index(one.attack)
        shift = (len(methods) - 1) / 2 - methods.index(one.method)
        draw_range(axes, place + shift * APART / pitch, one, methods.index(one.method), most)
    for name in methods:
        hollow = any(one.conditional for one in items if one.method == name)
        marker, fill = MARKERS[methods.index(name) % len(MARKERS)], "none" if hollow else ACCENT
        axes.plot([], [], marker, color=ACCENT, markerfacecolor=fill, label=name + (", conditional" if hollow else ""))
    if math.isfinite(epsilon):
        name = f"promise: ε = {wording.epsilon(epsilon)}"
        axes.axvline(epsilon, color=WARM, linewidth=1.4, linestyle=(0, (4, 3)), label=name)
    axes.set(xlim=(-0.015 * most, most), ylim=(-0.55, len(rows) - 0.45), xlabel="ε that an attack shows")
    axes.set_yticks(range(len(rows)), rows[::-1], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=STEPS))
    axes.grid(axis="x")
    axes.hlines(np.arange(len(rows) - 1) + 0.5, -0.015 * most, most, color=LINE, linewidth=0.5)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=KEYS, borderaxespad=0.4, columnspacing=1.4)
    return figure


def draw_range(axes: Axes, row: float, one: Range, method: int, most: float) -> None:
    """Draw one bound: a mark, filled where it rests on no assumption, and a line up to the estimate."""
    colour = WARM if one.alarming else ACCENT
    low = min(one.low, most)
    if one.estimate is not None and one.estimate > one.low:
        axes.plot([low, min(one.estimate, most)], [row, row], color=colour, linewidth=1.4, alpha=0.5)
        axes.plot(min(one.estimate, most), row, "|", color=colour, markersize=6)
    fill = "none" if one.conditional else colour
    marker = MARKERS[method % len(MARKERS)]
    axes.plot(low, row, marker, color=colour, markersize=5.5, markerfacecolor=fill, clip_on=False, zorder=3)


def vulnerability(samples: Mapping[str, Vector]) -> Figure:
    """Draw how vulnerable single records are: one histogram under the other, over the same bins."""
    values = np.concatenate(list(samples.values()))
    edges = np.linspace(0.0, max(0.1, float(values.max())), 41)
    height = 92.0 * len(samples) + 36
    figure = blank(WIDTH, height)
    place = {"left": 36 / WIDTH, "right": 1 - 12 / WIDTH, "bottom": 34 / height, "top": 1 - 22 / height, "hspace": 0.5}
    panels = figure.subplots(len(samples), 1, sharex=True, squeeze=False, gridspec_kw=place)[:, 0]
    for axes, (name, sample), colour in zip(panels, samples.items(), COLOURS, strict=False):
        axes.patch.set_visible(False)
        axes.hist(sample, bins=edges, color=colour, rwidth=0.9, alpha=0.85)
        axes.axvline(float(np.median(sample)), color=INK, linewidth=1.2)
        axes.text(0, 1.05, name, transform=axes.transAxes, color=colour)
        axes.text(1, 1.05, "records", transform=axes.transAxes, color=MUTED, ha="right", fontsize=SMALL)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        axes.grid(axis="y")
    panels[-1].set(xlim=(edges[0], edges[-1]), xlabel="chance that one record is found, at 1\u202f% false alarms")
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_tick(value)))
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=6, steps=STEPS))
    return figure


def readings(items: Sequence[tuple[str, float, float]]) -> Figure:
    """Draw, for each (label, error, chance), how far a reading is from the truth, chance being one.

    Zero is a perfect reading; at one the update tells nothing.
    """
    figure, axes = canvas(WIDTH, 1.2 * ROW * len(items) + 58, left=150, right=74, top=22, bottom=34)
    ratios = [error / chance if chance > 0 else math.nan for _, error, chance in items]
    most = min(1.15 * max([1.0, *(ratio for ratio in ratios if math.isfinite(ratio))]), 3.0)
    for row, ((_, error, chance), ratio) in enumerate(zip(reversed(items), reversed(ratios), strict=True)):
        if math.isfinite(ratio):
            axes.barh(row, min(ratio, most), height=0.55, color=WARM if ratio < 0.5 else BAR)
        text = f"{small(error)} of {small(chance)}"
        right = axes.get_yaxis_transform()
        axes.text(1.02, row, text, transform=right, va="center", color=INK, fontsize=SMALL)
    axes.axvline(1.0, color=MUTED, linewidth=1, linestyle=(0, (1.5, 2)))
    axes.text(1.0, len(items) - 0.4, "guessing", ha="center", va="bottom", color=MUTED, fontsize=SMALL)
    axes.axvline(0, color=LINE, linewidth=1, clip_on=False)
    axes.set(xlim=(0, most), ylim=(-0.6, len(items) - 0.4), xlabel="error of the reading ÷ error of a guess")
    axes.set_yticks(range(len(items)), [label for label, _, _ in reversed(items)], color=INK, fontsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=STEPS))
    return figure


def small(value: float) -> str:
    """Write an error in two digits; what is below a thousandth is as good as none.

    >>> small(0.379), small(5e-16), small(52.1)
    ('0.38', '< 0.001', '52')
    """
    return "< 0.001" if value < 0.001 else f"{value:.2g}"

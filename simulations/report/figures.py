"""The report's plots: each takes plain numbers and returns a figure, drawn under ``svg.theme()``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from simulations.report import wording
from simulations.report.svg import ACCENT, BAR, FONT_SIZE, INK, LINE, MUTED, WARM, blank, canvas

WIDTH = 360.0  # points
SMALL = FONT_SIZE - 1
LABEL_GAP = 11.5  # points between two labels' middles
STEPS = (1, 2, 5, 10)  # distances between ticks
MARKED = 40  # up to so many points, each gets a dot


@dataclass(frozen=True)
class Bar:
    """One bar: ``value`` and ``spread`` are fractions; ``ours`` marks the run itself."""

    label: str
    value: float
    spread: float | None = None
    ours: bool = False


def bars(items: Sequence[Bar], chance: float | None) -> Figure:
    """Draw accuracies as bars with their numbers, and the chance level as a dotted line."""
    height = 34.0 * len(items) + 26
    figure, axes = canvas(WIDTH, height, left=112, right=74, bottom=18)
    for row, bar in enumerate(reversed(items)):
        axes.barh(row, bar.value, height=0.62, color=ACCENT if bar.ours else BAR)
        if bar.spread is not None:
            axes.plot([bar.value - bar.spread, bar.value + bar.spread], [row, row], color=INK, linewidth=1.2)
        edge = min(bar.value + (bar.spread or 0), 1.0)
        weight = "bold" if bar.ours else "normal"
        axes.text(edge + 0.015, row, bar_number(bar), va="center", color=INK, fontweight=weight)
        axes.text(-0.015, row, bar.label, va="center", ha="right", color=INK, fontweight=weight)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(items) - 0.4), xticks=[], yticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.axvline(0, color=LINE, linewidth=1, clip_on=False)
    if chance is not None:
        axes.axvline(chance, color=MUTED, linewidth=1, linestyle=(0, (1.5, 2)))
        axes.text(
            chance, -0.85, f"chance {wording.percent(chance)}", color=MUTED, fontsize=SMALL, ha="center", va="top"
        )
    return figure


def bar_number(bar: Bar) -> str:
    """Return a bar's own label."""
    return wording.percent(bar.value) + (f" ± {100 * bar.spread:.1f}" if bar.spread is not None else "")


@dataclass(frozen=True)
class Curve:
    """Values over rounds."""

    rounds: Sequence[int]
    values: Sequence[float]


def over_rounds(
    curves: Sequence[Curve],
    *,
    label: str,
    references: Mapping[str, float],
    as_percent: bool = False,
    unit: str = "",
    troubled: Sequence[int] = (),
) -> Figure:
    """Draw a value over rounds.

    Args:
        curves: one for each seed; several are drawn faintly under their mean.
        label: what the value is, written at the end of the line.
        references: levels to compare with, name -> value.
        as_percent: the values are fractions.
        unit: written after the value at the end of the line.
        troubled: rounds in which a node failed, marked at the foot.
    """
    figure, axes = canvas(WIDTH, 210, left=36, right=90 if references else 60, top=10)
    line = mean_curve(curves)
    for curve in curves if len(curves) > 1 else ():
        axes.plot(curve.rounds, curve.values, color=ACCENT, linewidth=0.9, alpha=0.35)
    axes.plot(
        line.rounds, line.values, color=ACCENT, marker="o" if len(line.rounds) <= MARKED else None, markersize=3.2
    )
    levels = [*line.values, *references.values(), *(value for curve in curves for value in curve.values)]
    low, high = value_range(levels, top=1.0) if as_percent else (min(0.0, *levels), 1.08 * max(levels) or 1.0)
    last = max([line.rounds[-1], *(curve.rounds[-1] for curve in curves)])
    axes.set(xlim=(min(line.rounds[0], 1), max(last, 2)), ylim=(low, high), xlabel="round")
    if troubled:
        axes.plot(troubled, [low] * len(troubled), "^", color=WARM, markersize=5, clip_on=False)
    write = wording.percent if as_percent else wording.plain
    rule(axes, as_percent)
    ends = [(line.values[-1], f"{label} {write(round_off(line.values[-1]))} {unit}".strip(), ACCENT)]
    for name, value in references.items():
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ends.append((value, f"{name} {write(round_off(value))}", MUTED))
    end_labels(axes, ends)
    return figure


def spending(rounds: Sequence[int], epsilons: Sequence[float], budget: float | None) -> Figure:
    """Draw the worst node's ε over rounds under the budget."""
    figure, axes = canvas(WIDTH, 210, left=36, right=90, top=10)
    xs, ys = [0, *rounds], [0.0, *epsilons]
    axes.fill_between(xs, ys, color=ACCENT, alpha=0.12, linewidth=0)
    axes.plot(xs, ys, color=ACCENT, marker="o" if len(xs) <= MARKED else None, markersize=3.2)
    ends = [(ys[-1], f"spent {wording.epsilon(ys[-1])}", ACCENT)]
    if budget is not None:
        axes.axhline(budget, color=WARM, linewidth=1.4, linestyle=(0, (4, 3)))
        ends.append((budget, f"budget {wording.epsilon(budget)}", WARM))
    highest = max(max(ys), budget or 0, 1e-9)
    axes.set(xlim=(0, max(xs[-1], 1)), ylim=(0, highest * 1.12), xlabel="round")
    rule(axes, as_percent=False)
    end_labels(axes, ends)
    return figure


def together(lines: Mapping[str, Curve]) -> Figure:
    """Draw up to three values over rounds in one plot, each named at its end."""
    figure, axes = canvas(WIDTH, 190, left=36, right=90, top=10)
    colours = dict(zip(lines, (ACCENT, WARM, MUTED), strict=False))
    for name, line in lines.items():
        axes.plot(line.rounds, line.values, color=colours[name])
    values = [value for line in lines.values() for value in line.values]
    last = max(line.rounds[-1] for line in lines.values())
    axes.set(xlim=(1, max(last, 2)), ylim=(min(0.0, *values), 1.08 * max(values) or 1.0), xlabel="round")
    rule(axes, as_percent=False)
    end_labels(axes, [(line.values[-1], name, colours[name]) for name, line in lines.items()])
    return figure


def replies(rounds: Sequence[int], replied: Sequence[int], failed: Sequence[int]) -> Figure:
    """Draw how many nodes replied and failed in each round."""
    figure, axes = canvas(WIDTH, 150, left=36, right=94, top=10)
    axes.bar(rounds, replied, width=0.78, color=BAR)
    axes.bar(rounds, failed, width=0.78, bottom=replied, color=WARM)
    tallest = max(max(map(sum, zip(replied, failed, strict=True))), 1)
    axes.set(xlim=(min(rounds) - 0.6, max(rounds) + 0.6), ylim=(0, tallest * 1.08), xlabel="round")
    rule(axes, as_percent=False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    end_labels(axes, [(replied[-1] / 2, "replied", MUTED), (tallest, f"failed ({sum(failed)} in all)", WARM)])
    return figure


@dataclass(frozen=True)
class NodeScore:
    """A node's accuracy with the federated head and with a head trained on its own data alone."""

    name: str
    federated: float
    alone: float | None


def dumbbells(scores: Sequence[NodeScore]) -> Figure:
    """Draw both accuracies of each node on a line of its own, the best federated one first."""
    ordered = sorted(scores, key=lambda score: score.federated)
    figure, axes = canvas(WIDTH, 15.0 * len(ordered) + 52, left=100, right=44, top=20, bottom=32)
    for row, score in enumerate(ordered):
        if score.alone is not None:
            axes.plot([score.alone, score.federated], [row, row], color=LINE, linewidth=3, zorder=1)
            axes.plot(score.alone, row, "o", color=WARM, markersize=6)
        axes.plot(score.federated, row, "D", color=ACCENT, markersize=5.5)
        axes.annotate(
            wording.percent(score.federated),
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=ACCENT,
            fontsize=SMALL,
        )
    values = [value for score in ordered for value in (score.federated, score.alone) if value is not None]
    low, high = value_range(values, top=1.0)
    axes.set(xlim=(low, high), ylim=(-0.7, len(ordered) - 0.3), xlabel="accuracy")
    axes.set_yticks(range(len(ordered)), [wording.shorten(score.name) for score in ordered], color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.percent(value, 0)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=STEPS))
    axes.grid(axis="x")
    key = [("◆ federated", ACCENT, 0.0)]
    if any(score.alone is not None for score in ordered):
        key.append(("● alone", WARM, 0.32))
    for text, colour, x in key:
        axes.text(x, 1.0, text, transform=axes.transAxes, color=colour, va="bottom")
    return figure


def histograms(series: Mapping[str, Sequence[float]], *, xlabel: str, as_percent: bool) -> Figure:
    """Draw how many nodes have which value: one histogram under the other over the same bins, each with its median."""
    height = 92.0 * len(series) + 36
    figure = blank(WIDTH, height)
    place = {"left": 36 / WIDTH, "right": 1 - 12 / WIDTH, "bottom": 34 / height, "top": 1 - 22 / height, "hspace": 0.45}
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False, gridspec_kw=place)[:, 0]
    edges = bin_edges([value for sample in series.values() for value in sample])
    for axes, (name, sample), colour in zip(panels, series.items(), (ACCENT, WARM), strict=False):
        axes.patch.set_visible(False)
        axes.hist(sample, bins=edges, color=colour, rwidth=0.9, alpha=0.85)
        median = float(np.median(sample))
        axes.axvline(median, color=INK, linewidth=1.2)
        text = f"{name} median {wording.percent(median) if as_percent else wording.plain(median)}".strip()
        axes.text(0, 1.05, text, transform=axes.transAxes, color=colour)
        axes.text(1, 1.05, "number of nodes", transform=axes.transAxes, color=MUTED, ha="right", fontsize=SMALL)
        rule(axes, as_percent=False)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    last = panels[-1]
    last.set(xlim=(edges[0], edges[-1]), xlabel=xlabel)
    last.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=STEPS, integer=not as_percent))
    if as_percent:
        last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.percent(value, 0)))
    return figure


def bin_edges(values: Sequence[float]) -> list[float]:
    """Return about 30 bins; few whole numbers get one bin each."""
    low, high = min(values), max(values)
    if all(value == int(value) for value in values) and high - low <= 40:
        return [number - 0.5 for number in range(int(low), int(high) + 2)]
    return [float(edge) for edge in np.histogram_bin_edges(values, bins=30)]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average the curves over the rounds that all of them have, or return the first one."""
    common = sorted(set.intersection(*(set(curve.rounds) for curve in curves)))
    if len(curves) == 1 or not common:
        return curves[0]
    lookup = [dict(zip(curve.rounds, curve.values, strict=True)) for curve in curves]
    return Curve(common, [sum(table[number] for table in lookup) / len(lookup) for number in common])


def value_range(values: Sequence[float], top: float) -> tuple[float, float]:
    """Return an axis range with air around the values, hardly above ``top`` and, for positive values, above zero."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    floor = 0.0 if low >= 0 else -math.inf
    return max(low - air, floor), min(high + air, top + 0.012)


def rule(axes: Axes, as_percent: bool) -> None:
    """Give a plot over rounds its ticks and horizontal rules."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=STEPS))
    if as_percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.percent(value, 0)))
    axes.grid(axis="y")


def end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (value, text, colour) labels right of the plot, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    height = axes.get_position().height * figure.get_size_inches()[1] * 72  # points
    ordered = sorted(ends)
    wanted = [(value - low) / (high - low) * height for value, _, _ in ordered]
    for y, (_, text, colour) in zip(spaced(wanted, height), ordered, strict=True):
        axes.annotate(
            text,
            (1, 0),
            (6, y),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=SMALL,
        )


def spaced(positions: Sequence[float], height: float) -> list[float]:
    """Move ascending positions up, then down, as little as gives each ``LABEL_GAP``.

    >>> spaced([10.0, 12.0, 200.0], 200.0)
    [10.0, 21.5, 200.0]
    """
    placed: list[float] = []
    for position in positions:
        placed.append(max(position, placed[-1] + LABEL_GAP) if placed else position)
    ceiling = max(height, positions[-1])
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - LABEL_GAP
    return placed


def round_off(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")

"""Results as a table with ratios, as a plot, and as the page in ``docs/``."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil
import torch
from matplotlib.figure import Figure

from common.durable import write_bytes

OURS = "fedgraft"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ROOM_FOR_NOTES = 8.0  # times the longest bar
TITLES = (
    "work",
    "program",
    "wall, s",
    "wall ÷ ours",
    "processor, s",
    "÷ ours",
    "memory, GB",
    "÷ ours",
    "a round, ms",
    "÷ ours",
    "accuracy",
    "ε",
)
PAGE = f"""# Performance beside other frameworks

The same work in fedgraft and in other frameworks, each in an environment of its own.

{BEGIN}
{END}
"""


@dataclass(frozen=True)
class Row:
    """One program on one work.

    Attributes:
        work: its name.
        program: its name.
        wall_s: of the whole process, imports included; None when it did not run to its end.
        processor_s: of its whole process tree.
        peak_bytes: of its whole process tree.
        round_s: median over the rounds, by the program's own clock.
        accuracy: on the held-out images.
        epsilon: over the run, largest of the nodes.
        unit: of that epsilon: image or node.
        problem: why there are no figures.
        at_least_s: when it was stopped: after so long.
        walls: wall seconds of all its runs, where it ran more than once; the row is that of the median.
    """

    work: str
    program: str
    wall_s: float | None = None
    processor_s: float | None = None
    peak_bytes: int | None = None
    round_s: float | None = None
    accuracy: float | None = None
    epsilon: float | None = None
    unit: str = ""
    problem: str = ""
    at_least_s: float | None = None
    walls: tuple[float, ...] = ()


def median(rows: Sequence[Row]) -> Row:
    """One row for several runs of a program: that of the median wall time, of an even number the longer one.

    A run that failed is shown instead of any that did not.
    """
    failed = [row for row in rows if row.problem]
    if failed or len(rows) == 1:
        return (failed or rows)[0]
    in_order = sorted(rows, key=lambda row: row.wall_s or 0.0)
    return replace(in_order[len(rows) // 2], walls=tuple(row.wall_s or 0.0 for row in in_order))


def cells(row: Row, ours: Row | None) -> tuple[str, ...]:
    """A row's cells under ``TITLES``; ratios to ours on the same work."""
    if row.problem:
        ratio = ""
        if row.at_least_s is not None and ours is not None and ours.wall_s:
            ratio = f"> {row.at_least_s / ours.wall_s:.1f}"
        return (row.work, row.program, row.problem, ratio, *[""] * (len(TITLES) - 4))
    memory = None if row.peak_bytes is None else row.peak_bytes / 1e9
    own = ours or Row(row.work, OURS)
    return (
        row.work,
        row.program,
        _figure(row.wall_s, 1) + (f" ({row.walls[0]:,.1f} to {row.walls[-1]:,.1f})" if row.walls else ""),
        _ratio(row.wall_s, own.wall_s),
        _figure(row.processor_s, 1),
        _ratio(row.processor_s, own.processor_s),
        _figure(memory, 2),
        _ratio(row.peak_bytes, own.peak_bytes),
        _figure(None if row.round_s is None else 1000 * row.round_s, 1),
        _ratio(row.round_s, own.round_s),
        _figure(row.accuracy, 3),
        "" if row.epsilon is None else f"{row.epsilon:.2f}, {row.unit}",
    )


def all_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Every row's cells, each beside ours of the same work."""
    ours = {row.work: row for row in rows if row.program == OURS and not row.problem}
    return [cells(row, ours.get(row.work)) for row in rows]


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [TITLES, ("---",) * len(TITLES), *all_cells(rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def write_page(path: Path, measured: str) -> None:
    """Put this between the page's markers; a page that is not there is made, one without markers gets them."""
    page = path.read_text(encoding="utf-8") if path.exists() else PAGE
    if BEGIN not in page or END not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    write_bytes(path, f"{before}{BEGIN}\n{measured.strip()}\n{END}{after}".encode())


def plot(rows: Sequence[Row], path: Path) -> None:
    """Wall seconds of every program on every work, side by side, as SVG; bars of those that were stopped are open."""
    done = [row for row in rows if row.at_least_s or (not row.problem and row.wall_s)]
    figure = Figure(figsize=(9, 1.2 + 0.26 * max(1, len(done))), layout="constrained")
    axes = figure.add_subplot()
    ours = {row.work: row.wall_s for row in done if row.program == OURS}
    labels = [f"{row.work}  {row.program}" for row in done]
    walls = [row.wall_s or row.at_least_s or 0.0 for row in done]
    colours = ["#0a5fb4" if row.program == OURS else "#a9b3bf" for row in done]
    bars = axes.barh(range(len(done)), walls, color=colours)
    for bar, row in zip(bars, done, strict=True):
        bar.set(hatch="///" if row.at_least_s else "", edgecolor="white")
    notes = [_note(row, wall, ours.get(row.work)) for row, wall in zip(done, walls, strict=True)]
    axes.bar_label(bars, notes, padding=3, fontsize=8)
    axes.set_yticks(range(len(done)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(right=ROOM_FOR_NOTES * max(walls, default=1.0))
    axes.set_xlabel("seconds of wall time, whole process, logarithmic", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def machine() -> str:
    """Processor, cores, memory and system, in a line; nothing that names this machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))):
        model = found[1]
    cores, memory = psutil.cpu_count(), psutil.virtual_memory().total / 2**30
    model += f" ({torch.backends.cpu.get_cpu_capability()})"
    return f"{model}, {cores} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def versions(peers: Mapping[str, str]) -> str:
    """Versions of ours, of what all share, and of the peers by name."""
    shared = ("fedgraft", "torch", "torchvision", "numpy")
    own = [f"{name} {metadata.version(name)}" for name in shared]
    return ", ".join([*own, *[f"{name} {version}" for name, version in peers.items()]])


def _note(row: Row, wall_s: float, ours: float | None) -> str:
    over = "over " if row.at_least_s else ""
    times = "" if row.program == OURS or not ours else f", {over}{wall_s / ours:.1f} times"
    return f"{over}{wall_s:.1f} s{times}"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, ours: float | None) -> str:
    return "" if value is None or not ours else f"{value / ours:.1f}"

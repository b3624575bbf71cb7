"""Matplotlib figures as inline SVG that takes its colours and fonts from the page, light or dark.

A figure is drawn in placeholder colours; on the way out each becomes the page's CSS variable of that role. Text stays
text, in the page's font, so that it can be selected, searched and read out.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from simulations.report.markup import Markup, element

# role -> placeholder; the page's style sheet defines --ink, --muted, ...
INK, MUTED, LINE = "#010203", "#020304", "#030405"
ACCENT, WARM, BAR, ON_ACCENT = "#040506", "#050607", "#060708", "#070809"
ROLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    ACCENT: "accent",
    WARM: "warm",
    BAR: "bar",
    ON_ACCENT: "on-accent",
}
POINTS_PER_INCH = 72
FONT_SIZE = 9.5  # points; a figure of 360 points is shown 360 to 540 pixels wide
THEME: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": FONT_SIZE,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedgraft",
    "text.parse_math": False,  # names of classes and nodes may hold "$"
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


def theme() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn; it starts from Matplotlib's defaults, not the user's."""
    settings: Any = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    settings.update(THEME)
    return mpl.rc_context(settings)


def canvas(
    width: float, height: float, *, left: float = 34, right: float = 8, top: float = 6, bottom: float = 34
) -> tuple[Figure, Axes]:
    """Return an empty figure and its one axes; all lengths in points, margins included in the size."""
    figure = blank(width, height)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    return figure, axes


def blank(width: float, height: float) -> Figure:
    """Return a transparent figure without axes, its size in points."""
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    return figure


def plate(name: str, title: str, figure: Figure, description: str, *note: str, wide: bool = False) -> Markup:
    """Return a titled figure with a note under it.

    Args:
        name: unique on the page.
        title: the heading over the plot.
        figure: drawn under ``theme()``.
        description: what it shows, for readers who cannot see it.
        note: what is said under the plot.
        wide: scrolls sideways on a narrow screen, instead of shrinking out of sight.
    """
    svg = inline_svg(figure, name, description)
    if wide:
        svg = element("div", svg, class_="scroll", tabindex="0", role="region", aria_label=title)
    return element(
        "figure",
        element("h3", title),
        svg,
        element("figcaption", *note) if note else None,
        class_="wide" if wide else None,
    )


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as an SVG element for an HTML page.

    Args:
        figure: drawn under ``theme()``.
        name: unique on the page; prefixes the identifiers inside.
        description: what the figure shows, for readers who cannot see it.

    Guarantees:
        No reference leads out of the element, and no identifier clashes with another figure's.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")  # the reader's fonts will have it
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg[svg.index("<svg") :])
    used = frozenset(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", svg))
    svg = re.sub(r"<[^>]*>", lambda tag: adopted(tag[0], name, used), svg)  # tags only: names in texts stay as they are
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def adopted(tag: str, name: str, used: frozenset[str]) -> str:
    """Return a tag in the page's colours, its identifiers prefixed, or dropped where nothing refers to them."""
    if tag.startswith("<svg"):
        tag = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", tag)
    tag = re.sub(r'\sid="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", tag)
    tag = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', tag)
    tag = tag.replace("url(#", f"url(#{name}-")
    return re.sub(r"#0[1-7]0[2-8]0[3-9]", lambda match: f"var(--{ROLES[match[0]]})", tag)

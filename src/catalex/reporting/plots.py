"""Plots as inline SVG: small panels side by side that follow the light or dark scheme of their page.

Text and axes take the page's colour (``currentColor``), text stays text. Needs matplotlib (extra ``report``),
which is imported only when a plot is drawn.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

INK = "#010203"
"""Stands for the colour of the page's text until the SVG is written."""

COLOURS = ("#3f7fd4", "#d9702b", "#2a9d78", "#b45aa0", "#a48a12", "#7a6fd0", "#c24d5a", "#7f8a94")
"""Mid-tones that are legible on white and on near-black; told apart by marker and dash as well."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
MOST_POINTS = 400
"""Points a line; longer curves are thinned, which the eye cannot see."""
COLUMNS = 3
"""Panels in a row."""


@dataclass(frozen=True)
class Series:
    """Named points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class LinePanel:
    """Lines over one pair of axes."""

    title: str
    x_label: str
    series: Sequence[Series]
    log: bool = False


@dataclass(frozen=True)
class BarPanel:
    """Points over named groups; x of a series counts the groups."""

    title: str
    groups: Sequence[str]
    series: Sequence[Series]


@dataclass(frozen=True)
class Dot:
    """A mean with its standard deviation; `ours` is drawn filled."""

    label: str
    mean: float
    deviation: float | None
    ours: bool


@dataclass(frozen=True)
class DotPanel:
    """Systems of one domain, best first."""

    title: str
    dots: Sequence[Dot]


def lines(panels: Sequence[LinePanel]) -> str:
    """Line plots with a shared legend."""
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    legend = any(len(panel.series) > 1 for panel in panels)

    def draw(axes: Any, panel: LinePanel) -> None:
        for series in panel.series:
            i = labels.index(series.label) if legend else 0
            step = max(1, math.ceil(len(series.x) / MOST_POINTS))
            few = len(series.x) <= 20
            axes.plot(
                series.x[::step], series.y[::step], label=series.label, color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i // len(COLOURS) % 4], marker=MARKERS[i % 8] if few else None, markersize=4,
            )  # fmt: skip
        if panel.log and any(y > 0 for series in panel.series for y in series.y):
            axes.set_yscale("log", nonpositive="mask")
            # The usual labels of powers are formulas, and formulas are off: a domain's name may hold a "$".
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        elif len(panel.series) and all(float(x).is_integer() for s in panel.series for x in s.x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(panel.x_label)

    return _figure(panels, draw, 2.3, labels if legend else [])


def bars(panels: Sequence[BarPanel], y_label: str, x_label: str) -> str:
    """A line of points over groups for each series."""
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))

    def draw(axes: Any, panel: BarPanel) -> None:
        for series in panel.series:
            i = labels.index(series.label)
            axes.plot(
                series.x, series.y, label=series.label, color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i // len(COLOURS) % 4], marker=MARKERS[i % 8], markersize=5,
            )  # fmt: skip
        axes.set_xticks(range(len(panel.groups)), panel.groups)
        axes.set_xlim(-0.3, len(panel.groups) - 0.7)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(y_label)
        axes.set_xlabel(x_label)

    return _figure(panels, draw, 2.5, labels)


def dots(panels: Sequence[DotPanel], x_label: str) -> str:
    """One row a system with its mean and spread; ours filled, baselines hollow."""

    def draw(axes: Any, panel: DotPanel) -> None:
        for row, dot in enumerate(panel.dots):
            colour = COLOURS[0] if dot.ours else COLOURS[7]
            axes.errorbar(
                dot.mean, row, xerr=dot.deviation or None, color=colour, marker="o", markersize=7, capsize=3,
                markerfacecolor=colour if dot.ours else "none",
            )  # fmt: skip
        axes.set_yticks(range(len(panel.dots)), [dot.label for dot in panel.dots])
        axes.set_ylim(len(panel.dots) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(x_label)

    tallest = max(len(panel.dots) for panel in panels)
    return _figure(panels, draw, 0.9 + 0.3 * tallest, [])


def _figure(
    panels: Sequence[Any], draw: Callable[[Any, Any], None], height: float, legend: Sequence[str]
) -> str:
    """Panels in rows of `COLUMNS`, each `height` inches tall, with a legend below."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend_rows = math.ceil(len(legend) / 3)
    width = columns * {1: 5.2, 2: 4.4, 3: 3.4}[columns]
    with _style():
        figure = Figure(figsize=(width, height * rows + 0.24 * legend_rows), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        handles: dict[str, Any] = {}
        for axes, panel in zip(grid, panels, strict=False):
            draw(axes, panel)
            axes.set_title(panel.title, loc="left")
            handles.update({label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True)})
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        if legend:
            figure.legend(
                [handles[label] for label in legend if label in handles],
                [label for label in legend if label in handles],
                loc="outside lower left", ncols=min(3, len(legend)), frameon=False,
            )  # fmt: skip
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue())


@contextmanager
def _style() -> Iterator[None]:
    """Quiet axes, transparent ground, the page's own font, the same bytes every time."""
    import matplotlib

    settings: dict[str, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "catalex", "font.family": "DejaVu Sans", "font.size": 9,
        "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 10, "axes.titleweight": "bold",
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.grid": True,
        "grid.color": INK, "grid.alpha": 0.13, "grid.linewidth": 0.6, "lines.linewidth": 1.6,
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
        "axes.formatter.useoffset": False, "legend.fontsize": 8.5,
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A domain may have a name in any script; the reader's font shows it, matplotlib only measures.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _inline(svg: str) -> str:
    """An SVG file as an element of a page: no prologue, metadata, namespaces or fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"""\s(xmlns(:\w+)?|version)=("[^"]*"|'[^']*')""", "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "inherit")
    # Without a fixed size the plot shrinks with the page; the view box keeps its proportions.
    return re.sub(r'(<svg[^>]*?)\swidth="([\d.]+)pt"([^>]*?)', r'\1 style="--natural:\2pt"\3', svg, count=1)


def with_prefix(svg: str, prefix: str) -> str:
    """The SVG with every id, and every reference to one, begun with `prefix`."""
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r'xlink:href="#([^"]*)"', rf'href="#{prefix}-\1"', svg)

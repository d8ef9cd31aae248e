"""The figure of where the runs ended under crossed conditions: an annotated map for each algorithm, and the worst."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedbilevel.figures.canvas import INK, head, head_height, look, save
from fedbilevel.figures.curves import Vector
from fedbilevel.results.crossing import Crossing, ended
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.files import PathLike
from fedbilevel.results.history import Row
from fedbilevel.results.summary import runs
from fedbilevel.results.targets import HIGHER, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

STEM = "conditions"
WORST = "worst"
_CELL, _LINE = (0.72, 0.29), 0.15  # inches
_RIGHT, _BOTTOM, _TOP, _BETWEEN = 0.12, 0.12, 0.8, 0.5  # inches; between maps there is a name
_LETTER = 0.079  # inches of one of 8.5 points
_NAME = 0.3  # inches of a map's name
_APART = 0.14  # of a cell, before the worst
_WRAP = 11  # letters of a column's name in a line
_SHADES = ("#fff7ec", "#fdd49e", "#fc8d59", "#d7301f", "#7f0000")
"""From good to bad: light to dark, in grey too."""


@dataclass(frozen=True)
class Map:
    """One algorithm: a row for what it is under of all factors but the first, a column for each level of that one.

    values: [rows, columns] with the worst as the last column; NaN where a run has failed, or is not there.
    """

    name: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Vector


def maps(rows: Sequence[Row], crossing: Crossing, column: str, ends: Ends = WHOLE) -> list[Map]:
    """The map of each algorithm; of one factor alone one map, in which an algorithm is a row."""
    several = len(crossing.factors) > 1
    found: dict[str, dict[str, list[float | None]]] = {}
    for (algorithm, *others), cells in crossing.cells(ended(rows, column, ends)).items():
        name, row = (algorithm, crossing.named(others)) if several else ("", algorithm)
        found.setdefault(name, {})[row] = cells
    worst = np.min if column in HIGHER else np.max  # NaN where one of them is
    columns = [*(crossing.named([level]) for level in crossing.levels(1)), WORST]
    made = []
    for name, lines in found.items():
        values = np.array(list(lines.values()), dtype=np.float64)  # NaN for None
        values = np.concatenate([values, worst(values, axis=1, keepdims=True)], axis=1)
        made.append(Map(name, list(lines), columns, values))
    return made


def draw_grid(
    rows: Sequence[Row], folder: PathLike, *, title: str, crossing: Crossing, column: str, ends: Ends = WHOLE
) -> list[Path]:
    """Write `conditions` as `.png`, `.svg` and `.pdf` into an existing folder and return their paths.

    Medians over seeds at the end; a cell stays blank where a run broke off. The same rows give the same bytes. Raises
    BadInput for a file that cannot be written.
    """
    drawn = maps(rows, crossing, column, ends)
    seeds = sorted({len(by_seed) for by_seed in runs(rows).values()})
    with look():
        return save(_figure(drawn, title, _about(drawn, column, seeds), column), folder, STEM)


def _about(drawn: Sequence[Map], column: str, seeds: Sequence[int]) -> str:
    count = "one seed" if seeds in ([], [1]) else f"median of {'–'.join(map(str, seeds))} seeds"
    said = [f"{named(column)} at the end, {count}", "bold: the best worst case"]
    if any(np.isnan(each.values).any() for each in drawn):
        said.append("blank: a run broke off")
    return "; ".join(said)


def _figure(drawn: Sequence[Map], title: str, said: str, column: str) -> Figure:
    from matplotlib.figure import Figure

    columns = [textwrap.wrap(name, _WRAP) for name in drawn[0].columns] if drawn else []
    above = _LINE * max(map(len, columns), default=1) + 0.08
    left = 0.2 + _LETTER * max((len(row) for each in drawn for row in each.rows), default=0)
    across = _CELL[0] * len(columns) + 0.1
    width = max(left + across + _RIGHT, 6.0)
    naming = _NAME if any(each.name for each in drawn) else 0.0
    heights = [_CELL[1] * len(each.rows) for each in drawn]
    inside = sum(heights) + (above + _BETWEEN) * (len(drawn) - 1) + above + naming
    height = _BOTTOM + inside + _TOP + head_height(title, said, width)
    figure = Figure(figsize=(width, height))
    shading = Shading.of(np.concatenate([each.values.ravel() for each in drawn]), column)
    low = _BOTTOM + inside - above - naming
    for each, tall in zip(drawn, heights, strict=True):
        low -= tall
        place = (left / width, low / height, across / width, tall / height)
        axes = figure.add_axes(place, label=each.name or STEM)
        _draw(axes, each, columns, shading)
        if each.name:
            base = (low + tall + above + 0.08) / height
            figure.text(0.2 / width, base, each.name, fontsize=10, fontweight="bold", parse_math=False)
        low -= above + _BETWEEN
    head(figure, title, said, 0.2, _BOTTOM + inside)
    return figure


def _draw(axes: Axes, each: Map, columns: Sequence[Sequence[str]], shading: Shading) -> None:
    from matplotlib.patches import Rectangle

    last = len(columns) - 1
    worst = each.values[~np.isnan(each.values[:, -1]), -1].tolist()
    best = min(worst, key=shading.measure, default=math.nan)
    for r, line in enumerate(each.values.tolist()):
        for c, value in enumerate(line):
            left = c + (_APART if c == last else 0.0)
            if math.isnan(value):
                axes.add_patch(Rectangle((left, r), 1, 1, facecolor="white", edgecolor="#dddddd", linewidth=0.6))
                continue
            colour, ink = shading.colours(value)
            axes.add_patch(Rectangle((left, r), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.0))
            weight = "bold" if c == last and value == best else "normal"
            text = _shown(value)
            axes.text(
                left + 0.5, r + 0.5, text, ha="center", va="center_baseline", fontsize=8.5, color=ink, fontweight=weight
            )
    axes.set(xlim=(0, last + 1 + _APART), ylim=(len(each.rows), 0))
    axes.set_yticks(np.arange(len(each.rows)) + 0.5, each.rows)
    middle = [c + 0.5 + (_APART if c == last else 0.0) for c in range(last + 1)]
    axes.set_xticks(middle, ["\n".join(name) for name in columns])
    axes.tick_params(length=0, labelsize=8.5, labeltop=True, labelbottom=False, pad=4, labelcolor=INK)
    for name in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        name.set_parse_math(False)
    axes.spines[:].set_visible(False)


def _shown(value: float) -> str:
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 or value == 0 else f"{value:.3g}"


@dataclass(frozen=True)
class Shading:
    """Light where it is good, by the logarithm of the error or the loss: 0.95 and 0.9 differ as 0.8 and 0.6 do.

    good, bad: the least and the largest of these measures.
    """

    higher: bool
    log: bool
    good: float
    bad: float

    @classmethod
    def of(cls, values: Vector, column: str) -> Shading:
        """That of these values, NaN apart, together."""
        higher = column in HIGHER
        there = values[~np.isnan(values)]
        bad = 1.0 - there if higher else there
        log = higher or bool(len(bad) and bad.min() > 0.0)
        made = cls(higher, log, 0.0, 0.0)
        sizes = [made.measure(value) for value in there.tolist()]
        return cls(higher, log, min(sizes, default=0.0), max(sizes, default=0.0))

    def measure(self, value: float) -> float:
        """How bad a value is."""
        bad = 1.0 - value if self.higher else value
        return math.log(max(bad, 1e-4)) if self.log else bad

    def share(self, value: float) -> float:
        """How bad it is from 0, the best, to 1."""
        return (self.measure(value) - self.good) / ((self.bad - self.good) or 1.0)

    def colours(self, value: float) -> tuple[Any, str]:
        """Of a cell, and of the number on it."""
        share = self.share(value)
        return _shades()(share), "white" if share > 0.6 else INK


@functools.cache
def _shades() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("bad", _SHADES)

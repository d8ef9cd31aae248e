"""Curves under several conditions: a panel for each algorithm, a curve for each condition, scales that all share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fedbilevel.figures.canvas import QUIET, head, head_height, rule
from fedbilevel.figures.colours import COLOURS, DASHES, Style
from fedbilevel.figures.curves import Curve, XAxis
from fedbilevel.figures.lines import about, draw_curve, draw_targets
from fedbilevel.figures.scales import scale_x, scale_y
from fedbilevel.results.crossing import Crossing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 24
"""Panels of one figure."""
_ACROSS = 4
_WIDTH, _HEIGHT, _ALONE = 8.6, 1.55, 2.4  # inches, of the figure, and of a panel in several rows or in one
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.12, 0.55, 0.75  # inches around all panels
_BESIDE, _BELOW, _HEADING = 0.24, 0.5, 0.26  # inches between panels, and for what stands above a block
_LETTER = 0.078  # inches of one of nine points


Place = tuple[str, str]
"""A panel: what stands above its block, and its own name."""


@dataclass(frozen=True)
class Panels:
    """rows: of panels; curves: the panel of each label, and what its curve is called there."""

    rows: Sequence[Sequence[Place]]
    curves: Mapping[str, tuple[Place, str]]

    @property
    def styles(self) -> dict[str, Style]:
        """The style of each curve's name, the same in every panel."""
        names = dict.fromkeys(name for _, name in self.curves.values())
        return {name: Style(COLOURS[k], DASHES[k % len(DASHES)]) for k, name in enumerate(names)}


def panels(crossing: Crossing) -> Panels | None:
    """A panel for each algorithm; of several factors a block for each, with a panel for each value of the first.

    None where these would be too many, or the curves of one more than there are colours.
    """
    several = len(crossing.factors) > 1
    blocks: dict[str, list[Place]] = {}
    curves = {}
    for label, (algorithm, first, *others) in crossing.places.items():
        panel = (algorithm, crossing.named([first])) if several else ("", algorithm)
        curves[label] = panel, crossing.named(others if several else [first])
        block = blocks.setdefault(panel[0], [])
        if panel not in block:
            block.append(panel)
    if sum(map(len, blocks.values())) > MOST or len({name for _, name in curves.values()}) > len(COLOURS):
        return None
    rows = []
    for block in blocks.values():
        across = math.ceil(len(block) / math.ceil(len(block) / _ACROSS))
        rows += [block[k : k + across] for k in range(0, len(block), across)]
    return Panels(rows, curves)


@dataclass(frozen=True)
class Axis:
    """x: what to divide it by, what it says, and whether it is logarithmic."""

    kind: XAxis
    size: float
    label: str
    log: bool


def panelled(
    lines: Sequence[Curve],
    arranged: Panels,
    title: str,
    x: Axis,
    y_label: str,
    column: str,
    log_y: bool | None,
    levels: Sequence[float],
    marks: Sequence[float],
) -> Figure:
    """The figure of these curves. levels: targets to draw; marks: those that the range has to hold."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    across, shown = max(map(len, arranged.rows)), arranged.styles
    tall = _ALONE if len(arranged.rows) == 1 else _HEIGHT
    heads = ["", *(row[0][0] for row in arranged.rows)]
    firsts = [here != before for before, here in pairwise(heads)]
    inside = sum(tall + (_HEADING if first else 0.0) for first in firsts) + _BELOW * (len(arranged.rows) - 1)
    columns = _columns(list(shown))
    legend = 0.22 * math.ceil(len(shown) / columns) + 0.22
    said = about(lines)
    height = _BOTTOM + inside + legend + _TOP + head_height(title, said, _WIDTH)
    figure = Figure(figsize=(_WIDTH, height))
    width = (_WIDTH - _LEFT - _RIGHT - _BESIDE * (across - 1)) / across
    found: dict[Place, Axes] = {}
    low = _BOTTOM + inside + _BELOW
    for r, (row, first) in enumerate(zip(arranged.rows, firsts, strict=True)):
        low -= _BELOW + tall + (_HEADING if first else 0.0)
        if first:
            base = (low + tall + _HEADING + 0.04) / height
            figure.text(_LEFT / _WIDTH, base, row[0][0], fontsize=10, fontweight="bold", parse_math=False)
        for c, panel in enumerate(row):
            place = ((_LEFT + c * (width + _BESIDE)) / _WIDTH, low / height, width / _WIDTH, tall / height)
            axes = found[panel] = figure.add_axes(place, label=": ".join(panel))
            _frame(axes, panel, width)
            scale_x(axes, lines, x.size, x.kind, x.log)
            scale_y(axes, lines, column, log_y, marks)
            if not x.log:
                axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=x.kind == "rounds", steps=[1, 2, 5, 10]))
            below = r + 1 < len(arranged.rows) and c < len(arranged.rows[r + 1])
            axes.tick_params(labelbottom=not below, labelleft=c == 0, which="both")
            draw_targets(axes, levels)
    for line in lines:
        panel, name = arranged.curves[line.algorithm]
        draw_curve(found[panel], line, x.size, shown[name], x.log)
    middle = (_BOTTOM + inside / 2) / height
    drawn: dict[str, Any] = {"fontsize": 10, "parse_math": False}
    figure.text(0.1 / _WIDTH, middle, y_label, rotation=90, ha="left", va="center", **drawn)
    figure.text((_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2) / _WIDTH, 0.08 / height, x.label, ha="center", **drawn)
    _legend(figure, shown, columns, _LEFT / _WIDTH, (_BOTTOM + inside + 0.27) / height)
    head(figure, title, said, _LEFT, _BOTTOM + inside + legend)
    return figure


def _frame(axes: Axes, panel: Place, width: float) -> None:
    block, name = panel
    text, weight = textwrap.shorten(name, round(width / _LETTER), placeholder="…"), "normal" if block else "bold"
    axes.set_title(text or name[:20], loc="left", fontsize=9, fontweight=weight, pad=5, parse_math=False)
    rule(axes)
    axes.tick_params(length=3, pad=3, labelsize=8.5, which="both")


def _columns(names: Sequence[str]) -> int:
    """In how many columns of a legend these names fit; it fills one after the other, the first of them deepest."""
    for columns in range(len(names), 1, -1):
        parts = [part.tolist() for part in np.array_split([len(name) for name in names], columns)]
        if sum(max(part) * _LETTER + 0.68 for part in parts) <= _WIDTH - _LEFT:
            return columns
    return 1


def _legend(figure: Figure, shown: Mapping[str, Style], columns: int, left: float, base: float) -> None:
    from matplotlib.lines import Line2D

    looks: list[dict[str, Any]] = [{"color": style.colour, "linestyle": style.dash} for style in shown.values()]
    samples = [Line2D([], [], linewidth=1.9, **each) for each in looks]
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (left, base),
        "borderaxespad": 0.0,
        "borderpad": 0.0,
    }
    legend = figure.legend(
        samples, list(shown), ncols=columns, frameon=False, fontsize=9, handlelength=2.4, columnspacing=1.6, **place
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_color(QUIET)

"""The figure of a tuning: what every trial was worth against each option that it was given."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedbilevel.figures.canvas import QUIET, look, save
from fedbilevel.figures.colours import Style, styles
from fedbilevel.results.files import PathLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEM = "sensitivity"
_WIDTH, _HEIGHT = 2.9, 2.3  # inches of each of the axes with its labels


@dataclass(frozen=True)
class Points:
    """One option of one algorithm. points: (value, objective), with None for a trial that has none; best: the winner's.

    ends: those of its range, None for names or numbers to choose from; log: on a logarithmic axis.
    """

    option: str
    points: Sequence[tuple[object, float | None]]
    best: object = None
    ends: tuple[float, float] | None = None
    log: bool = False


@dataclass(frozen=True)
class Panel:
    """An algorithm's row: what its objective is, in words, and its options."""

    measure: str
    options: Sequence[Points]


def draw_sensitivity(algorithms: Mapping[str, Panel], folder: PathLike, *, title: str, about: str) -> list[Path]:
    """Write `sensitivity` as `.png`, `.svg` and `.pdf` into an existing folder: a row of axes for each algorithm.

    Trials without an objective (given up, failed, short of the target) are crosses at the top. The same numbers give
    the same bytes. about: what stands small below the title.

    Raises BadInput if a file cannot be written.
    """
    drawn = {label: panel for label, panel in algorithms.items() if panel.options}
    if not drawn:
        return []
    with look():
        return save(_figure(drawn, title, about), folder, STEM)


def _figure(algorithms: Mapping[str, Panel], title: str, about: str) -> Figure:
    from matplotlib.figure import Figure

    across = max(max(len(panel.options) for panel in algorithms.values()), 2)
    figure = Figure(figsize=(_WIDTH * across, _HEIGHT * len(algorithms) + 0.7), layout="constrained")
    head = [textwrap.fill(text, 40 * across, break_on_hyphens=False) for text in (title, about)]
    figure.suptitle(head[0], fontsize=13, fontweight="bold", parse_math=False)
    figure.supxlabel(head[1], fontsize=9, color=QUIET, parse_math=False)
    grid = figure.subplots(len(algorithms), across, squeeze=False)
    chosen = styles(algorithms)
    for row, (label, panel) in zip(grid, algorithms.items(), strict=True):
        for axes, option in zip(row, panel.options, strict=False):
            _draw(axes, option, chosen[label])
        row[0].set_ylabel(f"{label}\n{panel.measure}", fontsize=9, parse_math=False)
        for axes in row[len(panel.options) :]:
            axes.set_axis_off()
    return figure


def _draw(axes: Axes, option: Points, style: Style) -> None:
    from matplotlib.ticker import NullFormatter

    number = {isinstance(value, int | float) and not isinstance(value, bool) for value, _ in option.points} == {True}

    def place(value: object) -> object:
        return value if number else str(value)

    met = [(place(value), found) for value, found in option.points if found is not None]
    lost = [place(value) for value, found in option.points if found is None]
    if number and option.log:
        axes.set_xscale("log")
    if option.ends is not None:
        low, high = option.ends
        margin = (high / low) ** 0.03 if option.log else 0.03 * (high - low)
        axes.set_xlim(*((low / margin, high * margin) if option.log else (low - margin, high + margin)))
    if met:
        values, found = zip(*met, strict=True)
        axes.scatter(values, found, s=16, color=style.colour)
        if min(found) > 0 and max(found) > 20 * min(found):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_yticks([])
    if lost:
        axes.scatter(lost, [0.96] * len(lost), s=16, marker="x", color=QUIET, transform=axes.get_xaxis_transform())  # type: ignore[arg-type]  # names or numbers
    if option.best is not None:
        axes.axvline(place(option.best), color=style.colour, linewidth=0.8, linestyle=(0, (3, 2)))  # type: ignore[arg-type]  # a name or a number
    axes.set_xlabel(option.option, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8, length=3)
    axes.grid(True, color="#e9e9e9", linewidth=0.7)
    axes.set_axisbelow(True)

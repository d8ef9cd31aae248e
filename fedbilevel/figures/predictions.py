"""Figures of predictions on unseen tasks: what they say against what is so, and the risk of the least doubtful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbilevel.figures.canvas import QUIET, Name, framed, look, name_lines, save
from fedbilevel.figures.colours import styles
from fedbilevel.results.files import PathLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""By name: what is on the x axis, ascending, and on the y axis."""
RELIABILITY, RISK_COVERAGE = "reliability", "risk_coverage"


def draw_reliability(lines: Lines, folder: PathLike, *, title: str, about: str, of: tuple[str, str]) -> list[Path]:
    """Write `reliability` as `.png`, `.svg` and `.pdf`: what is said against what is so; on the diagonal they agree.

    of: what is said and what is, in words, for the axes. Raises BadInput for a file that cannot be written.
    """
    with look():
        figure, axes = framed(title, about, len(lines))
        axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
        axes.set_xlabel(of[0], labelpad=7)
        axes.set_ylabel(of[1], labelpad=7)
        axes.plot([0.0, 1.0], [0.0, 1.0], color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        name_lines(axes, _drawn(axes, lines, marker="o", markersize=3.0))
        return save(figure, folder, RELIABILITY)


def draw_risk_coverage(lines: Lines, folder: PathLike, *, title: str, about: str, risk: str) -> list[Path]:
    """Write `risk_coverage` as `.png`, `.svg` and `.pdf`: the mean loss of the share that is least doubtful.

    risk: the loss in words. Raises BadInput for a file that cannot be written.
    """
    with look():
        figure, axes = framed(title, about, len(lines))
        axes.set_xlim(0.0, 1.0)
        axes.set_xlabel("share of queries that are answered, the least doubtful first", labelpad=7)
        axes.set_ylabel(f"{risk} of these", labelpad=7)
        names = _drawn(axes, lines)
        axes.set_ylim(bottom=0.0)
        name_lines(axes, names)
        return save(figure, folder, RISK_COVERAGE)


def _drawn(axes: Axes, lines: Lines, **marks: Any) -> list[Name]:
    """Draw the lines; their names stand where they end."""
    chosen = styles(lines)
    for name, (x, y) in lines.items():
        axes.plot(x, y, color=chosen[name].colour, linestyle=chosen[name].dash, linewidth=1.9, **marks)
    return [Name(name, x[-1], y[-1], chosen[name]) for name, (x, y) in lines.items()]

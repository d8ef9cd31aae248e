"""What is drawn into the axes of curves: medians with their bands, targets, and in words what all of it means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbilevel.figures.canvas import QUIET
from fedbilevel.figures.colours import Style
from fedbilevel.figures.curves import Curve
from fedbilevel.results.spread import QUARTILES_FROM

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curve(axes: Axes, line: Curve, size: float, style: Style, log_x: bool) -> None:
    """The median, thin where not every seed is there, its band, a dot at its end, and crosses where runs broke off."""
    for piece in line.pieces:
        here = piece.x > 0.0 if log_x else slice(None)
        x, whole = piece.x[here] / size, piece.seeds == line.seeds
        if line.seeds > 1:
            shade = 0.16 if whole else 0.08
            axes.fill_between(x, piece.low[here], piece.high[here], color=style.colour, alpha=shade, linewidth=0)
        axes.plot(
            *(x, piece.median[here]),
            color=style.colour,
            linestyle=style.dash,
            linewidth=1.9 if whole else 0.9,
            solid_capstyle="round",
        )
    drawn: dict[str, Any] = {"color": style.colour, "clip_on": False, "zorder": 4}
    low, high = axes.get_ylim()
    for cross, value in line.crosses:
        if not log_x or cross > 0.0:
            axes.plot([cross / size], [min(max(value, low), high)], "x", markersize=8, markeredgewidth=2.2, **drawn)
    end, value = line.end
    if low <= value <= high and all(cross < end for cross, _ in line.crosses):
        axes.plot([end / size], [value], "o", markersize=4.5, **drawn)


def draw_targets(axes: Axes, levels: Sequence[float]) -> None:
    """A dotted line for each target within the frame, its value on the left, where no name stands."""
    low, high = axes.get_ylim()
    labelled = -math.inf
    tall = axes.get_position().height * axes.get_figure().get_size_inches()[1]  # type: ignore[union-attr]  # it has one
    for level in sorted(level for level in levels if low <= level <= high):
        axes.axhline(level, color="#808080", linestyle=(0, (1, 2.2)), linewidth=0.9, zorder=1)
        height = axes.transAxes.inverted().transform(axes.transData.transform((0, level)))[1]
        if (height - labelled) * tall > 0.145:  # else the label would lie on the one below
            place: Mapping[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
            axes.annotate(f"{level:g}", (0, level), xytext=(4, 3), fontsize=8, color=QUIET, zorder=5, bbox=box, **place)
            labelled = height


def about(lines: Sequence[Curve]) -> str:
    """What lines, bands, thin stretches and crosses mean, of those that this figure has."""
    if not lines:
        return ""
    seeds = sorted({line.seeds for line in lines})
    said = ["one seed"]
    if seeds != [1]:
        count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        bands = {"quartiles" if n >= QUARTILES_FROM else "lowest to highest" for n in seeds if n > 1}
        band = bands.pop() if len(bands) == 1 else f"quartiles, of fewer than {QUARTILES_FROM} lowest to highest"
        said = [f"median of {count} seeds; band: {band}"]
    if any(piece.seeds < line.seeds for line in lines for piece in line.pieces):
        held = any(piece.held for line in lines for piece in line.pieces)
        said.append(f"thin: some seeds have ended{' and are held' if held else ''}")
    if any(line.crosses for line in lines):
        said.append("cross: broken off")
    return "; ".join(said)

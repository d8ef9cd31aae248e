"""The figure: a measure against what was spent, one line per algorithm, a band over its seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbilevel.errors import BadInput, unknown
from fedbilevel.figures.canvas import QUIET, Name, framed, look, name_lines, save
from fedbilevel.figures.colours import Style, styles
from fedbilevel.figures.curves import ERROR, X_AXES, Curve, XAxis, curves, measure
from fedbilevel.figures.scales import ROUGHLY_ZERO, scale_x, scale_y, unit
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.files import PathLike
from fedbilevel.results.history import Row
from fedbilevel.results.spread import QUARTILES_FROM
from fedbilevel.results.summary import runs
from fedbilevel.results.targets import Target, has_accuracy, named, resolve_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    rows: Sequence[Row],
    folder: PathLike,
    *,
    title: str,
    targets: Sequence[float | Target] | None = None,
    x_axis: XAxis = "rounds",
    column: str | None = None,
    log_x: bool = False,
    log_y: bool | None = None,
    ends: Ends = WHOLE,
) -> list[Path]:
    """Write a figure as `.png`, `.svg` and `.pdf` into the folder and return their paths.

    Its name is `stem` of what it shows: `rounds_vs_accuracy` for the test accuracy. The same rows give the same bytes.

    Args:
        rows: the history.
        folder: an existing folder.
        title: the heading.
        targets: those of them that bound this column are marked; None marks common accuracies that some run reached.
        x_axis: `rounds`; `bytes` (uplink and downlink of the whole federation); `seconds` (simulated); `wall` (seconds
            on the clock).
        column: of the history, or `error`, 1 - test_accuracy; None: `main_column`.
        log_x: a logarithmic x axis, on which there is no place for what was found before anything was spent.
        log_y: whether the y axis is logarithmic; None: where the values are positive and span a decade.
        ends: a cross marks where a run broke off; one that ended early is held at its last value.

    Raises:
        BadInput: an unknown `x_axis`, a column in which no row has a value, `log_y` for values below zero, a bare
            target that is no accuracy, or a file that cannot be written.
    """
    if x_axis not in X_AXES:
        raise unknown("x_axis", x_axis, X_AXES)
    if column is None:
        column = main_column(rows)
    else:
        hold_drawable(rows, column, log_y)
    chosen = styles(runs(rows))
    levels = [target.threshold for target in resolve_targets(rows, targets) if target.column == column]
    with look():
        lines = curves(rows, x_axis, column, ends)
        figure, axes = framed(title, _about(lines), len(lines))
        size, label = unit(lines, x_axis)
        axes.set_xlabel(label, labelpad=7)
        axes.set_ylabel("error (1 - test accuracy)" if column == ERROR else named(column), labelpad=7, parse_math=False)
        if lines:
            scale_x(axes, lines, size, x_axis, log_x)
            scale_y(axes, lines, column, log_y, levels if targets is not None else ())
            _draw_targets(axes, levels)
            for line in lines:
                _draw_curve(axes, line, size, chosen[line.algorithm], log_x)
            name_lines(axes, [Name(c.algorithm, c.end[0] / size, c.end[1], chosen[c.algorithm]) for c in lines])
        else:
            axes.set(xticks=[], yticks=[])
            text = "nothing finite to show on these axes" if rows else "no evaluations yet"
            axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET)
        return save(figure, folder, stem(x_axis, column))


def stem(x_axis: str, column: str) -> str:
    """The name of a figure's files.

    >>> stem("rounds", "test_accuracy"), stem("bytes", "upper_loss")
    ('rounds_vs_accuracy', 'bytes_vs_upper_loss')
    """
    return f"{x_axis}_vs_{'accuracy' if column == 'test_accuracy' else column}"


def main_column(rows: Sequence[Row]) -> str:
    """What a figure shows unless it is told: the test accuracy, or the upper loss of a problem without one."""
    return "test_accuracy" if has_accuracy(rows) or not rows else "upper_loss"


def hold_drawable(rows: Sequence[Row], column: str, log_y: bool | None = None) -> None:
    """Raises BadInput, with the key `column` or `log_y`, for what a figure of these rows cannot show."""
    known = {key for row in rows for key, value in row.items() if value is not None} - {"algorithm", "seed"}
    if has_accuracy(rows):
        known.add(ERROR)
    if column not in known and (rows or column != "test_accuracy"):
        raise unknown("column", column, known)
    values = [value for row in rows if (value := measure(row, column)) is not None and math.isfinite(value)]
    if log_y and min(values, default=0.0) < -ROUGHLY_ZERO * max(values, default=0.0):
        raise BadInput("log_y", column, "a column without values below zero")


def _draw_curve(axes: Axes, line: Curve, size: float, style: Style, log_x: bool) -> None:
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


def _draw_targets(axes: Axes, levels: Sequence[float]) -> None:
    """A dotted line for each target within the frame, its value on the left, where no name stands."""
    low, high = axes.get_ylim()
    labelled = -math.inf
    for level in sorted(level for level in levels if low <= level <= high):
        axes.axhline(level, color="#808080", linestyle=(0, (1, 2.2)), linewidth=0.9, zorder=1)
        height = axes.transAxes.inverted().transform(axes.transData.transform((0, level)))[1]
        if height - labelled > 0.045:  # else the label would lie on the one below
            place: Mapping[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
            axes.annotate(f"{level:g}", (0, level), xytext=(4, 3), fontsize=8, color=QUIET, zorder=5, bbox=box, **place)
            labelled = height


def _about(lines: Sequence[Curve]) -> str:
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

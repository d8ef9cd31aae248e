"""The figure: a measure against what was spent, one line per algorithm, a band over its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fedbilevel.errors import BadInput, unknown
from fedbilevel.figures.canvas import QUIET, Name, framed, look, name_lines, save
from fedbilevel.figures.colours import styles
from fedbilevel.figures.curves import ERROR, X_AXES, XAxis, curves, measure
from fedbilevel.figures.lines import about, draw_curve, draw_targets
from fedbilevel.figures.panels import Axis, panelled, panels
from fedbilevel.figures.scales import ROUGHLY_ZERO, scale_x, scale_y, unit
from fedbilevel.results.crossing import Crossing
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.files import PathLike
from fedbilevel.results.history import Row
from fedbilevel.results.summary import runs
from fedbilevel.results.targets import Target, has_accuracy, named, resolve_targets


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
    crossing: Crossing | None = None,
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
        crossing: the conditions that the algorithms are under: each algorithm has a panel, each condition a curve in
            it, unless there are more than can be told apart.

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
        size, label = unit(lines, x_axis)
        y_label = "error (1 - test accuracy)" if column == ERROR else named(column)
        marks = levels if targets is not None else ()
        arranged = panels(crossing) if crossing and lines else None
        if arranged is not None:
            x = Axis(x_axis, size, label, log_x)
            figure = panelled(lines, arranged, title, x, y_label, column, log_y, levels, marks)
            return save(figure, folder, stem(x_axis, column))
        figure, axes = framed(title, about(lines), len(lines))
        axes.set_xlabel(label, labelpad=7)
        axes.set_ylabel(y_label, labelpad=7, parse_math=False)
        if lines:
            scale_x(axes, lines, size, x_axis, log_x)
            scale_y(axes, lines, column, log_y, marks)
            draw_targets(axes, levels)
            for line in lines:
                draw_curve(axes, line, size, chosen[line.algorithm], log_x)
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

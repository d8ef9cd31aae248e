"""The axes of a figure: linear or logarithmic, and over which range, so that what decides fills the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedbilevel.figures.curves import Curve, Vector, XAxis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUGHLY_ZERO = 0.01
"""The share of the highest value by which a loss may lie below zero and still be taken for one that runs into it."""
_SETTLED = 0.15  # of all x, after which values bear on the range of a linear axis: before, all curves rush
_DIVERGED = 10.0  # times the largest start: a logarithmic axis goes no further up


def unit(lines: Sequence[Curve], x_axis: XAxis) -> tuple[float, str]:
    """What to divide x by, and the label that says so."""
    most = max((line.end[0] for line in lines), default=0.0)
    if x_axis == "rounds":
        return 1.0, "communication rounds"
    if x_axis == "bytes":
        units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
        size, name = next((unit for unit in units if most >= unit[0]), (1.0, "bytes"))
        return size, f"communication of the whole federation, uplink + downlink ({name})"
    if x_axis == "gradients":
        size, name = next(
            (u for u in ((1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³")) if most >= 2 * u[0]), (1.0, "examples")
        )
        return size, f"gradients of single examples, all clients ({name})"
    if x_axis == "epsilon":
        return 1.0, "ε, the privacy that is spent"
    size, name = next((u for u in ((3600.0, "hours"), (60.0, "minutes")) if most >= 2 * u[0]), (1.0, "seconds"))
    return size, f"{'simulated' if x_axis == 'seconds' else 'wall-clock'} time ({name})"


def scale_x(axes: Axes, lines: Sequence[Curve], size: float, x_axis: XAxis, log: bool) -> None:
    """Set scale and limits of x, which was divided by `size`."""
    from matplotlib.ticker import MaxNLocator

    points = _points(lines) / size
    most = float(points.max())
    if log and most > 0.0:  # there is no place for x = 0
        axes.set_xscale("log")
        least = float(points[points > 0.0].min())
        axes.set_xlim(least, most * (most / least) ** 0.02 if most > least else 2.0 * least)
        _plain(axes, "x", least, most)
        return
    axes.set_xlim(*limits_x(lines, size))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=x_axis == "rounds", steps=[1, 2, 5, 10]))


def limits_x(lines: Sequence[Curve], size: float) -> tuple[float, float]:
    """From where to where a linear axis goes, on which x was divided by `size`."""
    points = _points(lines) / size
    most, least = float(points.max()), min(float(points.min()), 0.0)
    return least, most + 0.02 * (most - least) if most > least else least + 1.0


def _points(lines: Sequence[Curve]) -> Vector:
    crosses = [np.array([x for x, _ in line.crosses]) for line in lines]
    return np.concatenate([*crosses, *(piece.x for line in lines for piece in line.pieces)])


@dataclass(frozen=True)
class Scale:
    """A scale of y and its limits.

    shown: the lowest and the highest value that a logarithmic scale has to show; threshold: below which a `symlog` one
    is linear.
    """

    kind: Literal["linear", "log", "symlog"]
    limits: tuple[float, float]
    shown: tuple[float, float]
    threshold: float = 0.0


def scale_y(axes: Axes, lines: Sequence[Curve], column: str, log: bool | None, marks: Sequence[float]) -> None:
    """Set scale and limits of y as `fitting` finds them."""
    scale = fitting(lines, column, log, marks)
    if scale.kind == "log":
        axes.set_yscale("log")
    elif scale.kind == "symlog":
        axes.set_yscale("symlog", linthresh=scale.threshold)
    axes.set_ylim(*scale.limits)
    if scale.kind == "log":
        _plain(axes, "y", *scale.shown)


def fitting(lines: Sequence[Curve], column: str, log: bool | None = None, marks: Sequence[float] = ()) -> Scale:
    """The scale of y for at least one curve.

    log: True or False, or None for a logarithmic axis where the values are positive and span a decade, and no
    accuracies. marks: values that the range has to hold.
    """
    values = np.concatenate([part for line in lines for piece in line.pieces for part in (piece.low, piece.high)])
    low, high = float(values.min()), float(values.max())
    sizes = np.abs(values[values != 0.0])
    into_zero = high > 0.0 >= low >= -ROUGHLY_ZERO * high
    if log is None:
        log = "accuracy" not in column and high >= 10.0 * (low if low > 0.0 else float(sizes.min(initial=math.inf)))
        log = log and (low > 0.0 or into_zero)
    if not log or high <= 0.0:
        return _linear(lines, marks, accuracy="accuracy" in column and low >= 0.0 and high <= 1.0)
    high = max([min(high, _DIVERGED * max(line.start[1] for line in lines)), *marks])
    if low > 0.0 and min(marks, default=low) > 0.0:
        low = min(low, high, *marks)
        room = max((high / low) ** 0.04, 1.02)
        return Scale("log", (low / room, high * room), (low, high))
    smallest = max(float(sizes.min()), 1e-8 * high)  # runs into zero: linear around it, logarithmic above
    threshold = 10.0 ** math.floor(math.log10(smallest))
    return Scale("symlog", (2.0 * low, 2.0 * high), (low, high), threshold)  # no room for powers that no run shows


def _linear(lines: Sequence[Curve], marks: Sequence[float], accuracy: bool) -> Scale:
    """Limits that hold the medians once they have settled, all ends with their spread, and the marks."""
    shown: list[Vector] = [np.array(marks)]
    start, end = min(line.start[0] for line in lines), max(line.end[0] for line in lines)
    for line in lines:
        shown += [piece.median[piece.x >= start + _SETTLED * (end - start)] for piece in line.pieces]
        shown += [line.pieces[-1].low[-1:], line.pieces[-1].high[-1:]]
    values = np.concatenate(shown)
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low) or 0.02 * max(abs(high), 1.0)
    limits = low - pad, high + pad
    if accuracy:  # no room where no accuracy can be
        limits = max(limits[0], -0.01), min(limits[1], 1.01)
    return Scale("linear", limits, (low, high))


def _plain(axes: Axes, which: str, low: float, high: float) -> None:
    """Over less than three decades plain numbers, at 1, 2 and 5, read better than powers of ten."""
    from matplotlib.ticker import FuncFormatter

    if high >= 1000.0 * low or not 1e-4 <= low <= high <= 1e5:
        return
    wanted = (1, 2, 3, 4, 5, 6, 7, 8, 9) if high < 5.0 * low else (1, 2, 5)

    def text(value: float, position: int | None) -> str:
        return f"{value:g}" if round(value / 10.0 ** math.floor(math.log10(value) + 1e-9), 6) in wanted else ""

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(FuncFormatter(text))

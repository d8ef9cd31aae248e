"""What a figure shows of each algorithm: the median of its seeds against what was spent, and where each seed ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.history import Row, number
from fedbilevel.results.spread import QUARTILES_FROM
from fedbilevel.results.summary import runs

XAxis = Literal["rounds", "bytes", "seconds", "wall", "gradients", "epsilon"]
X_AXES: tuple[XAxis, ...] = ("rounds", "bytes", "seconds", "wall", "gradients", "epsilon")
ERROR = "error"
"""The column that no history has: 1 - test_accuracy."""
Vector = NDArray[np.float64]

Line = dict[float, float]
"""The points of one run, from left to right."""

_SPENT = {
    "rounds": "round",
    "seconds": "simulated_seconds",
    "wall": "wall_seconds",
    "gradients": "gradient_evaluations",
    "epsilon": "epsilon",
}
LARGEST = 1e200
"""A run that diverged past this has no place on a figure: its squares and ratios would overflow."""


@dataclass(frozen=True)
class Piece:
    """A stretch of x over which the same seeds run: how many, and the median, low and high at the points `x`.

    These are of the seeds that run and of those that have ended early, which are held at their last values.
    """

    seeds: int
    x: Vector
    median: Vector
    low: Vector
    high: Vector
    held: int = 0


@dataclass(frozen=True)
class Curve:
    """One algorithm: its pieces from left to right, and the points at which runs broke off.

    seeds: how many there are; a piece may have fewer, since seeds begin and end at different x.
    """

    algorithm: str
    seeds: int
    pieces: tuple[Piece, ...]
    crosses: tuple[tuple[float, float], ...] = ()

    @property
    def start(self) -> tuple[float, float]:
        """The first point of the median."""
        return float(self.pieces[0].x[0]), float(self.pieces[0].median[0])

    @property
    def end(self) -> tuple[float, float]:
        """The last point of the median."""
        return float(self.pieces[-1].x[-1]), float(self.pieces[-1].median[-1])


def curves(rows: Sequence[Row], x_axis: XAxis, column: str, ends: Ends = WHOLE) -> list[Curve]:
    """The curve of each algorithm that has at least one finite value, in order of first appearance.

    Seeds need not share their evaluation points: between two of its evaluations a seed lies on the straight line, and
    the median is taken at all points of all seeds. Where a seed has not begun or has ended, it is not there: a piece of
    the curve says how many are. A seed that `stop_at` or a budget has ended early stays at its last value until the
    last seed ends: a median over those left would jump away from the target as the best of them leave. Low and high are
    the quartiles of an algorithm with four seeds and more, the lowest and the highest of one with fewer. Values that
    are not finite are left out.
    """
    found = []
    for algorithm, by_seed in runs(rows).items():
        lines = {seed: line for seed, run in by_seed.items() if (line := _points(run, x_axis, column))}
        if not lines:
            continue
        quartiles = len(by_seed) >= QUARTILES_FROM
        early = [line for seed, line in lines.items() if (algorithm, seed) in ends.early]
        stretches = _stretches([*lines.values()], early)
        pieces = [_piece(stretch, quartiles) for stretch in stretches]
        broken = [(by_seed[seed][-1], line) for seed, line in lines.items() if (algorithm, seed) in ends.broken_off]
        crosses = [_end(spent(row, x_axis), measure(row, column), line) for row, line in broken]
        found.append(Curve(algorithm, len(by_seed), tuple(pieces), tuple(crosses)))
    return found


def measure(row: Row, column: str) -> float | None:
    """The value of a column, or the error."""
    if column == ERROR:
        accuracy = number(row, "test_accuracy")
        return None if accuracy is None else 1.0 - accuracy
    return number(row, column)


def _points(run: list[Row], x_axis: XAxis, column: str) -> Line:
    """The finite points of one run; of several values at one x, the last."""
    points: Line = {}
    for row in run:
        x, y = spent(row, x_axis), measure(row, column)
        if x is not None and y is not None and math.isfinite(x) and abs(y) < LARGEST:
            points[x] = y if abs(y) > 1.0 / LARGEST else 0.0
    return dict(sorted(points.items()))


def _end(x: float | None, y: float | None, line: Line) -> tuple[float, float]:
    """Where a run ended, also if it was out of all bounds by then; without a number, its last point."""
    last = max(line.items())
    return last[0] if x is None else x, last[1] if y is None or math.isnan(y) else y


def spent(row: Row, x_axis: XAxis) -> float | None:
    """What a run had spent at an evaluation; None where its history does not say."""
    if x_axis != "bytes":
        return number(row, _SPENT[x_axis])
    up, down = number(row, "uplink_bytes"), number(row, "downlink_bytes")
    return None if up is None or down is None else up + down


@dataclass(frozen=True)
class _Stretch:
    """The lines that are there from left to right: those that run, and those that have ended early and are held."""

    run: list[Line]
    held: list[Line]
    left: float
    right: float


def _stretches(lines: list[Line], early: list[Line]) -> list[_Stretch]:
    """From left to right: which lines are there over which interval; a lone point is an interval of its own."""
    ends = [(min(line), max(line)) for line in lines]
    marks = sorted({mark for pair in ends for mark in pair})
    stretches: list[_Stretch] = []
    for left, right in pairwise(marks):
        run = [line for line, (a, b) in zip(lines, ends, strict=True) if a <= left and b >= right]
        held = [line for line in early if max(line) <= left]
        last = stretches[-1] if stretches else None
        if last and (last.run, last.held, last.right) == (run, held, left):
            stretches[-1] = _Stretch(run, held, last.left, right)  # what began or ended here was a lone point
        elif run or held:
            stretches.append(_Stretch(run, held, left, right))
    for mark in marks:
        if not any(each.left <= mark <= each.right for each in stretches):
            stretches.append(_Stretch([line for line in lines if mark in line], [], mark, mark))
    return sorted(stretches, key=lambda stretch: stretch.left)


def _piece(stretch: _Stretch, quartiles: bool) -> Piece:
    present, left, right = [*stretch.run, *stretch.held], stretch.left, stretch.right
    grid = np.array(sorted({x for line in present for x in line if left <= x <= right} | {left, right}))
    # beyond its last point `interp` keeps a line at its value there
    values = np.stack([np.interp(grid, [*line], [*line.values()]) for line in present])
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75) if quartiles else (0.0, 0.5, 1.0), axis=0)
    return Piece(len(stretch.run), grid, median, low, high, len(stretch.held))

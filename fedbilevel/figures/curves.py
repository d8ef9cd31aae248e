"""What a figure shows of each algorithm: the median of its seeds against what was spent, and where each seed ended."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedbilevel.results.history import Row, number
from fedbilevel.results.spread import QUARTILES_FROM
from fedbilevel.results.summary import runs

XAxis = Literal["rounds", "bytes", "seconds", "wall"]
X_AXES: tuple[XAxis, ...] = ("rounds", "bytes", "seconds", "wall")
ERROR = "error"
"""The column that no history has: 1 - test_accuracy."""
Vector = NDArray[np.float64]
Unfinished = Collection[tuple[str, object]]
"""Runs that ended before their goal, by label and seed."""

Line = dict[float, float]
"""The points of one run, from left to right."""

_SPENT = {"rounds": "round", "seconds": "simulated_seconds", "wall": "wall_seconds"}
LARGEST = 1e200
"""A run that diverged past this has no place on a figure: its squares and ratios would overflow."""


@dataclass(frozen=True)
class Piece:
    """A stretch of x over which the same seeds run: how many, and their median, low and high at the points `x`."""

    seeds: int
    x: Vector
    median: Vector
    low: Vector
    high: Vector


@dataclass(frozen=True)
class Curve:
    """One algorithm: its pieces from left to right, and the points at which runs ended before their goal.

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


def curves(rows: Sequence[Row], x_axis: XAxis, column: str, unfinished: Unfinished = ()) -> list[Curve]:
    """The curve of each algorithm that has at least one finite value, in order of first appearance.

    Seeds need not share their evaluation points: between two of its evaluations a seed lies on the straight line, and
    the median is taken at all points of all seeds. Where a seed has not begun or has ended, it is not there: a piece of
    the curve says how many are. Low and high are the quartiles of an algorithm with four seeds and more, the lowest and
    the highest of one with fewer. Values that are not finite are left out.
    """
    found = []
    for algorithm, by_seed in runs(rows).items():
        lines = {seed: line for seed, run in by_seed.items() if (line := _points(run, x_axis, column))}
        if not lines:
            continue
        quartiles = len(by_seed) >= QUARTILES_FROM
        pieces = [_piece(present, left, right, quartiles) for present, left, right in _stretches([*lines.values()])]
        broken = [(by_seed[seed][-1], line) for seed, line in lines.items() if (algorithm, seed) in unfinished]
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


def _stretches(lines: list[Line]) -> list[tuple[list[Line], float, float]]:
    """From left to right: the lines that are there, over which interval; a lone point is an interval of its own."""
    ends = [(min(line), max(line)) for line in lines]
    marks = sorted({mark for pair in ends for mark in pair})
    stretches: list[tuple[list[Line], float, float]] = []
    for left, right in pairwise(marks):
        present = [line for line, (a, b) in zip(lines, ends, strict=True) if a <= left and b >= right]
        if stretches and stretches[-1][0] == present and stretches[-1][2] == left:
            stretches[-1] = present, stretches[-1][1], right  # what began or ended here was a lone point
        elif present:
            stretches.append((present, left, right))
    for mark in marks:
        if not any(left <= mark <= right for _, left, right in stretches):
            stretches.append(([line for line in lines if mark in line], mark, mark))
    return sorted(stretches, key=lambda stretch: stretch[1])


def _piece(present: list[Line], left: float, right: float, quartiles: bool) -> Piece:
    grid = np.array(sorted({x for line in present for x in line if left <= x <= right} | {left, right}))
    values = np.stack([np.interp(grid, [*line], [*line.values()]) for line in present])
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75) if quartiles else (0.0, 0.5, 1.0), axis=0)
    return Piece(len(present), grid, median, low, high)

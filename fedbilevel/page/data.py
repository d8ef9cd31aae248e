"""From rows to what the page draws: every curve against everything that was spent."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fedbilevel.figures.colours import Dash, styles
from fedbilevel.figures.curves import (
    ERROR,
    LARGEST,
    X_AXES,
    Curve,
    Piece,
    Vector,
    XAxis,
    curves,
    measure,
    spent,
)
from fedbilevel.figures.figure import main_column
from fedbilevel.figures.scales import Scale, fitting, limits_x, unit
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.history import Row, number
from fedbilevel.results.summary import runs
from fedbilevel.results.targets import Target, has_accuracy, measured, named, resolve_targets

MOST_POINTS = 40_000
"""So many evaluations of all runs are on a page; of more, every second, third, ... of each run, and its last."""
MOST_MEDIANS = 240
"""So many points of a median are on a page; of more, every second, third, ... and the last: each is exact."""
SPENT: Mapping[XAxis, str] = {
    "rounds": "rounds",
    "bytes": "bytes up + down",
    "seconds": "simulated seconds",
    "wall": "wall-clock seconds",
    "gradients": "local gradient evaluations",
    "epsilon": "ε, privacy spent",
}


class Pool:
    """Vectors as text, each kept once: what equals one that is there is the same number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[bytes, int] = {}

    def put(self, values: Iterable[float] | Vector) -> int:
        """Where the pool holds these values: their little-endian float64 in base64."""
        content = np.asarray([*values] if not isinstance(values, np.ndarray) else values, dtype="<f8").tobytes()
        if content not in self._places:
            self._places[content] = len(self.texts)
            self.texts.append(base64.b64encode(content).decode("ascii"))
        return self._places[content]


def payload(rows: Sequence[Row], targets: Sequence[float | Target] | None = None, ends: Ends = WHOLE) -> dict[str, Any]:
    """Everything that the page's script reads, ready for JSON; a number that is missing or not finite is NaN.

    `arrays` holds vectors, and everything else their places in it. `methods`: label, colour, dash, seeds; `runs`: per
    method the evaluations of its seeds one behind the other. `views[x][y]` is what is shown of a measure against what
    was spent: its median `curves` per method, the limits of both kinds of axis, and which of them suits it.
    """
    pool = Pool()
    found = runs(rows)
    step = math.ceil(len(rows) / MOST_POINTS) or 1
    columns = [*measured(rows), *([ERROR] if has_accuracy(rows) else [])]
    axes = [axis for axis in X_AXES if any(spent(row, axis) is not None for row in rows)]
    return {
        "step": step,
        "main": main_column(rows),
        "methods": _methods(found, ends),
        "runs": [_runs(pool, by_seed, axes, columns, step) for by_seed in found.values()],
        "x": [_axis(rows, axis) for axis in axes],
        "y": [{"key": column, "label": _named(column)} for column in columns],
        "views": {axis: _views(pool, rows, axis, columns, targets, ends) for axis in axes},
        "targets": _levels(rows, targets),
        "arrays": pool.texts,
    }


def _named(column: str) -> str:
    return "error (1 - test accuracy)" if column == ERROR else named(column)


def _methods(found: Mapping[str, Mapping[object, Sequence[Row]]], ends: Ends) -> list[dict[str, Any]]:
    looks = styles(found)
    return [
        {
            "label": label,
            "colour": looks[label].colour,
            "dash": _dash(looks[label].dash),
            "seeds": ["" if seed is None else str(seed) for seed in by_seed],
            "broken": [place for place, seed in enumerate(by_seed) if (label, seed) in ends.broken_off],
            "early": [place for place, seed in enumerate(by_seed) if (label, seed) in ends.early],
        }
        for label, by_seed in found.items()
    ]


def _dash(dash: Dash) -> list[float]:
    """The lengths of strokes and gaps in pixels of a line of two pixels."""
    return [] if isinstance(dash, str) else [2.0 * length for length in dash[1]]


def _runs(
    pool: Pool, by_seed: Mapping[object, Sequence[Row]], axes: Sequence[XAxis], columns: Sequence[str], step: int
) -> dict[str, Any]:
    kept = [_thinned(run, step) for run in by_seed.values()]
    together = [row for run in kept for row in run]
    return {
        "lengths": [len(run) for run in kept],
        "round": pool.put(_number(number(row, "round")) for row in together),
        "x": {axis: pool.put(_number(spent(row, axis)) for row in together) for axis in axes},
        "y": {column: pool.put(_number(measure(row, column)) for row in together) for column in columns},
    }


def _thinned(run: Sequence[Row], step: int) -> list[Row]:
    kept = list(islice(run, 0, None, step))
    return kept if kept[-1] is run[-1] else [*kept, run[-1]]


def _number(value: float | None) -> float:
    """As in the curves, a number past all bounds has no place on a chart."""
    return math.nan if value is None or not abs(value) < LARGEST else value


def _axis(rows: Sequence[Row], axis: XAxis) -> dict[str, Any]:
    size, label = unit(curves(rows, axis, main_column(rows)), axis)
    short = f"{SPENT[axis]} {label[label.rindex('(') :]}" if size != 1.0 else SPENT[axis]
    return {"key": axis, "name": SPENT[axis], "size": size, "label": label, "short": short}


def _views(
    pool: Pool,
    rows: Sequence[Row],
    axis: XAxis,
    columns: Sequence[str],
    targets: Sequence[float | Target] | None,
    ends: Ends,
) -> dict[str, Any]:
    found = {column: curves(rows, axis, column, ends) for column in columns}
    places = {label: place for place, label in enumerate(runs(rows))}
    return {column: _view(pool, lines, column, places, targets) for column, lines in found.items() if lines}


def _view(
    pool: Pool,
    lines: Sequence[Curve],
    column: str,
    places: Mapping[str, int],
    targets: Sequence[float | Target] | None,
) -> dict[str, Any]:
    marks = [target.threshold for target in targets or () if isinstance(target, Target) and target.column == column]
    suits, linear = fitting(lines, column, None, marks), fitting(lines, column, False, marks)
    log = fitting(lines, column, True, [mark for mark in marks if mark > 0.0])
    pieces = {places[line.algorithm]: [_piece(pool, piece) for piece in line.pieces] for line in lines}
    return {
        "curves": pieces,
        "x": limits_x(lines, 1.0),
        "linear": linear.limits,
        "log": _positive(log),
        "suits": "linear" if suits.kind == "linear" else "log",
    }


def _positive(scale: Scale) -> tuple[float, float] | None:
    """The limits of a logarithmic axis, which has no place for zero; None where nothing is positive."""
    if scale.kind == "linear":
        return None
    return scale.limits if scale.kind == "log" else (scale.threshold, scale.limits[1])


def _piece(pool: Pool, piece: Piece) -> dict[str, Any]:
    step = math.ceil(len(piece.x) / MOST_MEDIANS)
    kept = np.unique([*range(0, len(piece.x), step), len(piece.x) - 1])
    vectors = {"x": piece.x, "median": piece.median, "low": piece.low, "high": piece.high}
    return {"seeds": piece.seeds, "held": piece.held} | {
        name: pool.put(vector[kept]) for name, vector in vectors.items()
    }


def _levels(rows: Sequence[Row], targets: Sequence[float | Target] | None) -> dict[str, list[float]]:
    levels: dict[str, list[float]] = {}
    for target in resolve_targets(rows, targets):
        levels.setdefault(target.column, []).append(target.threshold)
    return levels

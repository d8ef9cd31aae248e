"""`summary.csv`: what each algorithm spent until it met a target, and where it ended, over all its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from fedbilevel.results.files import PathLike, csv_text, write_whole
from fedbilevel.results.history import COLUMNS, Row, number
from fedbilevel.results.spread import Spread, spread
from fedbilevel.results.targets import SPENT, Target, measured, resolve_targets

COSTS = {
    "rounds": "round",
    "uplink_bytes": "uplink_bytes",
    "downlink_bytes": "downlink_bytes",
    "simulated_seconds": "simulated_seconds",
    "wall_seconds": "wall_seconds",
}
"""What is spent until a target, by its name in the summary: the column of the history that counts it."""
FINALS = ("round", "wall_seconds", *(column for column in COLUMNS if column not in SPENT))
"""The columns of the history whose last values are in every summary."""
PARTS = ("", "_low", "_high")
SUMMARY_COLUMNS: tuple[str, ...] = (
    *("algorithm", "target_column", "target_direction", "target_threshold"),
    *("seeds", "seeds_reached", "spread", "censored", "low_censored", "high_censored"),
    *(f"{name}{part}" for name in COSTS for part in PARTS),
    *(f"final_{column}{part}" for column in FINALS for part in PARTS),
    *(f"best_test_accuracy{part}" for part in PARTS),
)
"""The columns of every summary; the final values of other measures that the runs have follow: `final_metric_*`."""


def runs(rows: Iterable[Row]) -> dict[str, dict[object, list[Row]]]:
    """The rows of each run by algorithm and seed, in order of first appearance, each run in order of its rounds."""
    grouped: dict[str, dict[object, list[Row]]] = {}
    for row in rows:
        grouped.setdefault(str(row["algorithm"]), {}).setdefault(row.get("seed"), []).append(row)
    for by_seed in grouped.values():
        for run in by_seed.values():
            run.sort(key=lambda row: number(row, "round") or 0.0)  # stable: equal rounds stay in file order
    return grouped


def summarise(rows: Sequence[Row], targets: Sequence[float | Target] | None = None) -> list[dict[str, object]]:
    """One row per algorithm (in order of first appearance) and target, with the keys `SUMMARY_COLUMNS`.

    A run arrives where the straight line between two evaluations meets the target, at its first evaluation if that
    one meets it already. `rounds`, bytes and seconds are the median over *all* seeds of what was spent until there;
    `*_low` and `*_high` the quartiles of four seeds and more, the lowest and the highest of fewer, as `spread` says. A
    seed that never arrived counts as later than its last row and than every seed that did: where the median falls on
    such a seed, `censored` is true and the value is what it had spent at its end, of which the median is more;
    `low_censored` and `high_censored` say the same of `*_low` and `*_high`. A column in which an algorithm never has a
    value leaves its costs empty.

    `final_*` are the values at the ends of the runs, `final_round` and `final_wall_seconds` where these are, and
    `best_test_accuracy` the highest accuracy of each run, all as median and spread over the seeds.

    `targets=None` takes common accuracies that some run reached. Where there is no target, an algorithm has one row,
    with nothing about arrivals. Raises `BadInput` for a bare number that is no accuracy.
    """
    levels: list[Target | None] = [*resolve_targets(rows, targets)] or [None]
    more = [column for column in measured(rows) if column not in COLUMNS]
    lines = []
    for algorithm, by_seed in runs(rows).items():
        seeds = list(by_seed.values())
        ends = _ends(seeds, more)
        lines += [{"algorithm": algorithm, **_arrivals(seeds, level), **ends} for level in levels]
    return lines


def write_summary(path: PathLike, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows of `summarise` as csv, whole or not at all; None becomes an empty field, a truth true or false.

    Raises `BadInput` if the file cannot be written.
    """
    write_whole(path, summary_text(rows).encode())


def summary_text(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of `summarise` as csv: `SUMMARY_COLUMNS`, and whatever else the rows have."""
    return csv_text(rows, dict.fromkeys([*SUMMARY_COLUMNS, *(key for row in rows for key in row)]))


def rounds_until(rows: Iterable[Row], target: Target) -> dict[str, dict[object, float]]:
    """The rounds that each seed of each algorithm spent until the target, as `summarise` counts them; inf: never.

    Algorithms in which no row has the target's column are left out.
    """
    found: dict[str, dict[object, float]] = {}
    for algorithm, by_seed in runs(rows).items():
        if measured([row for run in by_seed.values() for row in run], [target.column]):
            places = {seed: _arrival(run, target) for seed, run in by_seed.items()}
            spent = {seed: _cost(*place, "round") if place else None for seed, place in places.items()}
            found[algorithm] = {seed: math.inf if cost is None else cost for seed, cost in spent.items()}
    return found


def _arrivals(seeds: list[list[Row]], target: Target | None) -> dict[str, object]:
    line: dict[str, object] = dict.fromkeys(SUMMARY_COLUMNS[1 : SUMMARY_COLUMNS.index("final_round")])
    line["seeds"] = len(seeds)
    if target is None:
        return line
    line |= {"target_column": target.column, "target_direction": target.direction, "target_threshold": target.threshold}
    if not measured([row for run in seeds for row in run], [target.column]):
        return line
    places = [_arrival(run, target) for run in seeds]
    line["seeds_reached"] = sum(place is not None for place in places)
    for name, column in COSTS.items():
        arrived = [cost for place in places if place and (cost := _cost(*place, column)) is not None]
        ends = [number(run[-1], column) for run, place in zip(seeds, places, strict=True) if place is None]
        found = spread(arrived, [end for end in ends if end is not None])
        line |= _parts(name, found)
        if found is not None:
            line["spread"] = found.kind
            line["censored"], line["low_censored"] = found.median.censored, found.low.censored
            line["high_censored"] = found.high.censored
    return line


def _arrival(run: list[Row], target: Target) -> tuple[Row, Row, float] | None:
    """Two rows and the share of the way from one to the other at which a run meets the target; None if it never does.

    The way is straight between evaluations that follow each other and are finite; else it is the later of the two.
    """
    before: tuple[Row, float] | None = None
    for row in run:
        value = number(row, target.column)
        if value is None:
            continue
        if target.met(value):
            if before is not None and math.isfinite(before[1]) and math.isfinite(value):
                return before[0], row, _share(before[1], value, target.threshold)
            return row, row, 1.0
        before = row, value
    return None


def _share(start: float, end: float, level: float) -> float:
    """How far from start to end the level lies, from 0 to 1."""
    scale = max(abs(start), abs(end))  # else a difference may overflow
    return (level / scale - start / scale) / (end / scale - start / scale)


def _cost(before: Row, row: Row, share: float, column: str) -> float | None:
    start, end = number(before, column), number(row, column)
    if start is None or end is None:
        return end
    return end if share == 1.0 else start + share * (end - start)


def _ends(seeds: list[list[Row]], more: Sequence[str]) -> dict[str, object]:
    line: dict[str, object] = {}
    for column in FINALS:
        line |= _parts(f"final_{column}", _over(_last(run, column) for run in seeds))
    line |= _parts("best_test_accuracy", _over(map(_best, seeds)))
    for column in more:
        line |= _parts(f"final_{column}", _over(_last(run, column) for run in seeds))
    return line


def _over(values: Iterable[float | None]) -> Spread | None:
    return spread([value for value in values if value is not None])


def _parts(name: str, found: Spread | None) -> dict[str, object]:
    amounts = (None, None, None) if found is None else (found.median.value, found.low.value, found.high.value)
    return {f"{name}{part}": amount for part, amount in zip(PARTS, amounts, strict=True)}


def _last(run: list[Row], column: str) -> float | None:
    return next((value for row in reversed(run) if (value := number(row, column)) is not None), None)


def _best(run: Sequence[Row]) -> float | None:
    """The highest accuracy; an evaluation that gave NaN counts only if there is no other."""
    values = [value for row in run if (value := number(row, "test_accuracy")) is not None]
    return max((v for v in values if not math.isnan(v)), default=values[0] if values else None)

"""`summary.csv`: what each algorithm spent until a target accuracy, and where it ended, over its seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from fedbilevel.errors import BadInput
from fedbilevel.results.files import PathLike, write_whole
from fedbilevel.results.history import Row, number

SUMMARY_COLUMNS: tuple[str, ...] = (
    "algorithm",
    "target_accuracy",
    "seeds",
    "seeds_reached",
    "rounds_mean",
    "rounds_std",
    "uplink_bytes_mean",
    "uplink_bytes_std",
    "downlink_bytes_mean",
    "downlink_bytes_std",
    "simulated_seconds_mean",
    "simulated_seconds_std",
    "final_accuracy_mean",
    "final_accuracy_std",
    "best_accuracy_mean",
    "final_upper_loss_mean",
    "final_upper_loss_std",
)
_COSTS = {
    "rounds": "round",
    "uplink_bytes": "uplink_bytes",
    "downlink_bytes": "downlink_bytes",
    "simulated_seconds": "simulated_seconds",
}
# Tried in turn: the levels that the field reports, then those of runs too short or too hard to get there.
_LADDERS = ((0.5, 0.6, 0.7, 0.8, 0.9, 0.95), (0.1, 0.2, 0.3, 0.4), (0.01, 0.02, 0.05))


def runs(rows: Iterable[Row]) -> dict[str, dict[object, list[Row]]]:
    """The rows of each run by algorithm and seed, in order of first appearance, each run in order of its rounds."""
    grouped: dict[str, dict[object, list[Row]]] = {}
    for row in rows:
        grouped.setdefault(str(row["algorithm"]), {}).setdefault(row.get("seed"), []).append(row)
    for by_seed in grouped.values():
        for run in by_seed.values():
            run.sort(key=lambda row: number(row, "round") or 0.0)  # stable: equal rounds stay in file order
    return grouped


def has_accuracy(rows: Iterable[Row]) -> bool:
    """Whether the problem of these rows measures an accuracy."""
    return any(row.get("test_accuracy") is not None for row in rows)


def resolve_targets(rows: Sequence[Row], targets: Sequence[float] | None) -> list[float]:
    """The target accuracies to report: those given, in their order; for None, common levels that some run reached.

    Raises `BadInput` for a target outside (0, 1].
    """
    if targets is not None:
        for target in targets:
            if not 0.0 < target <= 1.0:
                raise BadInput("targets", target, "accuracies above 0 and up to 1")
        return list(dict.fromkeys(float(target) for target in targets))
    best = _best(rows)
    for ladder in _LADDERS:
        if reached := [target for target in ladder if best is not None and best >= target]:
            return reached
    return []


def summarise(rows: Sequence[Row], targets: Sequence[float] | None = None) -> list[dict[str, object]]:
    """One row per algorithm (in order of first appearance) and target accuracy, with the keys `SUMMARY_COLUMNS`.

    A run reaches a target at its first evaluation with `test_accuracy >= target`; rounds, bytes and simulated seconds
    are those of that evaluation. Means and sample standard deviations (n - 1) are over the seeds that reached it: None
    if none did, and no deviation if only one did. The final and best values are over all seeds of the algorithm.

    `targets=None` takes common levels that some run reached. Where there is no target (none reached, or a problem
    without accuracy) an algorithm has one row: `target_accuracy` and `seeds_reached` are None, and rounds, bytes and
    seconds are those of the whole run.
    """
    levels: list[float | None] = [None]
    if has_accuracy(rows):
        levels = [*resolve_targets(rows, targets)] or [None]
    return [
        _line(algorithm, list(by_seed.values()), level) for algorithm, by_seed in runs(rows).items() for level in levels
    ]


def write_summary(path: PathLike, rows: Iterable[Mapping[str, object]]) -> None:
    """Write the rows of `summarise` as csv, whole or not at all; None becomes an empty field.

    Raises `BadInput` if the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, SUMMARY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def _line(algorithm: str, by_seed: list[list[Row]], target: float | None) -> dict[str, object]:
    stops = [run[-1] if target is None else _crossing(run, target) for run in by_seed]
    reached = [row for row in stops if row is not None]
    line: dict[str, object] = {
        "algorithm": algorithm,
        "target_accuracy": target,
        "seeds": len(by_seed),
        "seeds_reached": None if target is None else len(reached),
    }
    for name, column in _COSTS.items():
        line |= _spread(name, [number(row, column) for row in reached])
    line |= _spread("final_accuracy", [_last(run, "test_accuracy") for run in by_seed])
    line["best_accuracy_mean"] = _spread("best", [_best(run) for run in by_seed])["best_mean"]
    line |= _spread("final_upper_loss", [_last(run, "upper_loss") for run in by_seed])
    return line


def _crossing(run: list[Row], target: float) -> Row | None:
    for row in run:
        accuracy = number(row, "test_accuracy")
        if accuracy is not None and accuracy >= target:
            return row
    return None


def _last(run: list[Row], column: str) -> float | None:
    return next((value for row in reversed(run) if (value := number(row, column)) is not None), None)


def _best(run: Sequence[Row]) -> float | None:
    """The highest accuracy; an evaluation that gave NaN counts only if there is no other."""
    values = [value for row in run if (value := number(row, "test_accuracy")) is not None]
    return max((v for v in values if not math.isnan(v)), default=values[0] if values else None)


def _spread(name: str, values: list[float | None]) -> dict[str, object]:
    known = [value for value in values if value is not None]
    mean = deviation = None
    if known and all(map(math.isfinite, known)):
        mean = statistics.mean(known)
        if len(known) > 1:
            try:
                deviation = statistics.stdev(known)
            except OverflowError:
                deviation = math.inf
    elif known:
        mean = sum(known) / len(known)
        deviation = math.nan if len(known) > 1 else None
    return {f"{name}_mean": mean, f"{name}_std": deviation}

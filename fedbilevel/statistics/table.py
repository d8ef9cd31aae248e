"""`statistics.csv`: intervals, pairs and ranks in one tidy table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fedbilevel.errors import BadInput
from fedbilevel.results.files import PathLike, write_csv
from fedbilevel.results.history import Row
from fedbilevel.results.summary import rounds_until, runs
from fedbilevel.results.targets import Target, resolve_targets
from fedbilevel.statistics.intervals import Median, median_interval
from fedbilevel.statistics.pairs import Pair, win_table
from fedbilevel.statistics.profiles import Ranks

STATISTICS_COLUMNS = (
    *("target_column", "target_direction", "target_threshold", "statistic", "method", "algorithm", "other"),
    *("problems", "seeds", "seeds_reached", "wins", "ties", "losses", "value", "low", "high", "p_value"),
    "p_corrected",
)
"""`statistic` says what `value` is, `method` what `low`, `high` and the p values are; inf: never arrived."""
BOOTSTRAP = "95 % percentile bootstrap"
SIGN = "95 % Clopper-Pearson of untied pairs; two-sided sign test; corrected by Holm over all pairs of the target"
FRIEDMAN = "Friedman test"
NEMENYI = "Nemenyi test at 0.05"


@dataclass(frozen=True)
class Judged:
    """What is known of the rounds until one target: by algorithm, and by pair of algorithms."""

    target: Target
    medians: Mapping[str, Median]
    pairs: Mapping[tuple[str, str], Pair]

    @property
    def seeds(self) -> int:
        """Of the algorithm with the fewest."""
        return min(each.seeds for each in self.medians.values())


Compared = tuple[Target, dict[str, dict[object, float]]]
"""A target, and the rounds until it by algorithm and seed."""


def comparable(rows: Sequence[Row], targets: Sequence[float | Target] | None = None) -> list[Compared]:
    """The targets of one problem (None: as in `summarise`) at which its algorithms can be compared.

    Not so is a target at which no seed arrived, nor any of one algorithm, or where no algorithm has more than one seed.
    Raises `BadInput` for a bare number that is no accuracy.
    """
    found = runs(rows)
    if len(found) < 2 or max(map(len, found.values())) < 2:
        return []
    spent = [(target, rounds_until(rows, target)) for target in resolve_targets(rows, targets)]
    return [(target, costs) for target, costs in spent if len(costs) > 1 and least_median(costs) is not None]


def least_median(costs: Mapping[str, Mapping[object, float]]) -> float | None:
    """The least median rounds of any algorithm; None where no seed of any has arrived."""
    if all(math.isinf(cost) for seeds in costs.values() for cost in seeds.values()):
        return None
    return min(median(seeds.values()) for seeds in costs.values())


def judge(rows: Sequence[Row], targets: Sequence[float | Target] | None = None) -> list[Judged]:
    """The statistics of the rows of one problem for each target of `comparable`, which raises."""
    return [_judged(*each) for each in comparable(rows, targets)]


def judge_hardest(rows: Sequence[Row], targets: Sequence[float | Target] | None = None) -> Judged | None:
    """Those of the last target that some algorithm meets in the median, else of the last; None where there are none."""
    found = comparable(rows, targets)
    met = [each for each in found if math.isfinite(least_median(each[1]) or 0.0)]
    return _judged(*(met or found)[-1]) if found else None


def _judged(target: Target, costs: Mapping[str, Mapping[object, float]]) -> Judged:
    medians = {name: median_interval([*seeds.values()]) for name, seeds in costs.items()}
    return Judged(target, medians, win_table(costs))


def lines(judged: Iterable[Judged], ranks: Ranks | None = None) -> list[dict[str, object]]:
    """The rows of `statistics.csv`, with keys of `STATISTICS_COLUMNS`."""
    made: list[dict[str, object]] = []
    for each in judged:
        bound = each.target
        kind = {"target_column": bound.column, "target_direction": bound.direction, "target_threshold": bound.threshold}
        for name, one in each.medians.items():
            about = {"statistic": "median rounds", "method": BOOTSTRAP, "algorithm": name}
            spent = {"value": one.median, "low": one.low, "high": one.high}
            made.append({**kind, **about, "seeds": one.seeds, "seeds_reached": one.reached, **spent})
        for (name, other), pair in each.pairs.items():
            about = {"statistic": "P(fewer rounds) + P(equal)/2", "method": SIGN, "algorithm": name, "other": other}
            counts = {"seeds": pair.seeds, "wins": pair.wins, "ties": pair.ties, "losses": pair.losses}
            numbers = {"value": pair.share, "low": pair.low, "high": pair.high, "p_value": pair.p_value}
            made.append({**kind, **about, **counts, **numbers, "p_corrected": pair.p_corrected})
    if ranks is not None:
        for name, rank in ranks.average.items():
            about = {"statistic": "average rank", "method": FRIEDMAN, "algorithm": name}
            made.append({**about, "problems": ranks.problems, "value": rank, "p_value": ranks.p_value})
        if ranks.difference is not None:
            about = {"statistic": "critical difference of average ranks", "method": NEMENYI}
            made.append({**about, "problems": ranks.problems, "value": ranks.difference})
    return made


def write_statistics(path: PathLike, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows of `lines` as csv, whole or not at all; None becomes an empty field.

    Without rows an older file is removed. Raises `BadInput` if the file cannot be written or removed.
    """
    if not rows:
        remove_statistics(path)
        return
    write_csv(path, rows, STATISTICS_COLUMNS)


def remove_statistics(path: PathLike) -> None:
    """Remove a `statistics.csv` that is there. Raises `BadInput` if it cannot be removed."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(str(path), error.strerror, "a file that can be removed") from error

"""`statistics.csv`: intervals, pairs and ranks in one tidy table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedbilevel.results.files import PathLike, write_whole
from fedbilevel.results.history import Row
from fedbilevel.results.summary import rounds_until, runs
from fedbilevel.results.targets import Target, resolve_targets
from fedbilevel.statistics.intervals import Median, median_interval
from fedbilevel.statistics.pairs import Pair, win_table
from fedbilevel.statistics.profiles import Ranks

STATISTICS_COLUMNS = (
    *("target_column", "target_direction", "target_threshold", "statistic", "method", "algorithm", "other"),
    *("problems", "seeds", "seeds_reached", "wins", "ties", "losses", "value", "low", "high", "p_value"),
)
"""`statistic` says what `value` is, `method` what `low`, `high` and `p_value` are; inf: never arrived."""
BOOTSTRAP = "95 % percentile bootstrap"
SIGN = "95 % Clopper-Pearson of untied pairs; two-sided sign test"
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


def judge(rows: Sequence[Row], targets: Sequence[float | Target] | None = None) -> list[Judged]:
    """The statistics of the rows of one problem for each of its targets (None: as in `summarise`).

    None are made of a target at which no seed arrived, of one algorithm, or where no algorithm has more than one seed.
    Raises `BadInput` for a bare number that is no accuracy.
    """
    found = runs(rows)
    if len(found) < 2 or max(map(len, found.values())) < 2:
        return []
    judged = []
    for target in resolve_targets(rows, targets):
        costs = rounds_until(rows, target)
        medians = {name: median_interval([*seeds.values()]) for name, seeds in costs.items()}
        if len(costs) > 1 and any(each.reached for each in medians.values()):
            judged.append(Judged(target, medians, win_table(costs)))
    return judged


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
            made.append({**kind, **about, **counts, **numbers})
    if ranks is not None:
        for name, rank in ranks.average.items():
            about = {"statistic": "average rank", "method": FRIEDMAN, "algorithm": name}
            made.append({**about, "problems": ranks.problems, "value": rank, "p_value": ranks.p_value})
        if ranks.difference is not None:
            about = {"statistic": "critical difference of average ranks", "method": NEMENYI}
            made.append({**about, "problems": ranks.problems, "value": ranks.difference})
    return made


def write_statistics(path: PathLike, rows: Iterable[Mapping[str, object]]) -> None:
    """Write the rows of `lines` as csv, whole or not at all; None becomes an empty field.

    Raises `BadInput` if the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, STATISTICS_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())

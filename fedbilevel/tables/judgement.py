"""How sure a comparison is, as tables: intervals and wins over seeds, and ranks over problems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedbilevel.results.history import Row
from fedbilevel.results.summary import rounds_until
from fedbilevel.results.targets import Target, resolve_targets
from fedbilevel.statistics.intervals import few, least
from fedbilevel.statistics.pairs import Pair
from fedbilevel.statistics.profiles import Costs, Ranks
from fedbilevel.statistics.table import Judged, judge
from fedbilevel.tables.outcome import NEVER, count
from fedbilevel.tables.sheet import Sheet

LEVEL = 0.05
_LISTED = 4  # of so many algorithms every pair has a line of its own; of more, statistics.csv has them


@dataclass(frozen=True)
class Trial:
    """The runs of one problem: its name, rows and targets, and the algorithm that each label stands for."""

    name: str
    rows: Sequence[Row]
    targets: Sequence[float | Target] | None
    algorithms: Mapping[str, str]

    def judged(self) -> list[Judged]:
        """Its statistics over seeds, for each target."""
        return judge(self.rows, self.targets)

    def hardest(self) -> tuple[Target, dict[str, float]] | None:
        """The last target that some algorithm meets in the median (else the last), and the median rounds of each.

        Algorithms that stand for several labels are left out; None without a target.
        """
        found: tuple[Target, dict[str, float]] | None = None
        names = list(self.algorithms.values())
        for target in resolve_targets(self.rows, self.targets):
            costs = {
                self.algorithms[label]: statistics.median(seeds.values())
                for label, seeds in rounds_until(self.rows, target).items()
                if names.count(self.algorithms[label]) == 1
            }
            if costs and (found is None or min(costs.values()) < math.inf or min(found[1].values()) == math.inf):
                found = target, costs
        return found


def judged_sheets(judged: Iterable[Judged], of: str = "") -> list[Sheet]:
    """The tables of what was judged over seeds; of: the problem, where there are several."""
    return [sheet for each in judged for sheet in _sheets(each, f" ({of})" if of else "")]


def short_sheets(judged: Judged) -> list[Sheet]:
    """The same of one target in few lines: one table of intervals, and the win table."""
    title = f"How sure until {judged.target.text}: median rounds, 95 % intervals over seeds"
    short = f"Wins until {judged.target.text}: share of seeds with fewer rounds than column"
    wins = [_wins(judged, short)] if judged.pairs else []
    return [_medians(judged, title), *wins]


def _sheets(judged: Judged, of: str) -> Iterator[Sheet]:
    until = f"until {judged.target.text}{of}"
    yield _medians(judged, f"Median rounds {until}: 95 % interval by the percentile bootstrap over seeds")
    if not judged.pairs:
        return
    yield _wins(judged, f"Win table {until}: share of seeds in which row needs fewer rounds than column")
    if len(judged.medians) > _LISTED:
        return
    lines = []
    for (one, other), pair in _once(judged):
        span = NEVER if pair.low is None else f"{pair.low:.2f}–{pair.high:.2f}"
        wins = f"{pair.wins}–{pair.ties}–{pair.losses}"
        tests = [f"{pair.p_value:.3g}", f"{pair.p_corrected:.3g}"]
        lines.append([f"{one} : {other}", wins, f"{pair.share:.2f}", span, *tests])
    title = f"Pairs {until}: Clopper-Pearson 95 % of untied seeds; p of the two-sided sign test"
    yield Sheet(title, ["pair", "won–tied–lost", "share", "95 %", "p", "p by Holm"], lines)


def _medians(judged: Judged, title: str) -> Sheet:
    rows = [
        [name, f"{one.reached}/{one.seeds}", _rounds(one.median), _rounds(one.low), _rounds(one.high)]
        for name, one in judged.medians.items()
    ]
    return Sheet(title, ["algorithm", "seeds", "median", "low", "high"], rows, few(judged.seeds))


def _wins(judged: Judged, title: str) -> Sheet:
    names, number = list(judged.medians), len(_once(judged))
    table = [[one, *(_won(judged.pairs.get((one, other))) for other in names)] for one in names]
    test = f"{LEVEL:g} by the two-sided sign test"
    test += f", with Holm's correction over all {number} pairs" if number > 1 else ""
    note = f"a tie counts half; *: p < {test}; {told_apart(judged)}"
    return Sheet(title, ["", *names], table, note)


def _once(judged: Judged) -> list[tuple[tuple[str, str], Pair]]:
    """Every pair in one order: that of the algorithms."""
    places = {name: place for place, name in enumerate(judged.medians)}
    return [(names, pair) for names, pair in judged.pairs.items() if places[names[0]] < places[names[1]]]


def told_apart(judged: Judged) -> str:
    """Which pairs of a win table cannot be told apart, and whether so many seeds could have told any."""
    pairs = _once(judged)
    alike = [f"{one} : {other}" for (one, other), pair in pairs if pair.p_corrected >= LEVEL]
    if not alike:
        return "every pair is told apart"
    if len(alike) < len(pairs):
        listed = f": {', '.join(alike)}" if len(alike) <= _LISTED else ""
        return f"not told apart, {len(alike)} of {len(pairs)} pairs{listed}"
    seeds = max(pair.seeds for _, pair in pairs)
    never = len(pairs) * least(seeds) >= LEVEL  # the smallest p of all is multiplied by their number
    reason = f", and with {seeds} seeds none could be" if never else ""
    return ("no pair is told apart" if len(pairs) > 1 else "the pair is not told apart") + reason


def _rounds(value: float | None) -> str:
    if value is None:
        return NEVER
    return count(value) if math.isfinite(value) else "never"


def _won(pair: Pair | None) -> str:
    return NEVER if pair is None else f"{pair.share:.2f}{'*' if pair.p_corrected < LEVEL else ' '}"


def shared_costs(trials: Sequence[Trial]) -> tuple[Costs, list[str]]:
    """The median rounds of each algorithm that every problem with a target has, and which problems these are.

    The second is in words, with each problem's target, and names the algorithms that are left out. Nothing where these
    are fewer than two problems or algorithms.
    """
    found = [(trial.name, one) for trial in trials if (one := trial.hardest()) is not None]
    if len(found) < 2:
        return [], []
    names = [name for name in found[0][1][1] if all(name in costs for _, (_, costs) in found)]
    if len(names) < 2:
        return [], []
    told = [f"{name}: {target.text}" for name, (target, _) in found]
    rest = sorted({name for trial in trials for name in trial.algorithms.values()} - set(names))
    if rest:
        told.append(f"not once in every problem, so left out: {', '.join(rest)}")
    return [{name: costs[name] for name in names} for _, (_, costs) in found], told


def rank_sheet(ranks: Ranks, told: Sequence[str]) -> Sheet:
    """The average ranks, the best first; told: the problems and their targets."""
    rows = [[name, f"{rank:.2f}"] for name, rank in sorted(ranks.average.items(), key=lambda pair: pair[1])]
    if ranks.p_value is None or ranks.difference is None:
        test = "no test of fewer than three algorithms"
    else:
        test = f"Friedman test p = {ranks.p_value:.3g}; Nemenyi critical difference at 0.05: {ranks.difference:.2f}"
    title = f"Average ranks by median rounds over {ranks.problems} problems: {test}"
    return Sheet(title, ["algorithm", "rank"], rows, f"until {'; '.join(told)}")

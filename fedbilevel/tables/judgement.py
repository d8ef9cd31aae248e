"""How sure a comparison is, as tables: intervals and wins over seeds, and ranks over problems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedbilevel.results.history import Row
from fedbilevel.results.summary import rounds_until
from fedbilevel.results.targets import Target, resolve_targets
from fedbilevel.statistics.intervals import few
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


def _sheets(judged: Judged, of: str) -> Iterator[Sheet]:
    remark = few(judged.seeds)
    rows = [
        [name, f"{one.reached}/{one.seeds}", _rounds(one.median), _rounds(one.low), _rounds(one.high)]
        for name, one in judged.medians.items()
    ]
    title = f"Median rounds until {judged.target.text}{of}: 95 % interval by the percentile bootstrap over seeds"
    yield Sheet(title, ["algorithm", "seeds", "median", "low", "high"], rows, remark)
    if not judged.pairs:
        return
    names = list(judged.medians)
    table = [[one, *(_won(judged.pairs.get((one, other))) for other in names)] for one in names]
    title = f"Win table until {judged.target.text}{of}: share of seeds in which row needs fewer rounds than column"
    note = "a tie counts half; *: p < 0.05 by the two-sided sign test, not corrected for the number of pairs"
    yield Sheet(title, ["", *names], table, note)
    if len(names) > _LISTED:
        return
    lines = []
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            if (pair := judged.pairs.get((one, other))) is not None:
                span = NEVER if pair.low is None else f"{pair.low:.2f}–{pair.high:.2f}"
                wins = f"{pair.wins}–{pair.ties}–{pair.losses}"
                lines.append([f"{one} : {other}", wins, f"{pair.share:.2f}", span, f"{pair.p_value:.3g}"])
    title = f"Pairs until {judged.target.text}{of}: Clopper-Pearson 95 % of untied seeds; p of the two-sided sign test"
    yield Sheet(title, ["pair", "won–tied–lost", "share", "95 %", "p"], lines)


def _rounds(value: float | None) -> str:
    if value is None:
        return NEVER
    return count(value) if math.isfinite(value) else "never"


def _won(pair: Pair | None) -> str:
    return NEVER if pair is None else f"{pair.share:.2f}{'*' if pair.p_value < LEVEL else ' '}"


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

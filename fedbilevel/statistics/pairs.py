"""Two algorithms against each other, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from fedbilevel.statistics.intervals import CONFIDENCE

Costs = Mapping[object, float]
"""What each seed spent, by seed; inf: it never arrived."""


@dataclass(frozen=True)
class Pair:
    """How often one algorithm spent less than another on the same seed.

    low, high: the 95 % interval of Clopper and Pearson (1934) of the share of wins among the pairs that are not tied;
    None if all are. p_value: of the two-sided sign test, that a win is as likely as a loss; 1 if all are tied.
    p_corrected: the same after Holm's correction over all pairs of the win table; of one pair alone it is p_value.
    """

    wins: int
    ties: int
    losses: int
    low: float | None
    high: float | None
    p_value: float
    p_corrected: float

    @property
    def seeds(self) -> int:
        """How many seeds both have run."""
        return self.wins + self.ties + self.losses

    @property
    def share(self) -> float:
        """P(less) + P(equal) / 2."""
        return (self.wins + 0.5 * self.ties) / self.seeds

    def turned(self) -> Pair:
        """The same pair as the other one sees it."""
        low = None if self.high is None else 1.0 - self.high
        high = None if self.low is None else 1.0 - self.low
        return replace(self, wins=self.losses, losses=self.wins, low=low, high=high)


def compare(one: Costs, other: Costs) -> Pair | None:
    """One against another over the seeds that both have; None if they share none.

    Two seeds that never arrived are a tie, and one that did is less than one that never did. The test is the sign test
    (`scipy.stats.binomtest`), not Wilcoxon's: by how much inf is more has no rank.
    """
    shared = [seed for seed in one if seed in other]
    if not shared:
        return None
    wins = sum(one[seed] < other[seed] for seed in shared)
    losses = sum(one[seed] > other[seed] for seed in shared)
    ties = len(shared) - wins - losses
    if not wins + losses:
        return Pair(0, ties, 0, None, None, 1.0, 1.0)
    from scipy.stats import binomtest  # slow to import

    found = binomtest(wins, wins + losses, 0.5)
    interval = found.proportion_ci(CONFIDENCE, method="exact")
    p = float(found.pvalue)
    return Pair(wins, ties, losses, float(interval.low), float(interval.high), p, p)


def win_table(costs: Mapping[str, Costs]) -> dict[tuple[str, str], Pair]:
    """Every algorithm against every other with which it shares a seed, in both orders, corrected for their number."""
    found = {
        (one, other): pair
        for one, other in combinations(costs, 2)
        if (pair := compare(costs[one], costs[other])) is not None
    }
    table: dict[tuple[str, str], Pair] = {}
    corrected = holm([pair.p_value for pair in found.values()])
    for ((one, other), pair), p in zip(found.items(), corrected, strict=True):
        pair = replace(pair, p_corrected=p)
        table |= {(one, other): pair, (other, one): pair.turned()}
    return table


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for how many they are, by Holm's step-down method (Holm 1979), in the order given.

    Those of at most a level are then wrong anywhere with at most that chance, however they depend on each other: of m
    values in ascending order the i-th (from 0) is multiplied by m - i, is no less than the one before, and at most 1.

    >>> holm([0.01, 0.25, 0.02])
    [0.03, 0.25, 0.04]
    """
    corrected = [1.0] * len(p_values)
    least = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min((len(p_values) - place) * p_values[index], 1.0))
        corrected[index] = least
    return corrected

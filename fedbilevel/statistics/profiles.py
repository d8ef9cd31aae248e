"""Several problems at once: performance profiles, average ranks, and whether the ranks differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Costs = Sequence[Mapping[str, float]]
"""What each algorithm spent: one mapping per problem, all with the same algorithms; inf: never enough."""


@dataclass(frozen=True)
class Profile:
    """The share of problems that an algorithm solves within each factor of the best one's cost.

    ratios: ascending, one per problem, at least 1; inf where it never arrived.
    """

    algorithm: str
    ratios: tuple[float, ...]

    def share(self, factor: float) -> float:
        """The share of problems within a finite factor."""
        return sum(ratio <= factor for ratio in self.ratios) / len(self.ratios)


@dataclass(frozen=True)
class Ranks:
    """Average ranks over problems, 1 the best; ties and problems that several never solve share their mean rank.

    statistic, p_value: of the Friedman test; None of fewer than three algorithms or two problems. difference: the
    critical difference of Nemenyi at level 0.05: average ranks that are closer do not differ; None as well.
    """

    problems: int
    average: Mapping[str, float]
    statistic: float | None
    p_value: float | None
    difference: float | None


def profiles(costs: Costs) -> list[Profile]:
    """The performance profile of each algorithm (Dolan and More 2002).

    A problem that no algorithm solves counts among the problems. Raises `ValueError` for problems without the same
    algorithms, and without problems.
    """
    best = [min(problem.values()) for problem in costs]
    return [
        Profile(name, tuple(sorted(_ratio(problem[name], least) for problem, least in zip(costs, best, strict=True))))
        for name in _names(costs)
    ]


def _ratio(cost: float, best: float) -> float:
    if not math.isfinite(cost):
        return math.inf
    if cost == best:  # also if nothing was spent
        return 1.0
    return cost / best if best else math.inf


def ranks(costs: Costs) -> Ranks:
    """Average ranks with the Friedman test and the Nemenyi critical difference (Demsar 2006).

    Problems have to be independent of each other. Raises as `profiles` does.
    """
    from scipy.stats import friedmanchisquare, rankdata  # slow to import

    names = _names(costs)
    table = np.array([rankdata([problem[name] for name in names]) for problem in costs])
    average = dict(zip(names, map(float, table.mean(axis=0)), strict=True))
    if len(names) < 3 or len(costs) < 2:
        return Ranks(len(costs), average, None, None, None)
    difference = critical_difference(len(names), len(costs))
    if (table == table[:, :1]).all():  # all tied: the statistic divides by zero
        return Ranks(len(costs), average, 0.0, 1.0, difference)
    found = friedmanchisquare(*table.T)
    return Ranks(len(costs), average, float(found.statistic), float(found.pvalue), difference)


def critical_difference(algorithms: int, problems: int, level: float = 0.05) -> float:
    """By how much average ranks have to differ to differ at this level (Nemenyi 1963; Demsar 2006).

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    from scipy.stats import studentized_range  # slow to import

    q = float(studentized_range.ppf(1.0 - level, algorithms, math.inf)) / math.sqrt(2.0)
    return q * math.sqrt(algorithms * (algorithms + 1) / (6.0 * problems))


def _names(costs: Costs) -> list[str]:
    if not costs or any(problem.keys() != costs[0].keys() for problem in costs):
        raise ValueError("costs: allowed: one problem or more, all with the same algorithms")
    return list(costs[0])

"""The median over the seeds of one algorithm, with a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999
FEW = 5
"""Fewer seeds than this are said to be few."""


@dataclass(frozen=True)
class Median:
    """The median cost of some seeds, and its interval; inf is a cost that was never enough.

    reached: how many of the seeds have a finite cost; low, high: None of fewer than two seeds.
    """

    seeds: int
    reached: int
    median: float
    low: float | None
    high: float | None


def median_interval(costs: Sequence[float]) -> Median:
    """The median of one cost per seed (in any unit, inf where a seed never arrived), with its 95 % interval.

    The interval is the percentile bootstrap's (Efron 1979), by `scipy.stats.bootstrap` with a generator of its own, so
    that the same costs give the same interval. Its ends are medians of resamples, never between two of them: with inf
    there is no between. BCa is not taken, since its acceleration comes from the jackknife, which a median, that does
    not vary smoothly, makes worthless, and which inf leaves undefined. With few seeds the interval is too narrow: it
    cannot leave the range of the seeds.

    Raises `ValueError` without costs or for NaN.
    """
    if not costs or any(map(math.isnan, costs)):
        raise ValueError(f"costs: got {list(costs)!r}; allowed: at least one, and none NaN")
    reached = sum(map(math.isfinite, costs))
    middle = float(np.median(costs))
    if len(costs) == 1:
        return Median(1, reached, middle, None, None)
    from scipy.stats import bootstrap  # slow to import

    with np.errstate(invalid="ignore"):  # scipy's own interval and error, which inf - inf spoils, are not used
        found = bootstrap(
            (np.asarray(costs, dtype=np.float64),),
            np.median,
            n_resamples=RESAMPLES,
            method="percentile",
            random_state=np.random.default_rng(0),
        )
    ranked = np.sort(found.bootstrap_distribution)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = (float(ranked[math.ceil(share * RESAMPLES) - 1]) for share in (tail, 1.0 - tail))
    return Median(len(costs), reached, middle, low, high)


def few(seeds: int) -> str:
    """The line that says so where there are fewer than five seeds, empty otherwise.

    >>> few(3)
    '3 seeds are few: intervals are rough, and no sign test over them can give less than p = 0.25'
    >>> few(5)
    ''
    """
    if seeds >= FEW:
        return ""
    count = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
    return f"{count} few: intervals are rough, and no sign test over them can give less than p = {least(seeds):g}"


def least(seeds: int) -> float:
    """The least p value of a two-sided sign test over so many seeds: of all won, or all lost.

    >>> least(5)
    0.0625
    """
    return min(2.0 * 0.5**seeds, 1.0)

"""Intervals where what was measured falls into clusters: tasks within seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbilevel.statistics.intervals import CONFIDENCE

RESAMPLES = 1000

Measures = Callable[[NDArray[np.int64]], Mapping[str, float]]
"""By name, of tasks each of which counts as often as these numbers [n] say."""


@dataclass(frozen=True)
class Interval:
    """A measure of all tasks, and the ends of its interval."""

    value: float
    low: float
    high: float


def clustered(measures: Measures, clusters: NDArray[np.int64], resamples: int = RESAMPLES) -> dict[str, Interval]:
    """Each measure of n tasks with its 95 % interval, where cluster [n] says which seed a task is of.

    The percentile bootstrap in two stages (Davison & Hinkley 1997, section 3.8): seeds are drawn with replacement, and
    within each one drawn as many of its tasks as it has. The draws are the same for everybody who has the same
    clusters. With few clusters the intervals are too narrow, as all bootstraps over few seeds are.
    """
    found = measures(np.ones(len(clusters), np.int64))
    drawn = [measures(each) for each in resampled(clusters, resamples)]
    tail = 50.0 * (1.0 - CONFIDENCE)
    ends = {key: np.percentile([each[key] for each in drawn], [tail, 100.0 - tail]) for key in found}
    return {key: Interval(value, float(ends[key][0]), float(ends[key][1])) for key, value in found.items()}


def resampled(clusters: NDArray[np.int64], resamples: int) -> NDArray[np.int64]:
    """How often each task counts in every resample, [resamples, n]."""
    draw = np.random.default_rng(0)
    members = [np.flatnonzero(clusters == each) for each in np.unique(clusters)]
    counts = np.zeros((resamples, len(clusters)), np.int64)
    for row in counts:
        for chosen in draw.integers(len(members), size=len(members)):
            own = members[chosen]
            row[own] += np.bincount(draw.integers(len(own), size=len(own)), minlength=len(own))
    return counts

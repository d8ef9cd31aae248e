# Bootstrap intervals of a median, with seeds that never arrived.

from __future__ import annotations

import math

import numpy as np
import pytest

from fedbilevel.statistics.intervals import few, median_interval

INF = math.inf


def ends_of_the_exact_bootstrap(costs):
    """Of an odd number of seeds: a resample's median is at most the j-th value if most draws are, B(n, j/n)."""
    ranked, n = sorted(costs), len(costs)

    def at_most(j):
        return sum(math.comb(n, k) * (j / n) ** k * (1 - j / n) ** (n - k) for k in range((n + 1) // 2, n + 1))

    return tuple(ranked[next(j for j in range(1, n + 1) if at_most(j) >= share) - 1] for share in (0.025, 0.975))


@pytest.mark.parametrize(
    "costs",
    [
        [30.0, 10.0, 20.0],
        [1.0, 2.0, 3.0, 4.0, INF],
        [1.0, 2.0, INF, INF, INF],
        [float(i * i) for i in range(1, 12)],
        [*map(float, range(1, 9)), INF, INF, INF],
        [*map(float, range(1, 10))],  # 2 to 8; a 90 % interval would be 3 to 7
    ],
)
def test_the_interval_is_that_of_all_resamples(costs):
    found = median_interval(costs)
    assert (found.low, found.high) == ends_of_the_exact_bootstrap(costs)
    assert found.median == sorted(costs)[len(costs) // 2]
    assert (found.seeds, found.reached) == (len(costs), sum(cost < INF for cost in costs))


def test_eleven_seeds_by_hand():
    """B(11, j/11) puts 2.5 % of the medians at the third value and 97.5 % at the ninth."""
    found = median_interval([*map(float, range(1, 9)), INF, INF, INF])
    assert (found.median, found.low, found.high) == (6.0, 3.0, INF)


def test_a_large_sample_agrees_with_a_percentile_bootstrap_in_numpy():
    costs = np.random.default_rng(5).exponential(100.0, 400)
    drawn = np.random.default_rng(6).integers(0, 400, (20_000, 400))
    low, high = np.percentile(np.median(costs[drawn], axis=1), [2.5, 97.5])
    found = median_interval(costs.tolist())
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_the_median_of_an_even_number_lies_between_or_beyond():
    assert median_interval([10.0, 20.0]).median == 15.0
    assert median_interval([10.0, INF]).median == INF


def test_one_seed_has_no_interval_and_none_arrived_has_no_end():
    one = median_interval([7.0])
    assert (one.median, one.low, one.high) == (7.0, None, None)
    never = median_interval([INF, INF])
    assert (never.reached, never.median, never.low, never.high) == (0, INF, INF, INF)


def test_the_same_costs_give_the_same_interval():
    costs = np.random.default_rng(5).exponential(100.0, 200).tolist()
    assert median_interval(costs) == median_interval(costs)


def test_no_costs_and_nan_are_refused():
    for costs in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="at least one, and none NaN"):
            median_interval(costs)


def test_few_seeds_are_said_to_be_few():
    less = "intervals are rough, and no sign test over them can give less than p ="
    assert few(4) == f"4 seeds are few: {less} 0.125"
    assert few(1) == f"1 seed is few: {less} 1"
    assert few(5) == ""

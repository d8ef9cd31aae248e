# Pairs of algorithms: counts by hand, and binomial tails in closed form.

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from fedbilevel.results.summary import rounds_until
from fedbilevel.results.targets import accuracy
from fedbilevel.statistics.pairs import compare, holm, win_table
from tests.fedbilevel.results.rows import run

INF = math.inf


def seeds(*costs):
    return dict(enumerate(costs))


def test_wins_ties_and_losses_over_the_seeds_that_both_have():
    """Seed 0 wins, 1 ties, 2 is a win over never, 3 a tie of two that never arrived, 4 a loss; 5 and 9 stand alone."""
    one = {0: 1.0, 1: 5.0, 2: 8.0, 3: INF, 4: 9.0, 5: 1.0}
    other = {9: 1.0, 4: 2.0, 3: INF, 2: INF, 1: 5.0, 0: 2.0}
    pair = compare(one, other)
    assert pair is not None
    assert (pair.wins, pair.ties, pair.losses, pair.seeds) == (2, 2, 1, 5)
    assert pair.share == 3 / 5
    assert pair.p_value == pytest.approx(1.0)  # two of three: every outcome is as far or further


def test_all_won_in_closed_form():
    """Of n wins in n: the lower end is (alpha / 2)^(1 / n), and the sign test gives 2 / 2^n."""
    pair = compare(seeds(*[1.0] * 7, INF), seeds(*[2.0] * 6, INF, INF))
    assert pair is not None
    assert (pair.wins, pair.ties, pair.losses) == (7, 1, 0)
    assert pair.low == pytest.approx(0.025 ** (1 / 7), rel=1e-9)
    assert pair.high == 1.0
    assert pair.p_value == pytest.approx(2 / 2**7, rel=1e-12)
    turned = pair.turned()
    assert (turned.wins, turned.losses, turned.low) == (0, 7, 0.0)
    assert turned.high == pytest.approx(1 - 0.025 ** (1 / 7), rel=1e-9)


def test_the_ends_of_the_interval_leave_two_and_a_half_percent_beyond():
    pair = compare(seeds(*[1.0] * 6, 3.0, 3.0), seeds(*[2.0] * 8))
    assert pair is not None
    assert pair.low is not None
    assert pair.high is not None

    def tail(p, counts):
        return sum(math.comb(8, k) * p**k * (1 - p) ** (8 - k) for k in counts)

    assert tail(pair.low, range(6, 9)) == pytest.approx(0.025, rel=1e-6)
    assert tail(pair.high, range(7)) == pytest.approx(0.025, rel=1e-6)
    assert pair.p_value == pytest.approx(2 * (28 + 8 + 1) / 256)


def test_nothing_but_ties_says_nothing():
    pair = compare(seeds(INF, 3.0), seeds(INF, 3.0))
    assert pair is not None
    assert (pair.share, pair.low, pair.high, pair.p_value) == (0.5, None, None, 1.0)


def test_a_table_has_both_orders_and_leaves_out_pairs_without_a_common_seed():
    table = win_table({"a": seeds(1.0, 2.0), "b": seeds(3.0, INF), "c": {7: 1.0}})
    assert {key: pair.share for key, pair in table.items()} == {("a", "b"): 1.0, ("b", "a"): 0.0}
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_holm_by_hand():
    """0.005 * 4, 0.01 * 3, 0.03 * 2 in ascending order; 0.04 * 1 is less than the one before, which stands for it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_is_what_closed_testing_by_bonferroni_gives():
    """A hypothesis falls where Bonferroni refutes every set that holds it (Marcus, Peritz & Gabriel 1976)."""
    draws = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 6):
        p = [*draws.uniform(0.0, 0.3, count)]
        p[-1] = p[0]  # ties
        sets = [each for size in range(1, count + 1) for each in combinations(range(count), size)]
        closed = [max(min(len(s) * min(p[j] for j in s), 1.0) for s in sets if i in s) for i in range(count)]
        assert holm(p) == pytest.approx(closed, rel=1e-12)


def test_every_pair_of_a_table_is_corrected_and_counts_once():
    """Of 8 seeds a beats b in 8 and c in 7, and b ties with c in 7: p = 2 / 256, 18 / 256 and 1, of three pairs."""
    a, b = [1.0] * 8, [2.0] * 8
    table = win_table({"a": seeds(*a), "b": seeds(*b), "c": seeds(*b[:7], 0.5), "d": {99: 1.0}})
    corrected = {key: pair.p_corrected for key, pair in table.items()}
    assert corrected["a", "b"] == corrected["b", "a"] == pytest.approx(6 / 256)
    assert corrected["a", "c"] == pytest.approx(36 / 256)
    assert corrected["b", "c"] == 1.0
    assert table["a", "c"].p_value == pytest.approx(18 / 256)
    assert len(table) == 6


def test_rounds_until_a_target_lie_between_evaluations_and_are_infinite_without_arrival():
    """Seed 0 meets 0.5 halfway from round 10 to 20; seed 1 at its start; seed 2 never; b has no accuracy."""
    rows = run("a", 0, [(0, 0.0), (10, 0.4), (20, 0.6)]) + run("a", 1, [(0, 0.5)]) + run("a", 2, [(0, 0.1), (90, 0.4)])
    rows += run("b", 0, [(0, None)])
    assert rounds_until(rows, accuracy(0.5)) == {"a": {0: pytest.approx(15.0), 1: 0.0, 2: INF}}

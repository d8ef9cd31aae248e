# The numbers behind a figure: medians of seeds on unequal grids that end at unequal places, by hand.

from __future__ import annotations

import math

import pytest

from fedbilevel.figures.curves import curves
from fedbilevel.results.ending import Ends
from tests.fedbilevel.results.rows import row, run


def shown(piece):
    return piece.seeds, piece.x.tolist(), piece.median.tolist(), piece.low.tolist(), piece.high.tolist()


def test_seeds_lie_on_lines_between_their_evaluations_and_the_curve_ends_with_the_last():
    """Seed 0 at 0, 10, 20, 30; seed 1 at 0, 15, 25. At 10 seed 1 is at 0.2 + 10/15 * 0.6 = 0.6; at 15 seed 0 at 0.5, at
    25 at 0.75; at 20 seed 1 at 0.9. From 25 to 30 only seed 0 is there, from 0.75 to 0.9.
    """
    rows = [*run("a", 0, [(0, 0.0), (10, 0.4), (20, 0.6), (30, 0.9)]), *run("a", 1, [(0, 0.2), (15, 0.8), (25, 1.0)])]
    (curve,) = curves(rows, "rounds", "test_accuracy")
    both, alone = curve.pieces
    assert (both.seeds, both.x.tolist()) == (2, [0, 10, 15, 20, 25])
    assert both.median.tolist() == pytest.approx([0.1, 0.5, 0.65, 0.75, 0.875])
    assert both.low.tolist() == pytest.approx([0.0, 0.4, 0.5, 0.6, 0.75])
    assert both.high.tolist() == pytest.approx([0.2, 0.6, 0.8, 0.9, 1.0])
    assert (alone.seeds, alone.x.tolist()) == (1, [25, 30])
    assert alone.median.tolist() == alone.low.tolist() == alone.high.tolist() == pytest.approx([0.75, 0.9])
    assert (curve.seeds, curve.start, curve.end) == (2, (0.0, pytest.approx(0.1)), (30.0, pytest.approx(0.9)))


def test_a_median_of_three_is_no_mean():
    rows = [r for seed, level in enumerate((0.1, 0.2, 0.9)) for r in run("a", seed, [(0, level), (4, level)])]
    (piece,) = curves(rows, "rounds", "test_accuracy")[0].pieces
    assert shown(piece) == (3, [0, 4], [0.2, 0.2], [0.1, 0.1], [0.9, 0.9])


def test_a_band_of_five_goes_from_quartile_to_quartile_also_where_only_some_are_left():
    """Levels 1, 2, 4, 8, 16: quartiles 2 and 8. When 1 and 2 have ended, of 4, 8, 16: 6 and 12."""
    levels = {1.0: 3, 2.0: 3, 4.0: 9, 8.0: 9, 16.0: 9}
    rows = [r for s, (v, end) in enumerate(levels.items()) for r in run("a", s, [(0, v), (end, v)], "loss")]
    first, second = curves(rows, "rounds", "upper_loss")[0].pieces
    assert shown(first) == (5, [0, 3], [4, 4], [2, 2], [8, 8])
    assert shown(second) == (3, [3, 9], [8, 8], [6, 6], [12, 12])


def test_a_seed_without_a_value_counts_among_the_seeds_but_has_no_line():
    """Four seeds have quartiles, also where one of them never was finite: of 4, 8, 16 these are 6 and 12."""
    levels = (4.0, math.nan, 8.0, 16.0)
    rows = [r for seed, level in enumerate(levels) for r in run("a", seed, [(0, level), (3, level)], "loss")]
    (curve,) = curves(rows, "rounds", "upper_loss")
    assert curve.seeds == 4
    assert [shown(piece) for piece in curve.pieces] == [(3, [0, 3], [8, 8], [6, 6], [12, 12])]


def test_seeds_that_do_not_meet_are_pieces_apart_and_a_lone_point_is_one_of_its_own():
    rows = [*run("a", 0, [(0, 0.5), (1, 0.6)]), *run("a", 1, [(5, 0.7)])]
    first, second = curves(rows, "rounds", "test_accuracy")[0].pieces
    assert shown(first) == (1, [0, 1], [0.5, 0.6], [0.5, 0.6], [0.5, 0.6])
    assert shown(second) == (1, [5], [0.7], [0.7], [0.7])


def test_a_seed_of_one_point_does_not_cut_the_curve_of_the_others():
    rows = [*run("a", 0, [(0, 0.0), (8, 0.8)]), *run("a", 1, [(4, 0.9)])]
    (curve,) = curves(rows, "rounds", "test_accuracy")
    assert [shown(piece)[:3] for piece in curve.pieces] == [(1, [0, 8], [0.0, 0.8])]
    assert curve.seeds == 2


def test_each_algorithm_ends_where_it_ended_and_bytes_add_both_ways():
    """A round is 10 bytes up, 20 down, half a simulated second; every row says 0.001 s of wall clock."""
    rows = [*run("short", 0, [(0, 0.1), (3, 0.2)]), *run("long", 0, [(0, 0.1), (500, 0.9)])]
    for x_axis, ends in (("rounds", [3, 500]), ("bytes", [90, 15000]), ("seconds", [1.5, 250]), ("wall", [0.001] * 2)):
        assert [c.end[0] for c in curves(rows, x_axis, "test_accuracy")] == ends


def test_values_that_are_not_finite_are_left_out():
    (curve,) = curves(run("a", 0, [(0, 0.1), (1, math.nan), (2, math.inf), (3, 0.4)]), "rounds", "test_accuracy")
    assert shown(curve.pieces[0])[:3] == (1, [0, 3], [0.1, 0.4])


def test_the_error_is_what_the_accuracy_lacks():
    (curve,) = curves(run("a", 0, [(0, 0.25), (1, 0.75)]), "rounds", "error")
    assert shown(curve.pieces[0])[:3] == (1, [0, 1], [0.75, 0.25])


def test_a_cross_stands_where_a_run_broke_off_also_out_of_all_bounds():
    rows = [
        *run("a", 0, [(0, 1.0), (4, 2.0)], "loss"),
        *run("a", 1, [(0, 1.0), (3, 5.0), (7, 1e306)], "loss"),
        *run("b", 0, [(0, 1.0), (2, 3.0), (6, math.nan)], "loss"),
        *run("c", 0, [(0, 1.0), (9, 1.0)], "loss"),
    ]
    broken = frozenset({("a", 0), ("a", 1), ("b", 0), ("c", 1)})
    assert [c.crosses for c in curves(rows, "rounds", "upper_loss", Ends(broken))] == [
        ((4.0, 2.0), (7.0, 1e306)),
        ((6.0, 3.0),),
        (),
    ]


def test_an_algorithm_without_the_column_has_no_curve():
    rows = [row("a", 0, 1, metric_gap=1.0), row("b", 0, 1)]
    assert [curve.algorithm for curve in curves(rows, "rounds", "metric_gap")] == ["a"]


def test_a_seed_that_has_ended_early_stays_at_its_last_value_until_the_last_one_ends():
    """Seeds 0, 1, 2 meet 0.8 at rounds 10, 30 and 40: the median meets it when seed 1 does, at 30, and never falls."""
    points = {0: [(0, 0.0), (10, 0.8)], 1: [(0, 0.0), (10, 0.2), (30, 0.8)], 2: [(0, 0.0), (10, 0.1), (40, 0.9)]}
    rows = [r for seed, at in points.items() for r in run("a", seed, at)]
    (curve,) = curves(rows, "rounds", "test_accuracy", Ends(early=frozenset(("a", seed) for seed in points)))
    whole, two, one = curve.pieces
    assert [piece.held for piece in curve.pieces] == [0, 1, 2]
    assert shown(whole)[:3] == (3, [0, 10], [0.0, 0.2])
    assert (two.seeds, two.x.tolist(), two.median.tolist()) == (2, [10, 30], pytest.approx([0.2, 0.8]))
    assert two.high.tolist() == [0.8, 0.8]
    assert (one.seeds, one.x.tolist(), one.median.tolist()) == (1, [30, 40], pytest.approx([0.8, 0.8]))
    assert one.high.tolist() == pytest.approx([0.8, 0.9])
    # left out instead, the median falls to the mean of the two that are left, 0.15
    assert curves(rows, "rounds", "test_accuracy")[0].pieces[1].median[0] == pytest.approx(0.15)


def test_of_the_seeds_only_those_that_ended_early_are_held():
    """Seed 1 broke off at 5: beyond, only seed 0, held from 3, and seed 2 count, and the cross is seed 1's."""
    levels = {0: (3, 1.0), 1: (5, 5.0), 2: (9, 9.0)}
    rows = [r for s, (end, v) in levels.items() for r in run("a", s, [(0, v), (end, v)], "loss")]
    (curve,) = curves(rows, "rounds", "upper_loss", Ends(frozenset({("a", 1)}), frozenset({("a", 0)})))
    assert [shown(piece)[:3] for piece in curve.pieces] == [
        (3, [0, 3], [5, 5]),
        (2, [3, 5], [5, 5]),
        (1, [5, 9], [5, 5]),
    ]
    assert curve.pieces[2].low.tolist() == [1, 1]
    assert curve.crosses == ((5.0, 5.0),)

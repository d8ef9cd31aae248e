# summary.csv: hand-computed arrivals of all seeds, also of those that never arrived.

from __future__ import annotations

import csv
import math

import pytest

from fedbilevel.results import SUMMARY_COLUMNS, summarise, write_summary
from fedbilevel.results.targets import Target
from tests.fedbilevel.results.rows import row, run

COSTS = ("rounds", "uplink_bytes", "downlink_bytes", "simulated_seconds", "wall_seconds")


def three(line, name):
    return line[name], line[f"{name}_low"], line[f"{name}_high"]


def censored(line):
    return line["censored"], line["low_censored"], line["high_censored"]


def test_arrivals_lie_between_evaluations_and_every_seed_counts():
    """Seeds on unequal grids, target 0.8.

    Seed 0 goes from 0.5 at round 10 to 0.85 at round 20: it meets 0.8 at 10 + 10 * 0.3 / 0.35 = 18 4/7, falls below
    again and ends at 0.75. Seed 1 goes from 0.6 at 7 to exactly 0.8 at 26. Seed 2 never arrives until 80. The median
    of 18 4/7, 26 and more than 80 is 26. A round is 10 bytes up, 20 down, half a second. Finals 0.75, 0.8, 0.7, best
    0.85, 0.8, 0.79.
    """
    rows = [
        *run("a", 0, [(0, 0.1), (10, 0.5), (20, 0.85), (30, 0.75)]),
        *run("a", 1, [(0, 0.1), (7, 0.6), (26, 0.8)]),
        *run("a", 2, [(0, 0.1), (40, 0.79), (80, 0.7)]),
    ]
    (line,) = summarise(rows, [0.8])
    assert list(line) == list(SUMMARY_COLUMNS)
    assert [line[key] for key in SUMMARY_COLUMNS[:7]] == ["a", "test_accuracy", "at_least", 0.8, 3, 2, "range"]
    assert censored(line) == (False, False, True)
    for name, each in (("rounds", 1.0), ("uplink_bytes", 10.0), ("downlink_bytes", 20.0), ("simulated_seconds", 0.5)):
        assert three(line, name) == pytest.approx((26.0 * each, (18 + 4 / 7) * each, 80.0 * each), rel=1e-14)
    assert line["wall_seconds"] == 0.001
    assert three(line, "final_test_accuracy") == (0.75, 0.7, 0.8)
    assert three(line, "best_test_accuracy") == (0.8, 0.79, 0.85)
    assert three(line, "final_round") == (30.0, 26.0, 80.0)
    assert three(line, "final_upper_loss") == (1.0, 1.0, 1.0)


def test_one_arrival_of_three_does_not_stand_for_all():
    """The only seed that arrives does so at 846: of three, the median is later than 900, where the others ended."""
    once = [*run("once", 0, [(0, 0.1), (840, 0.94), (852, 0.96), (900, 0.96)])]
    for seed in (1, 2):
        once += run("once", seed, [(0, 0.1), (900, 0.94)])
    every = [r for seed in range(3) for r in run("every", seed, [(0, 0.1), (680, 0.94), (704, 0.96), (900, 0.96)])]
    rare, sure = summarise(once + every, [0.95])
    assert (rare["seeds_reached"], sure["seeds_reached"]) == (1, 3)
    assert three(rare, "rounds") == pytest.approx((900.0, 846.0, 900.0))
    assert censored(rare) == (True, False, True)
    assert three(sure, "rounds") == pytest.approx((692.0, 692.0, 692.0))
    assert censored(sure) == (False, False, False)


def test_nobody_arrived():
    rows = [*run("a", 0, [(0, 0.1), (5, 0.3)]), *run("a", 1, [(0, 0.1), (7, 0.3)])]
    (line,) = summarise(rows, [0.9])
    assert (line["seeds"], line["seeds_reached"], censored(line)) == (2, 0, (True, True, True))
    assert three(line, "rounds") == (6.0, 5.0, 7.0)
    assert three(line, "uplink_bytes") == (60.0, 50.0, 70.0)


def test_a_run_that_meets_the_target_at_its_first_evaluation_arrives_there():
    (line,) = summarise(run("a", 0, [(4, 0.9), (8, 0.95)]), [0.9])
    assert three(line, "rounds") == (4.0, 4.0, 4.0)


def test_targets_are_met_from_above_too():
    """1 at round 0, 0.25 at 30: 0.5 after two thirds of the way, 20. A loss that starts at 0.4 is there at once."""
    rows = [*run("a", 0, [(0, 1.0), (30, 0.25)], "loss"), *run("b", 0, [(0, 0.4), (30, 2.0)], "loss")]
    target = Target(column="upper_loss", at_most=0.5)
    first, second = summarise(rows, [target])
    assert first["rounds"] == pytest.approx(20.0)
    assert second["rounds"] == 0.0
    assert [first[f"target_{part}"] for part in ("column", "direction", "threshold")] == ["upper_loss", "at_most", 0.5]


def test_five_seeds_are_spread_from_quartile_to_quartile():
    """Four jump from 0 to 1 in one round, to meet 0.5 in its middle: at 10.5, 20.5, 40.5, 80.5. One never does."""
    rows = [r for seed, at in enumerate((80, 10, 40, 20)) for r in run("a", seed, [(at, 0.0), (at + 1, 1.0)])]
    (line,) = summarise([*rows, *run("a", 4, [(0, 0.0), (200, 0.0)])], [0.5])
    assert (line["spread"], line["seeds_reached"]) == ("quartiles", 4)
    assert three(line, "rounds") == (40.5, 20.5, 80.5)
    assert censored(line) == (False, False, False)


def test_rows_without_the_column_are_passed_over_and_nan_is_no_way_to_a_target():
    """The value is measured at rounds 0, 20 and 40 only, and meets 1 halfway between 20 and 40."""
    values = [(0, 3.0), (10, None), (20, 2.0), (30, None), (40, 0.0)]
    rows = [row("a", 0, turn, value=value) for turn, value in values]
    target = Target(column="value", at_most=1.0)
    assert summarise(rows, [target])[0]["rounds"] == 30.0
    (line,) = summarise(run("a", 0, [(0, math.nan), (5, 0.6), (9, math.nan)]), [0.5])
    assert line["rounds"] == 5.0
    assert math.isnan(line["final_test_accuracy"])
    assert line["best_test_accuracy"] == 0.6


def test_huge_losses_do_not_overflow_on_the_way():
    """From 1.7e308 to -1.7e308 in 10 rounds: 0 in the middle."""
    (line,) = summarise(run("a", 0, [(0, 1.7e308), (10, -1.7e308)], "loss"), [Target(column="upper_loss", at_most=0.0)])
    assert line["rounds"] == pytest.approx(5.0)


def test_an_algorithm_without_the_column_has_no_costs():
    rows = [*(row("a", 0, turn, metric_gap=1.0 - turn / 10) for turn in (0, 10)), *run("b", 0, [(0, 0.1), (10, 0.2)])]
    there, without = summarise(rows, [Target(column="metric_gap", at_most=0.5)])
    assert (there["rounds"], there["seeds_reached"]) == (5.0, 1)
    assert {without[name] for name in COSTS} == {without["seeds_reached"], without["censored"], None}
    assert there["final_metric_gap"] == 0.0
    assert without["final_metric_gap"] is None


def test_algorithms_keep_their_order_and_targets_theirs_with_rows_of_runs_interleaved():
    runs = zip(run("z", 0, [(8, 0.1), (9, 0.7)]), run("b", 0, [(3, 0.1), (4, 0.7)]), strict=True)
    lines = summarise([r for pair in runs for r in pair], [0.7, 0.1, 0.7])
    found = [(line["algorithm"], line["target_threshold"], line["rounds"]) for line in lines]
    assert found == [("z", 0.7, 9.0), ("z", 0.1, 8.0), ("b", 0.7, 4.0), ("b", 0.1, 3.0)]


def test_rows_out_of_order_are_read_by_round():
    (line,) = summarise(run("a", 0, [(30, 0.9), (10, 0.8), (0, 0.0), (20, 0.7)]), [0.4])
    assert (line["rounds"], line["final_test_accuracy"]) == (pytest.approx(5.0), 0.9)


@pytest.mark.parametrize("targets", [None, []])
def test_without_targets_an_algorithm_has_one_row_with_its_ends(targets):
    """Final losses 0.3 and 0.5: median 0.4."""
    rows = [*run("a", 0, [(0, 2.0), (10, 0.3)], "loss"), *run("a", 1, [(0, 2.0), (14, 0.5)], "loss")]
    (line,) = summarise(rows, targets)
    assert (line["target_column"], line["seeds"], line["seeds_reached"], line["rounds"]) == (None, 2, None, None)
    assert three(line, "final_upper_loss") == pytest.approx((0.4, 0.3, 0.5))
    assert three(line, "final_round") == (12.0, 10.0, 14.0)
    assert three(line, "final_test_accuracy") == three(line, "best_test_accuracy") == (None, None, None)


def test_a_run_that_diverged_does_not_break_the_summary():
    rows = [*run("a", 0, [(1, math.inf)], "loss"), *run("a", 1, [(1, 1.0)], "loss"), *run("a", 2, [(1, 2.0)], "loss")]
    assert three(summarise(rows)[0], "final_upper_loss") == (2.0, 1.0, math.inf)


def test_the_summary_file_has_its_columns_and_empty_fields(tmp_path):
    rows = [row("a", 0, 0, 0.1, metric_z=1.0, value=2.0), row("a", 0, 5, 0.5, metric_z=3.0)]
    write_summary(tmp_path / "s.csv", summarise(rows, [0.5, 0.9]))
    with open(tmp_path / "s.csv", newline="") as file:
        reached, never = csv.DictReader(file)
    parts = ("", "_low", "_high")
    assert tuple(reached) == (*SUMMARY_COLUMNS, *(f"final_{c}{part}" for c in ("value", "metric_z") for part in parts))
    assert (reached["rounds"], reached["censored"], reached["final_value"]) == ("5.0", "false", "2.0")
    assert (never["rounds"], never["censored"], never["final_metric_z"]) == ("5.0", "true", "3.0")
    write_summary(tmp_path / "none.csv", summarise(run("a", 0, [(0, 1.0)], "loss")))
    with open(tmp_path / "none.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["target_column"] == line["censored"] == line["rounds"] == ""
    write_summary(tmp_path / "empty.csv", summarise([], None))
    assert (tmp_path / "empty.csv").read_text() == ",".join(SUMMARY_COLUMNS) + "\n"

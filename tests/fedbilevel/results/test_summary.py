# summary.csv: hand-computed crossings.

from __future__ import annotations

import csv
import math

import pytest

from fedbilevel.errors import BadInput
from fedbilevel.results import SUMMARY_COLUMNS, summarise, write_summary
from tests.fedbilevel.results.rows import run


def test_crossings_of_an_accuracy_that_goes_up_and_down():
    """Seeds on unequal grids, target 0.8.

    Seed 0 crosses at round 20 (0.85), falls below at 30, ends at 0.75. Seed 1 is evaluated at 0, 7, 26 and crosses at
    26 with exactly 0.8. Seed 2 never does. Over the seeds that reached: rounds 20 and 26, mean 23, deviation
    sqrt((3^2 + 3^2) / 1) = sqrt(18). A round is 10 bytes up, 20 down, 0.5 s. Finals 0.75, 0.8, 0.7: mean 0.75,
    deviation 0.05. Best 0.85, 0.8, 0.79: mean 2.44 / 3.
    """
    rows = [
        *run("a", 0, [(0, 0.1), (10, 0.5), (20, 0.85), (30, 0.75)]),
        *run("a", 1, [(0, 0.1), (7, 0.6), (26, 0.8)]),
        *run("a", 2, [(0, 0.1), (40, 0.79), (80, 0.7)]),
    ]
    (line,) = summarise(rows, [0.8])
    root = math.sqrt(18)
    assert list(line) == list(SUMMARY_COLUMNS)
    assert line == {
        "algorithm": "a",
        "target_accuracy": 0.8,
        "seeds": 3,
        "seeds_reached": 2,
        "rounds_mean": 23.0,
        "rounds_std": pytest.approx(root),
        "uplink_bytes_mean": 230.0,
        "uplink_bytes_std": pytest.approx(10 * root),
        "downlink_bytes_mean": 460.0,
        "downlink_bytes_std": pytest.approx(20 * root),
        "simulated_seconds_mean": 11.5,
        "simulated_seconds_std": pytest.approx(root / 2),
        "final_accuracy_mean": pytest.approx(0.75),
        "final_accuracy_std": pytest.approx(0.05),
        "best_accuracy_mean": pytest.approx(2.44 / 3),
        "final_upper_loss_mean": 1.0,
        "final_upper_loss_std": 0.0,
    }


def test_one_seed_reached_has_no_deviation_and_none_reached_is_empty():
    rows = [*run("a", 0, [(0, 0.1), (5, 0.9)]), *run("a", 1, [(0, 0.1), (5, 0.3)])]
    once, never = summarise(rows, [0.9, 0.95])
    assert (once["seeds_reached"], once["rounds_mean"], once["rounds_std"]) == (1, 5.0, None)
    costs = [key for key in never if key.startswith(("rounds", "uplink", "downlink", "simulated"))]
    assert len(costs) == 8
    assert never["seeds_reached"] == 0
    assert [never[key] for key in costs] == [None] * 8
    assert never["final_accuracy_mean"] == pytest.approx(0.6)


def test_algorithms_keep_their_order_and_targets_theirs_with_rows_of_runs_interleaved():
    runs = zip(run("z", 0, [(0, 0.1), (9, 0.7)]), run("b", 0, [(0, 0.1), (4, 0.7)]), strict=True)
    lines = summarise([r for pair in runs for r in pair], [0.7, 0.5, 0.7])
    found = [(line["algorithm"], line["target_accuracy"], line["rounds_mean"]) for line in lines]
    assert found == [("z", 0.7, 9.0), ("z", 0.5, 9.0), ("b", 0.7, 4.0), ("b", 0.5, 4.0)]


def test_rows_out_of_order_are_read_by_round():
    (line,) = summarise(run("a", 0, [(30, 0.9), (10, 0.8), (0, 0.1), (20, 0.7)]), [0.7])
    assert (line["rounds_mean"], line["final_accuracy_mean"]) == (10.0, 0.9)


def test_nan_accuracy_reaches_nothing_and_shows_in_the_final_value():
    (line,) = summarise(run("a", 0, [(0, math.nan), (5, 0.6), (9, math.nan)]), [0.5])
    assert line["rounds_mean"] == 5.0
    assert math.isnan(line["final_accuracy_mean"])
    assert line["best_accuracy_mean"] == 0.6


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (0.96, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]),
        (0.9, [0.5, 0.6, 0.7, 0.8, 0.9]),
        (0.499, [0.1, 0.2, 0.3, 0.4]),
        (0.03, [0.01, 0.02]),
        (0.0, [None]),
        (math.nan, [None]),
    ],
)
def test_targets_are_chosen_among_those_that_some_run_reached(best, expected):
    rows = [*run("a", 0, [(0, 0.0), (5, best)]), *run("b", 0, [(0, 0.0), (5, 0.0)])]
    lines = summarise(rows, None)
    assert [line["target_accuracy"] for line in lines] == expected * 2


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5, 90, math.nan])
def test_a_target_that_is_no_accuracy_is_bad_input(target):
    with pytest.raises(BadInput, match="targets: got"):
        summarise(run("a", 0, [(0, 0.5)]), [target])


@pytest.mark.parametrize("targets", [None, [0.5, 0.9]])
def test_a_problem_without_accuracy_has_one_row_per_algorithm(targets):
    """Final losses 0.3 and 0.5: mean 0.4, deviation sqrt(2 * 0.1^2) = sqrt(0.02). Rounds 10 and 14, the whole run."""
    rows = [*run("a", 0, [(0, 2.0), (10, 0.3)], "loss"), *run("a", 1, [(0, 2.0), (14, 0.5)], "loss")]
    (line,) = summarise(rows, targets)
    assert (line["target_accuracy"], line["seeds"], line["seeds_reached"]) == (None, 2, None)
    assert line["final_upper_loss_mean"] == pytest.approx(0.4)
    assert line["final_upper_loss_std"] == pytest.approx(math.sqrt(0.02))
    assert (line["rounds_mean"], line["uplink_bytes_mean"]) == (12.0, 120.0)
    assert (line["final_accuracy_mean"], line["best_accuracy_mean"]) == (None, None)


def test_a_run_that_diverged_does_not_break_the_summary():
    rows = [*run("a", 0, [(1, 1.7e308)], "loss"), *run("a", 1, [(1, -1.7e308)], "loss")]
    assert summarise(rows, None)[0]["final_upper_loss_std"] == math.inf
    rows = [*run("a", 0, [(1, math.inf)], "loss"), *run("a", 1, [(1, 1.0)], "loss")]
    assert summarise(rows, None)[0]["final_upper_loss_mean"] == math.inf


def test_the_summary_file_has_its_columns_and_empty_fields(tmp_path):
    write_summary(tmp_path / "s.csv", summarise(run("a", 0, [(0, 0.1), (5, 0.5)]), [0.5, 0.9]))
    with open(tmp_path / "s.csv", newline="") as file:
        reached, never = csv.DictReader(file)
    assert tuple(reached) == SUMMARY_COLUMNS
    assert (reached["rounds_mean"], reached["rounds_std"], never["rounds_mean"]) == ("5.0", "", "")
    write_summary(tmp_path / "none.csv", summarise([], None))
    assert (tmp_path / "none.csv").read_text() == ",".join(SUMMARY_COLUMNS) + "\n"

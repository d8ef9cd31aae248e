# Targets: what a config may ask for, what it is told otherwise, and when a run meets one.

from __future__ import annotations

import math
import tomllib

import pytest

from fedbilevel.config.tables import check, write
from fedbilevel.errors import BadInput
from fedbilevel.results.targets import Target, accuracy, hold_targets, measured, resolve_targets
from tests.fedbilevel.results.rows import row, run


def config(*targets):
    run = {"iterations": 3, "targets": list(targets)}
    return check({"run": run, "problem": {"name": "quadratic"}, "algorithms": {"aggitd": {}}})


ASKED = (
    0.8,
    {"column": "value", "at_most": 0.1},
    {"column": "metric_distance", "at_most": 1e-3},
    {"column": "test_accuracy", "at_least": 0.9},
)


def test_targets_of_both_kinds_are_read_and_written_as_they_are():
    read = config(*ASKED)
    assert read.run.targets == [
        0.8,
        Target(column="value", at_most=0.1),
        Target(column="metric_distance", at_most=1e-3),
        Target(column="test_accuracy", at_least=0.9),
    ]
    assert tomllib.loads(write(read))["run"]["targets"] == list(ASKED)
    only_tables = config(*ASKED[1:])
    assert check(tomllib.loads(write(only_tables))) == only_tables


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (1.5, "run.targets[1]: got 1.5; allowed: a number above 0 and at most 1 or a table"),
        ("0.5", "run.targets[1]: got '0.5'"),
        ({}, "run.targets[1]: got {}"),
        ({"column": "value"}, "run.targets[1].at_most: got nothing; allowed: a number; or at_least in its place"),
        (
            {"column": "value", "at_most": 1, "at_least": 2},
            "run.targets[1].at_most: got 1.0; allowed: only one of at_most and at_least (= 2)",
        ),
        ({"at_most": 1}, "run.targets[1].column: got nothing"),
        ({"column": "value", "at_most": "low"}, "run.targets[1].at_most: got 'low'; allowed: a number"),
        ({"column": "value", "at_most": math.nan}, "run.targets[1].at_most: got nan; allowed: a finite number"),
        ({"column": "upper_los", "at_most": 1}, "metric_NAME (did you mean 'upper_loss'?)"),
        ({"column": "round", "at_most": 1}, "run.targets[1].column: got 'round'; allowed: upper_loss, lower_loss,"),
        ({"column": "metric_", "at_most": 1}, "run.targets[1].column: got 'metric_'"),
        ({"colum": "value", "at_most": 1}, "run.targets[1].colum: got 'value'; allowed: in [run.targets[1]] only"),
    ],
)
def test_a_target_that_is_none_is_named_in_one_line(target, said):
    with pytest.raises(BadInput) as caught:
        config(0.5, target)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["value", "value_accuracy", "gradient_norm", "hypergradient_error", "metric_x"])
def test_measures_at_the_solution_and_a_problems_own_are_columns(column):
    assert config({"column": column, "at_least": -1.0}).run.targets[0].threshold == -1.0


def test_a_target_is_met_on_its_side_of_the_threshold():
    low, high = Target(column="value", at_most=0.5), Target(column="value", at_least=0.5)
    assert [low.met(v) for v in (0.4, 0.5, 0.6, math.nan)] == [True, True, False, False]
    assert [high.met(v) for v in (0.4, 0.5, 0.6, math.nan)] == [False, True, True, False]
    assert (low.direction, low.text) == ("at_most", "value ≤ 0.5")
    assert (high.direction, accuracy(0.95).text) == ("at_least", "test accuracy ≥ 0.95")


def test_the_same_target_twice_is_one_target():
    rows = run("a", 0, [(0, 0.5)])
    bare, whole = 0.5, Target(column="test_accuracy", at_least=0.5)
    assert resolve_targets(rows, [bare, 0.7, whole, bare]) == [whole, accuracy(0.7)]


@pytest.mark.parametrize("target", [0.0, -0.5, 1.5, 90, math.nan])
def test_a_bare_number_that_is_no_accuracy_is_bad_input(target):
    with pytest.raises(BadInput, match="targets: got"):
        resolve_targets(run("a", 0, [(0, 0.5)]), [target])


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (0.96, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]),
        (0.9, [0.5, 0.6, 0.7, 0.8, 0.9]),
        (0.499, [0.1, 0.2, 0.3, 0.4]),
        (0.03, [0.01, 0.02]),
        (0.0, []),
        (math.nan, []),
    ],
)
def test_unless_asked_targets_are_the_common_accuracies_that_some_run_reached(best, expected):
    rows = [*run("a", 0, [(0, 0.0), (5, best)]), *run("b", 0, [(0, 0.0), (5, 0.0)])]
    assert resolve_targets(rows, None) == [accuracy(level) for level in expected]


def test_columns_count_as_measured_where_some_row_has_a_value():
    rows = [row(accuracy=None, metric_b=None), row(accuracy=None, metric_b=1.0, metric_a=None, value=0.5)]
    assert measured(rows) == ["upper_loss", "lower_loss", "test_loss", "hypergradient_norm", "value", "metric_b"]
    assert measured(rows, ["metric_a", "metric_b", "test_accuracy"]) == ["metric_b"]


def test_a_target_whose_column_the_evaluation_does_not_give_is_refused():
    columns = ["upper_loss", "test_loss", "metric_distance", "wall_seconds"]
    fine = [Target(column=c, at_most=1.0) for c in ("metric_distance", "test_loss", "hypergradient_norm", "value")]
    hold_targets(fine, columns)
    hold_targets(None, columns)
    with pytest.raises(BadInput) as caught:
        hold_targets([*fine, Target(column="metric_distanc", at_most=1.0)], columns)
    assert str(caught.value) == (
        "run.targets[4].column: got 'metric_distanc'; allowed: a column that is measured here: upper_loss, test_loss, "
        "metric_distance, and there is no metric_distanc (did you mean 'metric_distance'?)"
    )
    with pytest.raises(BadInput, match=r"run\.targets\[0\]: got 0\.8; .* there is no test_accuracy"):
        hold_targets([0.8], columns)

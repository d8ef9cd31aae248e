# Ranges, the points in them, and what is said of an optimum at an end.

from __future__ import annotations

import pytest

from fedbilevel.config.tables import check
from fedbilevel.config.tune import Range
from fedbilevel.errors import BadInput
from server.running.plan import plan
from server.tuning.space import cast, edge, grid, spaces


def config(tune, **algorithms):
    run = {"iterations": 4, "seeds": [0, 1]}
    tables = {"run": run, "problem": {"name": "quadratic"}, "algorithms": algorithms or {"aggitd": {}, "f2sa": {}}}
    return check(tables | ({} if tune is None else {"tune": tune}))


def of(tune, **algorithms):
    made = config(tune, **algorithms)
    return spaces(made, plan(made))


@pytest.mark.parametrize("tune", [None, {}, {"trials": 3}])
def test_without_ranges_each_algorithm_has_those_of_its_own_steps(tune):
    found = of(tune)
    assert set(found["aggitd"]) == {"upper_step", "lower_step", "neumann_step"}
    assert set(found["f2sa"]) == {"upper_step", "lower_step", "penalty"}
    assert found["f2sa"]["penalty"] == Range(low=1.0, high=1000.0, log=True)


def test_a_step_that_an_algorithm_finds_by_itself_has_no_usual_range():
    found = of(None, **{"aggitd-s": {}})["aggitd-s"]
    assert set(found) == {"upper_step"}
    named = {"algorithms": {"aggitd-s": {"lower_step": {"low": 0.1, "high": 1.0}}}}
    assert of(named, **{"aggitd-s": {}})["aggitd-s"] == found | {"lower_step": Range(low=0.1, high=1.0)}


SHARED, OWN = {"low": 0.1, "high": 1.0}, {"low": 2.0, "high": 3.0}
NAMED = {"ranges": {"lower_step": SHARED, "penalty": [1.0, 5.0]}, "algorithms": {"f2sa": {"lower_step": OWN}}}


def test_ranges_that_are_named_win_over_the_usual_ones_and_its_own_over_those_of_all():
    found = of(NAMED)
    assert found["aggitd"] == of({})["aggitd"] | {"lower_step": Range(**SHARED)}
    assert found["f2sa"] == {
        "upper_step": Range(low=1e-2, high=100.0, log=True),
        "lower_step": Range(**OWN),
        "penalty": [1, 5],
    }


def test_without_defaults_the_ranges_that_are_named_are_all_there_are():
    found = of({**NAMED, "defaults": False})
    assert found == {"aggitd": {"lower_step": Range(**SHARED)}, "f2sa": {"lower_step": Range(**OWN), "penalty": [1, 5]}}


def test_an_algorithm_that_is_fixed_has_no_ranges_and_the_others_theirs():
    assert of({**NAMED, "algorithms": {}, "fixed": ["f2sa"]}) == of(NAMED) | {"f2sa": {}}


def test_an_option_that_the_config_sets_is_tuned_all_the_same_unless_it_is_held():
    tables = {"aggitd": {"lower_step": 0.2}}
    assert of({}, **tables) == of({}, aggitd={})
    held = of({"algorithms": {"aggitd": {"lower_step": [0.2]}}}, **tables)["aggitd"]
    assert held == of({}, aggitd={})["aggitd"] | {"lower_step": [0.2]}


def test_two_names_of_one_number_have_one_range():
    """aggitd: lower_rounds and neumann_terms are both N."""
    rounds, terms = [1, 2], [3, 4]
    shared = {"defaults": False, "ranges": {"lower_rounds": rounds, "neumann_terms": terms}}
    assert of(shared)["aggitd"] == {"lower_rounds": rounds}
    own = {**shared, "algorithms": {"aggitd": {"neumann_terms": [7]}}}
    assert of(own)["aggitd"] == {"neumann_terms": [7]}


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"ranges": {"upper_step": {"low": 2.0, "high": 1.0}}}, "tune.ranges.upper_step.high: got 1.0"),
        ({"ranges": {"upper_step": {"low": 1.0, "high": 1.0}}}, "tune.ranges.upper_step.high: got 1.0"),
        ({"ranges": {"upper_step": {"low": 0.0, "high": 1.0, "log": True}}}, "tune.ranges.upper_step.low: got 0.0"),
        ({"ranges": {"uper_step": [1.0]}}, r"tune.ranges.uper_step: .*did you mean 'upper_step'"),
        ({"ranges": {"lower_rounds": {"low": 1.5, "high": 3.0}}}, "tune.ranges.lower_rounds: got 1.5"),
        ({"ranges": {"lower_step": {"low": -1.0, "high": 3.0}}}, "tune.ranges.lower_step: got -1.0"),
        ({"algorithms": {"aggitd": {"penalty": [1.0]}}}, "tune.algorithms.aggitd.penalty: "),
        ({"algorithms": {"agitd": {"penalty": [1.0]}}}, "tune.algorithms: .*did you mean 'aggitd'"),
        ({"fixed": ["agitd"]}, "tune.fixed: .*did you mean 'aggitd'"),
        ({**NAMED, "fixed": ["f2sa"]}, "tune.fixed: got 'f2sa'; allowed: an algorithm without ranges of its own"),
        ({"best": "test_acuracy"}, "tune.best: .*did you mean 'test_accuracy'"),
        ({"best": "value", "fewest": "rounds"}, "tune.fewest: got 'rounds'"),
        ({"best": "metric_gap"}, "tune.best: got 'metric_gap'; allowed: .*direction"),
        ({"best": {"column": "metric_gap"}}, "tune.best.direction: .*of metric_gap it is not known"),
        ({"best": {"column": "metric_gap", "direction": "up"}}, "tune.best.direction: got 'up'"),
        ({"best": {"column": "test_acuracy"}}, "tune.best.column: .*did you mean 'test_accuracy'"),
        ({"trails": 3}, "tune.trails: .*did you mean 'trials'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tune, said):
    with pytest.raises(BadInput, match=said):
        of(tune)


def test_seeds_are_none_of_the_runs():
    assert config({}).tune.seeds_beside([0, 1]) == [2, 3]
    with pytest.raises(BadInput, match=r"tune.seeds: got \[1, 7\].*both have 1"):
        config({"seeds": [1, 7]}).tune.seeds_beside([0, 1])


def test_a_grid_has_the_ends_and_equal_factors():
    space = {"a": Range(low=0.01, high=100.0, log=True), "b": [True, False]}
    points = grid(space, 11)
    assert [point["a"] for point in points[::2]] == [0.01, 0.1, 1.0, 10.0, 100.0]  # 5 x 2 of at most 11
    assert [point["b"] for point in points[:2]] == [True, False]
    with pytest.raises(BadInput, match=r"tune.trials: got 3; allowed: at least 4"):
        grid(space, 3)
    assert [point["n"] for point in grid({"n": Range(low=1, high=5)}, 3)] == [1, 3, 5]


def test_numbers_are_rounded_within_their_range():
    assert cast(Range(low=0.12345, high=1.0), 0.12346) == 0.1235
    assert cast(Range(low=0.12344, high=1.0), 0.12344) == 0.12344
    assert cast(Range(low=1.0, high=9.0, integer=True), 4.0) == 4


@pytest.mark.parametrize(
    ("given", "value", "next_try"),
    [
        (Range(low=1.0, high=100.0, log=True), 1.2, "0.1 to 10"),  # log(1.2)/log(100) = 4 %
        (Range(low=1.0, high=100.0, log=True), 1.3, None),  # 5.7 %
        (Range(low=0.0, high=1.0), 0.96, "0.5 to 1.5"),
        (Range(low=0.0, high=1.0), 0.04, "0 to 0.5"),
        (Range(low=0.0, high=1.0), 0.06, None),
        (Range(low=1, high=9), 9, "5 to 13"),
    ],
)
def test_an_optimum_in_the_outer_twentieth_is_told_where_to_look_next(given, value, next_try):
    text = edge("mine", "step", given, value)
    assert (text and text.partition("next try ")[2]) == next_try

# What a trial is worth and when it is given up: counted by hand on runs whose rows are written here.

from __future__ import annotations

import types

import pytest

from fedbilevel.config.tables import RunTable
from fedbilevel.results.targets import Target
from server.running.experiment import Observer
from server.tuning import trial as trials
from server.tuning.objective import FAILED, UNREACHED, Goal
from server.tuning.trial import MET, Course, run_trial

LOSS = Goal("rounds", Target(column="upper_loss", at_most=1.0))
END = Goal(column="test_accuracy")


def trial(monkeypatch, curves, goal=LOSS, best=FAILED, others=None, stopping=True):
    """A trial whose seeds have these values in the goal's column at rounds 0, 1, ..."""
    column = goal.in_column([])

    def run_one(run, problem, exchange, *, observe, say, enough):
        for count, value in enumerate(curves[run]):
            sent = {"uplink_bytes": 3 * count, "downlink_bytes": count}
            observe({"round": count, "iteration": count, column: value, **sent})
            if enough():
                return

    monkeypatch.setattr(trials, "run_one", run_one)
    monkeypatch.setattr(trials, "local", lambda setup, problem: None)
    jobs = [
        types.SimpleNamespace(
            config=types.SimpleNamespace(run=RunTable(rounds=len(curve) - 1)),
            setup=lambda: types.SimpleNamespace(problem=lambda: None),
            run=lambda seed=seed: seed,
        )
        for seed, curve in enumerate(curves)
    ]
    return run_trial(jobs, Course(jobs, goal, best, others, stopping=stopping), Observer())


def test_the_median_of_the_rounds_to_the_target_and_a_run_ends_there(monkeypatch):
    found = trial(monkeypatch, [[9, 5, 0.5, 0, 0], [9, 5, 4, 3, 1]])
    assert (found.outcome, found.objective, found.reached, found.rounds) == ("complete", 3.0, 2, 6)
    sent = Goal("bytes", LOSS.target)
    assert trial(monkeypatch, [[9, 5, 0.5], [9, 1, 1]], sent).objective == 6.0  # 4 bytes a round, 2 rounds and 1
    assert trial(monkeypatch, [[9, 5, 0.5], [9, 1, 1]], Goal("uplink_bytes", LOSS.target)).objective == 4.5


def test_one_that_never_reaches_it_is_worse_than_any_that_does_and_ordered_by_its_best_value(monkeypatch):
    slow = trial(monkeypatch, [[9] * 50 + [1]])
    near, far = (trial(monkeypatch, [[9, value, 8]]) for value in (2, 4))
    assert (near.objective, near.reached, near.value) == (None, 0, 2)
    assert slow.score == 50 < near.score < far.score < 2 * UNREACHED < FAILED
    assert near.score == pytest.approx(UNREACHED * 1.5)  # a gap of 1, and 1/(1 + 1) is 0.5


def test_it_is_given_up_when_its_median_cannot_be_below_the_best(monkeypatch):
    # the best is 3 rounds: with a second seed that may take none, (c + 0)/2 >= 3 from c = 6 on
    found = trial(monkeypatch, [[9] * 20, [0] * 20], best=3.0)
    assert (found.outcome, found.rounds, found.objective) == ("stopped", 6, None)
    # the first takes 2, so that the second may take less than 4
    found = trial(monkeypatch, [[9, 9, 1] + [0] * 17, [9] * 20], best=3.0)
    assert (found.outcome, found.rounds) == ("stopped", 2 + 4)
    assert trial(monkeypatch, [[9, 9, 1], [9, 9, 9, 1]], best=3.0).score == 2.5


@pytest.mark.parametrize(
    ("before", "outcome", "rounds"), [([0.9, 0.8], "complete", 16), ([0.9, 0.8, 0.1], "stopped", 2)]
)
def test_the_worse_half_at_a_rung_is_given_up_once_there_are_four(monkeypatch, before, outcome, rounds):
    others = {"0.125": [-value for value in before]}
    found = trial(monkeypatch, [[0.5] * 17], END, others=others)
    assert (found.outcome, found.rounds, found.rungs["0.125"]) == (outcome, rounds, -0.5)


def test_without_stopping_no_trial_is_given_up_and_a_run_still_ends_at_the_target(monkeypatch):
    found = trial(monkeypatch, [[9] * 19 + [1, 0, 0], [0] * 9], best=3.0, stopping=False)  # (19 + 0)/2, over 3
    assert (found.outcome, found.objective, found.rounds) == ("complete", 9.5, 19)
    found = trial(monkeypatch, [[0.5] * 17], END, others={"0.125": [-0.9, -0.8, -0.7]}, stopping=False)
    assert (found.outcome, found.rounds) == ("complete", 16)


def test_the_end_counts_where_no_target_is_set(monkeypatch):
    found = trial(monkeypatch, [[0.1, 0.9, 0.4], [0.1, 0.2, 0.6]], END)
    assert (found.objective, found.score, found.value) == (0.5, -0.5, 0.5)
    met = trial(monkeypatch, [[9, 1] + [0] * 15])
    assert met.rungs == {"0.125": MET, "0.25": MET, "0.5": MET}


@pytest.mark.parametrize(("direction", "sign"), [("max", -1.0), ("min", 1.0)])
def test_which_way_a_problems_own_measure_is_better_is_said(monkeypatch, direction, sign):
    goal = Goal(column="metric_accuracy_spread", direction=direction)
    found = trial(monkeypatch, [[0.1, 0.9, 0.4], [0.1, 0.2, 0.6]], goal)
    assert (found.objective, found.score) == (0.5, sign * 0.5)


def test_of_the_common_measures_accuracies_are_better_high_and_losses_low():
    ways = {name: Goal(column=name).sign(name) for name in ("test_accuracy", "value_accuracy", "upper_loss", "value")}
    assert ways == {"test_accuracy": -1.0, "value_accuracy": -1.0, "upper_loss": 1.0, "value": 1.0}

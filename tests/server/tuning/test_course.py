# A trial whose runs go on side by side: told of in any order, late, and again after a death, it comes to the same.

from __future__ import annotations

import random
import types

import pytest

from fedbilevel.config.tables import RunTable
from fedbilevel.results.targets import Target
from server.tuning.objective import FAILED, Goal
from server.tuning.trial import Course

LENGTH = 16
LOSS = Goal("rounds", Target(column="upper_loss", at_most=1.0))
END = Goal(column="test_accuracy")


def course(runs, goal, best, others):
    job = types.SimpleNamespace(config=types.SimpleNamespace(run=RunTable(rounds=LENGTH)))
    return Course([job] * runs, goal, best, others)


def rows(goal, curve):
    column = goal.in_column([])
    return [{"round": count, "iteration": count, column: value} for count, value in enumerate(curve)]


def in_order(made, curves, fails):
    """One run after another, each for as long as it is asked for."""
    for index, curve in enumerate(curves):
        for row in curve:
            made.take(index, row)
            if made.enough(index):
                break
        else:
            made.end(index, failed=fails[index])
            continue
        made.end(index)
        if made.outcome is not None:
            break
    return made.trial()


def side_by_side(made, curves, fails, draw):
    """All at a time, in an order that is drawn; some go on for a while when they need not, some begin again."""
    place, left = [0] * len(curves), set(range(len(curves)))
    while made.outcome is None:
        index = draw.choice(sorted(left))
        ended = made.enough(index) and draw.random() < 0.5
        if ended or place[index] == len(curves[index]):
            made.end(index, failed=not ended and fails[index])
            left.discard(index)
            continue
        made.take(index, curves[index][place[index]])
        place[index] += 1
        if made.outcome is None and draw.random() < 0.1:
            place[index] = draw.randrange(place[index])
            made.rewind(index, place[index] - 1)
    return made.trial()


@pytest.mark.parametrize("goal", [LOSS, END], ids=["target", "end"])
@pytest.mark.parametrize("runs", [1, 2, 3])
def test_what_comes_of_a_trial_does_not_depend_on_which_of_its_runs_is_heard_of_first(goal, runs):
    draw = random.Random(f"{goal} {runs}")
    seen = set()
    for _ in range(300):
        curves = [
            rows(goal, [draw.uniform(0.9 if draw.random() < 0.2 else 1.01, 3.0) for _ in range(LENGTH + 1)])
            for _ in range(runs)
        ]
        fails = [draw.random() < 0.1 for _ in curves]
        curves = [
            curve[: draw.randrange(1, LENGTH) if fail else None] for curve, fail in zip(curves, fails, strict=True)
        ]
        best = draw.choice([FAILED, draw.uniform(1.0, 12.0)])
        sign = goal.sign(goal.in_column([]))
        others = {rung: [sign * draw.uniform(1.0, 3.0) for _ in range(draw.randrange(5))] for rung in ("0.125", "0.5")}
        expected = in_order(course(runs, goal, best, others), curves, fails)
        assert side_by_side(course(runs, goal, best, others), curves, fails, draw) == expected
        seen.add(expected.outcome)
    assert seen == {"complete", "stopped", "failed"}

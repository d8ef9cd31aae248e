# When a run is over: hand counts against limits and targets.

from __future__ import annotations

import pytest

from fedbilevel.results.ending import Ending, ends_of
from fedbilevel.results.targets import Target, accuracy
from tests.fedbilevel.results.rows import row, run

LIMITS = {"rounds": 100, "max_bytes": 1500.0, "max_simulated_seconds": 40.0}


@pytest.mark.parametrize(
    ("limits", "before", "cause"),
    [
        ({"rounds": 50}, 49, None),
        ({"iterations": 50}, 49, None),
        ({"rounds": 100, "max_bytes": 1500.0}, 49, "max_bytes"),  # 30 bytes a round, both ways
        ({"rounds": 100, "max_bytes": 1471.0}, 49, "max_bytes"),
        ({"iterations": 100, "max_simulated_seconds": 25.0}, 49, "max_simulated_seconds"),  # half a second a round
        ({"rounds": 50, "max_bytes": 1500.0}, 49, None),  # its rounds are reached too: nothing was early
    ],
)
def test_a_limit_ends_a_run_when_its_count_reaches_it(limits, before, cause):
    ending = Ending(limits)
    assert not ending.over(row(round=before))
    assert ending.cause(row(round=before)) is None
    assert ending.over(row(round=50))
    assert ending.spent(row(round=50))
    assert ending.cause(row(round=50)) == cause


def test_a_target_ends_a_run_at_the_evaluation_that_meets_it():
    ending = Ending({"rounds": 100}, accuracy(0.9))
    assert not ending.over(row(round=3, accuracy=0.89))
    assert not ending.over(row(round=3))
    assert ending.over(row(round=0, accuracy=0.9))
    assert not ending.spent(row(round=3, accuracy=0.9))
    assert ending.cause(row(round=3, accuracy=0.9)) == "stop_at"
    assert ending.cause(row(round=100, accuracy=0.9)) is None
    below = Ending({"rounds": 100}, Target(column="metric_distance", at_most=0.5))
    assert below.over(row(metric_distance=0.5))
    assert not below.over(row(metric_distance=float("nan")))


def test_the_share_is_that_of_the_limit_that_is_nearest():
    """At round 20: 20 of 100 rounds, 600 of 1500 bytes, 10 of 40 seconds."""
    assert Ending(LIMITS).share(row(round=20)) == pytest.approx(0.4)


def test_of_a_history_it_is_told_which_runs_broke_off_and_which_were_ended_early():
    rows = [
        *run("a", 0, [(0, 0.1), (50, 0.5)]),
        *run("a", 1, [(0, 0.1), (40, 0.9)]),
        *run("b", 0, [(0, 0.1), (30, 0.5)]),
    ]
    ends = ends_of(Ending({"rounds": 50}, accuracy(0.9)), rows)
    assert ends.early == {("a", 1)}
    assert ends.broken_off == {("b", 0)}

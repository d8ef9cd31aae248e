"""Trials side by side as Ray tasks: the same trials as one after another, whatever dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster

from fedbilevel.config.tables import check
from server.running.experiment import Observer
from server.running.plan import Job
from server.tuning.side_by_side import run_side_by_side
from server.tuning.study import Study, Tried, Tuning, run_in_turn
from tests.processes.flower import kill_federations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TABLES: dict[str, Any] = {
    "run": {"seeds": [0], "iterations": 40, "dtype": "float64", "solution_every": 0, "evaluate_every": 1},
    "problem": {"name": "quadratic", "clients": 4},
    "options": {"lower_rounds": 2},
    "algorithms": {"aggitd": {}, "memfbo": {}, "joint": {}},
    "tune": {"trials": 7, "target": {"column": "upper_loss", "at_most": 3.4}},
}


def tuning(**changes: Any) -> Tuning:
    return Tuning(check(TABLES | changes))


@contextmanager
def studies(made: Tuning, folder: Path) -> Iterator[list[Study]]:
    folder.mkdir(exist_ok=True)
    with made.open(folder) as held:
        yield held


def in_turn(made: Tuning, folder: Path) -> dict[str, list[Tried]]:
    with studies(made, folder) as held:
        run_in_turn(held, Observer(), lambda tried: None, made.table.threads)
        return {study.label: study.tried for study in held}


def at_a_time(made: Tuning, folder: Path, jobs: int, observer: Observer | None = None) -> dict[str, list[Tried]]:
    told: list[Tried] = []
    with studies(made, folder) as held:
        run_side_by_side(made, held, observer or Observer(), told.append, jobs=jobs, ray_address=None)
        found = {study.label: study.tried for study in held}
    assert {label: [each for each in told if each.label == label] for label in found} == found
    return found


def test_studies_side_by_side_make_the_trials_of_one_after_another(cluster: Cluster, tmp_path: Path) -> None:
    expected = in_turn(tuning(), tmp_path / "in turn")
    outcomes = {tried.trial.outcome for mine in expected.values() for tried in mine}
    assert {"complete", "stopped"} <= outcomes
    assert at_a_time(tuning(), tmp_path / "by two", 2) == expected
    with studies(tuning(), tmp_path / "by two") as held:  # as they were kept
        assert {study.label: study.tried for study in held} == expected


def test_the_runs_of_a_trial_side_by_side_make_the_same_trials(cluster: Cluster, tmp_path: Path) -> None:
    """One algorithm and three seeds: the second and third begin before it is known whether they are needed."""
    alone = {"algorithms": {"aggitd": {}}, "tune": TABLES["tune"] | {"seeds": [5, 6, 7]}}
    expected = in_turn(tuning(**alone), tmp_path / "in turn")
    assert "stopped" in {tried.trial.outcome for tried in expected["aggitd"]}
    assert at_a_time(tuning(**alone), tmp_path / "by three", 3) == expected


def test_a_trial_whose_process_is_killed_goes_on_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    never = {"column": "upper_loss", "at_most": -1e9}
    tune = TABLES["tune"] | {"trials": 2, "stopping": False, "target": never}
    run = TABLES["run"] | {"iterations": 1000}
    long = {"run": run, "algorithms": {"aggitd": {}, "joint": {}}, "tune": tune}
    expected = in_turn(tuning(**long), tmp_path / "in turn")

    class Killer(Observer):
        """What is told at the end of a run finds its process idle: then the next row is waited for."""

        killed = 0
        rows = 0

        def row(self, job: Job, row: dict[str, object]) -> None:
            self.rows += 1
            if self.killed < 2 and self.rows > 1200 * (self.killed + 1):  # no run dies three times
                self.killed += bool(kill_federations())

    killer = Killer()
    assert at_a_time(tuning(**long), tmp_path / "killed", 2, killer) == expected
    assert killer.killed == 2


def test_each_run_has_the_threads_that_the_table_gives(tmp_path: Path) -> None:
    seen = []

    class Threads(Observer):
        def row(self, job: Job, row: dict[str, object]) -> None:
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    made = tuning(tune=TABLES["tune"] | {"trials": 1, "threads": 2})
    with studies(made, tmp_path / "a") as held:
        run_in_turn(held, Threads(), lambda tried: None, made.table.threads)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before

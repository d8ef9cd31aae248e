"""Runs side by side as Ray tasks: the same history, whatever dies."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from fedbilevel.config.tables import Config, check
from fedbilevel.errors import RunFailed
from fedbilevel.report import RunDirectory
from server.running.experiment import Experiment, Observer, local
from server.running.plan import Job
from server.running.sweep import Sweep
from tests.histories import PARTIAL, assert_same, without_wall_seconds
from tests.processes.flower import kill_federations
from tests.processes.room import free

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Events(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, int]] = []

    def started(self, job: Job) -> None:
        self.all.append(("started", job.label, job.seed))

    def row(self, job: Job, row: dict[str, object]) -> None:
        self.all.append(("row", job.label, job.seed))

    def ended(self, job: Job, error: Exception | None) -> None:
        self.all.append(("failed" if error else "ended", job.label, job.seed))


def test_a_sweep_gives_the_same_history_and_a_failing_run_does_not_stop_it(
    cluster: Cluster, partial: tuple[Config, list[dict[str, Any]]], tmp_path: Path
) -> None:
    config, expected = partial
    tables = config.model_dump(exclude_none=True)
    tables["algorithms"] = {"diverges": {"algorithm": "memfbo", "lower_step": 1e300}, **tables["algorithms"]}
    events = Events()
    sweep = Sweep(check(tables), RunDirectory.create(tmp_path / "out"), events, jobs=2)
    failures = sweep.run()
    assert [(job.label, job.seed) for job, _ in failures] == [("diverges", 3), ("diverges", 4)]
    assert str(failures[0][1]).startswith("diverges, seed 3, iteration")
    rows = [row for row in sweep.directory.read_history() if row["algorithm"] != "diverges"]
    assert_same(rows, expected)  # a job may have other threads than this process, and sum in another order
    for job in sweep.jobs:
        mine = [kind for kind, *which in events.all if which == [job.label, job.seed]]
        assert mine[0] == "started"
        assert mine[-1] == ("failed" if job.label == "diverges" else "ended")
        assert mine.count("row") == len(sweep.rows[job.label, job.seed])
    assert (tmp_path / "out" / "summary.csv").exists()


PACED = """
import time
from dataclasses import replace
from pathlib import Path
from clients.operations.oracles import upper_gradient_x
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm

class Options(options.Options):
    upper_step: options.UpperStep = 0.05

@algorithm("paced", source="a test", options=Options)
def paced(o):
    def step(state, fed):
        if not Path(__file__).with_name("hurry").exists():
            time.sleep(0.02)
        return replace(state, x=state.x - o.upper_step * fed.mean(upper_gradient_x, x=state.x, y=state.y))
    return Algorithm(State, step, lambda index: 1)
"""
"""However fast the machine is, there is time to kill it in the middle; then it need not take its time any more."""


def paced(folder: Path) -> dict[str, Any]:
    """A config of one such run, `victim`, of 40 s without a file `hurry` beside it."""
    path = folder / "paced.py"
    path.write_text(PACED)
    return {
        **PARTIAL,
        "run": {**PARTIAL["run"], "seeds": [3], "iterations": 2000, "evaluate_every": 10},
        "options": {"upper_step": 0.05},
        "algorithms": {"victim": {"algorithm": f"{path}:paced"}},
    }


@contextmanager
def meanwhile(work: Callable[[], bool]) -> Iterator[None]:
    """Do some work every now and then while the block runs, until it says that it is done."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.02) and not work():
            pass

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_run_of_a_sweep_whose_process_is_killed_goes_on_from_its_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    config = check(paced(tmp_path))
    hurry, checkpoints = tmp_path / "hurry", tmp_path / "out" / "checkpoints"
    hurry.touch()
    alone = Experiment(config, RunDirectory.create(tmp_path / "alone"), local, Observer())
    assert alone.run() == []
    hurry.unlink()
    events, killed, before = Events(), [], []

    def kill() -> bool:
        if checkpoints.exists():
            before.append(len(events.all))
            if before[-1] > before[0] + 1:  # there are rows to be forgotten
                killed.extend(kill_federations())
            if killed:  # else it would end before it can be
                hurry.touch()
        return bool(killed)

    sweep = Sweep(config, RunDirectory.create(tmp_path / "out"), events, jobs=2, threads=torch.get_num_threads())
    with meanwhile(kill):
        assert sweep.run() == []
    assert len(killed) == 1
    assert len(events.all) > 2 + len(alone.history())
    assert without_wall_seconds(sweep.history()) == without_wall_seconds(alone.history())


def test_a_run_whose_process_dies_every_time_fails_alone(cluster: Cluster, tmp_path: Path) -> None:
    tables = paced(tmp_path)
    tables["algorithms"]["joint"] = {}
    own = tmp_path / "paced.py"  # it kills its process before there is a checkpoint, which would set the count back
    own.write_text(PACED.replace("time.sleep(0.02)", "os.kill(os.getpid(), 9)").replace("import time", "import os"))
    events = Events()
    sweep = Sweep(check(tables), RunDirectory.create(tmp_path / "out"), events, jobs=1)
    failures = sweep.run()
    assert [job.label for job, _ in failures] == ["victim"]
    assert re.search(r"^victim, seed 3: its process has died 3 times in a row", str(failures[0][1]))
    assert ("failed", "victim", 3) in events.all
    assert ("ended", "joint", 3) in events.all


def test_a_sweep_that_cannot_begin_says_whether_it_lacks_room_or_time(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine has a GPU; and a run that has room, but of which nothing is heard, is slow."""
    tables = {**PARTIAL, "engine": {"gpus": 1.0, "patience": 2.0}}
    with pytest.raises(RunFailed, match=r"^no capacity: within 2 s Ray has found no 1 CPU and 1 GPU for a run$"):
        Sweep(check(tables), RunDirectory.create(tmp_path / "gpu"), Observer(), jobs=2).run()
    free(3)
    monkeypatch.setattr(ray, "wait", lambda references, **how: ([], list(references)))
    tables["engine"] = {"patience": 0.5}
    with pytest.raises(RunFailed, match=r"^slow start: no run has begun within 0.5 s; engine.patience sets how long"):
        Sweep(check(tables), RunDirectory.create(tmp_path / "slow"), Observer(), jobs=2).run()

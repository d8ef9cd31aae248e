"""A tuning as a process that is killed or interrupted again and again: its trials are those of one that was not."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from experiments.cli import main
from tests.processes.console import config, process, wait_for
from tests.processes.flower import processes_with

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # as in every test of processes that Ray starts here: it leaves /dev/null open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TRIALS, ALGORITHMS = 7, 3
STUDIES = f"""
[run]
seeds = [0]
iterations = 60
evaluate_every = 10
dtype = "float64"
solution_every = 0
[problem]
name = "quadratic"
clients = 4
[algorithms.aggitd]
[algorithms.memfbo]
[algorithms.joint]
[tune]
trials = {TRIALS}
target = {{ column = "upper_loss", at_most = 4.0 }}
"""


def trials(folder):
    try:
        with open(Path(folder, "trials.csv")) as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a tuning that nothing has interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    file = out.parent / "config.toml"
    file.write_text(STUDIES)
    assert main(["tune", str(file), "--out", str(out)]) == 0
    assert {"complete", "stopped"} <= {row["state"] for row in trials(out)}
    return {name: (out / name).read_bytes() for name in ("trials.csv", "tuned.toml", "config.toml")}


@pytest.fixture
def mark(monkeypatch, tmp_path):
    """What the processes of this test have in their environment; none outlives it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDBILEVEL_TEST", f"tuning {os.getpid()} {tmp_path.name}")
    variable = f"FEDBILEVEL_TEST={os.environ['FEDBILEVEL_TEST']}"
    yield variable
    for pid in processes_with(variable):
        os.kill(pid, signal.SIGKILL)


def begin(*arguments):
    return process(*arguments, stdout=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.parametrize("jobs", [[], ["--jobs", "2"]], ids=["serial", "two jobs"])
def test_a_tuning_that_is_killed_at_any_moment_goes_on_as_if_it_had_not_been(whole, mark, jobs):
    draw = random.Random(f"kills {jobs}")
    moments = sorted(draw.sample(range(TRIALS * ALGORITHMS - 8), 5))  # so that some are left when the signal comes
    arguments = ["tune", config(STUDIES), "--out", "a"]
    for done in moments:
        running = begin(*arguments, *jobs)
        wait_for(lambda done=done: len(trials("a")) >= done and Path("a/study.journal").is_file(), 120)
        time.sleep(draw.uniform(0.0, 0.2))
        assert running.poll() is None
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        wait_for(lambda: not processes_with(mark), 30)
        arguments = ["resume", "a"] if Path("a/config.toml").is_file() else arguments
    assert len(trials("a")) < TRIALS * ALGORITHMS
    assert main([*arguments, *jobs]) == 0
    assert {name: Path("a", name).read_bytes() for name in whole} == whole


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_tuning_leaves_nothing_behind_and_keeps_its_trials(whole, mark, number, status):
    running = begin("tune", config(STUDIES), "--out", "a", "--jobs", "2")
    wait_for(lambda: len(trials("a")) >= 3, 120)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == status
    assert said.decode() == "fedbilevel: interrupted; go on with: fedbilevel resume a\n"
    assert processes_with(mark) == {}
    assert 3 <= len(trials("a")) < TRIALS * ALGORITHMS
    assert main(["resume", "a"]) == 0  # by one job, what two have begun
    assert {name: Path("a", name).read_bytes() for name in whole} == whole

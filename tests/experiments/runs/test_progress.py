# What a person sees while runs go on: the time left, plain lines, and bars.

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

import server.running.plan
from experiments.runs.progress import Bars, Estimate, Lines
from fedbilevel.config.tables import read
from tests.fedbilevel.results.rows import row
from tests.processes.console import config


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_time_left_counts_the_jobs_to_come_at_the_pace_of_their_kind():
    now = [0.0]
    estimate = Estimate(["a", "b", "a"], lambda: now[0])
    assert estimate.left() is None
    pace = estimate.start("a")
    pace.reach(0.0)
    now[0] = 5.0
    pace.reach(0.25)  # 20 s for the whole job
    assert estimate.left() == pytest.approx(15 + 20 + 20)
    now[0] = 20.0
    pace.reach(1.0)
    estimate.end(pace)
    pace = estimate.start("b")
    pace.reach(0.5)  # resumed in the middle
    now[0] = 22.0
    pace.reach(0.6)  # again 20 s for the whole job
    now[0] = 23.0
    assert estimate.left() == pytest.approx(8 - 1 + 20)
    estimate.end(pace)
    assert estimate.left() == pytest.approx(20)


def test_plain_lines_come_every_ten_seconds_and_at_every_end(capsys):
    now = [0.0]
    lines = Lines(Console(width=10_000, color_system=None), lambda: now[0])
    jobs = server.running.plan.plan(read(config(), ["run.seeds=[0]", "run.iterations=100"]))
    lines.planned(jobs)
    lines.started(jobs[0])
    for iteration in range(101):
        now[0] = iteration * 0.25
        lines.stepped(jobs[0], iteration, 10 * iteration)
    lines.ended(jobs[0], None)
    assert capsys.readouterr().out.splitlines() == [
        "aggitd, seed 0: 40/100 iterations, 10.0 s, about 40 s left",
        "aggitd, seed 0: 80/100 iterations, 20.0 s, about 30 s left",
        "[1/2] aggitd, seed 0: done, 100/100 iterations in 25.0 s",
    ]


def test_bars_show_both_levels_within_a_narrow_terminal():
    console = Console(width=60, force_terminal=True, color_system=None, file=io.StringIO())
    bars = Bars(console, time.monotonic)
    jobs = server.running.plan.plan(read(config()))
    bars.planned(jobs)
    bars.started(jobs[0])
    bars.stepped(jobs[0], 3, 30)
    bars.row(jobs[0], {"iteration": 3, "round": 30, "test_accuracy": 0.5, "upper_loss": 1.0})
    console.print(bars.progress.get_renderable())
    shown = console.file.getvalue()
    assert "aggitd, seed 0" in shown
    assert "run 1 of 4" in shown
    assert max(map(len, shown.splitlines())) <= 60


def test_bars_show_every_run_of_a_sweep_that_goes_on():
    console = Console(width=100, force_terminal=True, color_system=None, file=io.StringIO())
    bars = Bars(console, time.monotonic)
    jobs = server.running.plan.plan(read(config()))
    bars.planned(jobs)
    for job, iteration in zip(jobs[:2], (3, 5), strict=True):
        bars.started(job)
        bars.stepped(job, iteration, 10 * iteration)
    bars.ended(jobs[0], None)
    bars.started(jobs[2])
    bars.stepped(jobs[2], 1, 10)
    console.file.truncate(0)
    console.print(bars.progress.get_renderable())
    shown = console.file.getvalue()
    names = [f"{job.label}, seed {job.seed}" for job in jobs]
    assert names[0] not in shown
    for name, count in ((names[1], "5/6 iterations"), (names[2], "1/6 iterations")):
        assert any(name in line and count in line for line in shown.splitlines())
    assert "run 3 of 4" in shown


def test_a_run_that_ends_early_says_so_and_counts_as_a_whole_one_in_the_time_left(capsys):
    """20 of 100 iterations in 5 s, and over: the run to come is expected to take 5 s, not 25."""
    now = [0.0]
    lines = Lines(Console(width=10_000, color_system=None), lambda: now[0])
    jobs = server.running.plan.plan(read(config(), ["run.iterations=100", "run.max_bytes=1000"]))
    lines.planned(jobs[:2])
    lines.started(jobs[0])
    lines.row(jobs[0], row(round=0))
    now[0] = 4.0
    lines.row(jobs[0], row(round=16))
    assert lines.running["aggitd", 0].share == pytest.approx(0.48)  # 16 x 30 of 1000 bytes, 16 of 100 iterations
    now[0] = 5.0
    lines.row(jobs[0], row(round=34))
    lines.ended(jobs[0], None)
    said = "[1/2] aggitd, seed 0: done, 34/100 iterations in 5.0 s, upper loss 1, ended by run.max_bytes"
    assert capsys.readouterr().out.splitlines() == [said]
    assert lines.estimate.left() == pytest.approx(5.0)

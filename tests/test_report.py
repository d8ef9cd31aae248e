# Reports over run directories, and what a person sees while runs go on.

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

import server.running.plan
from experiments.cli import main
from experiments.progress import Bars, Estimate, Lines
from experiments.report import print_unseen
from fedbilevel.config.tables import read
from tests.console import config, refused, tree


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- reports ----


def test_a_report_redraws_in_place_the_same_bytes_and_takes_another_axis():
    assert main(["run", config(), "--out", "a"]) == 0
    before = tree("a")
    for name in ("summary.csv", "rounds_vs_accuracy.png", "bytes_vs_accuracy.svg"):
        Path("a", name).unlink()
    assert main(["report", "a"]) == 0
    assert tree("a") == before
    assert main(["report", "a", "--x", "seconds"]) == 0
    assert set(tree("a")) - set(before) == {"a/seconds_vs_accuracy.png", "a/seconds_vs_accuracy.svg"}


def test_several_directories_are_compared_and_names_that_clash_are_told_apart(capsys):
    assert main(["run", config(), "--out", "x/a", "--set", 'algorithms={joint = {}, mine = {algorithm = "aggitd"}}',
                 "--set", "options={}"]) == 0  # fmt: skip
    assert main(["run", config(), "--out", "x/b"]) == 0
    before = tree("x")
    capsys.readouterr()
    assert main(["report", "x/a", "x/b"]) == 0
    names = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert names == ["joint", "mine (a)", "aggitd", "mine (b)"]
    assert tree("x") == before
    assert main(["report", "x/a", "x/b", "--out", "c", "--x", "bytes"]) == 0
    assert set(os.listdir("c")) == {"summary.csv", "bytes_vs_accuracy.png", "bytes_vs_accuracy.svg"}
    assert [line.split(",")[0] for line in Path("c/summary.csv").read_text().splitlines()[1:]] == names
    assert tree("x") == before
    assert "--out: got" in refused(capsys, "report", "x/a", "x/b", "--out", "c")
    assert "differ from each other" in refused(capsys, "report", "x/a", "x/../x/a")


def test_measures_on_unseen_tasks_are_shown_for_methods_that_have_them():
    def row(name, seed, turn, **values):
        return {"algorithm": name, "seed": seed, "round": turn} | values

    first = {"test_accuracy": 0.1, "metric_test_interval": 0.5, "metric_nll": 9.0}
    rows = [row("one", seed, 0, **first) for seed in (0, 1)]
    rows += [row("one", seed, 2, test_accuracy=0.5 + seed / 4, metric_test_interval=0.02, metric_nll=1.0 + seed,
                 metric_ece=0.25) for seed in (0, 1)]  # fmt: skip
    rows += [row("two", 0, 2, test_accuracy=0.75, metric_test_interval=0.01, metric_nll=0.5), row("other", 0, 2)]

    def shown(rows):
        stream = io.StringIO()
        print_unseen(Console(file=stream, width=200), rows)
        return [line.split() for line in stream.getvalue().splitlines() if line]

    assert shown(rows) == [
        ["Adapted", "to", "unseen", "tasks,", "at", "the", "end"],
        ["algorithm", "test", "accuracy", "NLL", "calibration", "error"],
        ["one", "0.6250", "±", "0.0200", "1.500", "0.250"],
        ["two", "0.7500", "±", "0.0100", "0.500", "—"],
    ]
    assert shown([row("other", 0, 2, test_accuracy=0.5)]) == shown([]) == []
    curves = shown([row("one", 0, 2, test_loss=0.3, metric_test_interval=0.1, metric_uncertainty_spearman=0.4)])
    assert curves[1][:3] == ["algorithm", "test", "loss"]
    assert curves[2] == ["one", "0.3000", "±", "0.1000", "0.400"]


# ---- the displays ----


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

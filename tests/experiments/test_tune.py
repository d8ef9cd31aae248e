# Tuning from the command line: the best step of gradient descent, interruptions, and the config that comes out.

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.tuning.display import Display
from tests.console import config, refused

# x stays, and A = I/2: a step beta on y shrinks its error by 1 - beta/2, so that beta = 2 ends at the minimum at once.
DESCENT = """
[run]
seeds = [0]
iterations = 3
dtype = "float64"
solution_every = 0
[problem]
name = "quadratic"
clients = 1
mu = 0.5
L = 0.5
[options]
upper_step = 0.0
lower_rounds = 1
neumann_terms = 1
[algorithms.aggitd]
[tune]
best = "lower_loss"
trials = 12
defaults = false
[tune.ranges]
lower_step = { low = 0.5, high = 3.8 }
"""


def trials(folder):
    with open(Path(folder) / "trials.csv") as file:
        return list(csv.DictReader(file))


def test_the_best_step_of_gradient_descent_is_found_and_its_config_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", config(DESCENT), "--out", "a", "--then-run"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "range" not in said.out
    tuned = tomllib.loads(Path("a/tuned.toml").read_text())
    step = tuned["algorithms"]["aggitd"]["lower_step"]
    assert step == pytest.approx(2.0, abs=0.25)
    assert "tune" not in tuned
    assert tuned["run"]["seeds"] == [0]
    found = trials("a")
    assert len(found) == 12
    nearest = min(found, key=lambda row: abs(float(row["lower_step"]) - 2.0))
    whole = [row for row in found if row["state"] == "complete"]
    best = min(whole, key=lambda row: float(row["objective"]))
    assert float(best["lower_step"]) == step == float(nearest["lower_step"])
    assert Path("a/run/summary.csv").is_file()
    assert Path("a/sensitivity.png").is_file()


def test_an_optimum_outside_the_range_is_looked_for_beyond_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    narrow = ["--set", "tune.ranges.lower_step={low=0.1, high=1.1}", "--set", 'tune.sampler="grid"', "--trials", "5"]
    assert main(["tune", config(DESCENT), "--out", "a", *narrow]) == 0
    said = "aggitd: lower_step = 1.1 is at the upper end of its range, 0.1 to 1.1; next try 0.6 to 1.6"
    assert said in capsys.readouterr().out


def test_a_tuning_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = config(DESCENT)
    assert main(["tune", file, "--out", "whole", "--trials", "8"]) == 0
    started, rows = Display.started, []

    def interrupted(self, job):
        rows.append(job)
        if len(rows) == 12:  # of two runs a trial at most: in a later trial than the sixth
            raise KeyboardInterrupt
        started(self, job)

    monkeypatch.setattr(Display, "started", interrupted)
    assert main(["tune", file, "--out", "cut", "--trials", "8"]) == 130
    assert "go on with: fedbilevel resume cut" in capsys.readouterr().err
    assert 5 <= len(trials("cut")) < 8
    assert main(["tune", file, "--out", "cut", "--trials", "8"]) == 0
    for name in ("trials.csv", "tuned.toml", "sensitivity.png"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_target_that_none_reaches_is_told_and_a_run_that_fails_is_the_worst(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    goal = """
[tune]
target = { column = "lower_loss", at_most = -1e9 }
defaults = false
ranges = { lower_step = [1.0, 1e200] }
sampler = "grid"
trials = 2
"""
    assert main(["tune", config(DESCENT.partition("[tune]")[0] + goal), "--out", "a"]) == 0
    out = capsys.readouterr().out
    assert "aggitd: no trial reached lower loss ≤ -1e+09; taken is the best value" in out
    assert [(row["state"], row["objective"]) for row in trials("a")] == [("complete", ""), ("failed", "")]
    assert tomllib.loads(Path("a/tuned.toml").read_text())["algorithms"]["aggitd"]["lower_step"] == 1.0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "tune.seeds=[0, 5]"], "tune.seeds: got [0, 5]"),
        (["--set", "tune.ranges.lower_step.low=5.0"], "tune.ranges.lower_step.high: got 3.8"),
        (["--trials", "0"], "--trials: got 0"),
        (["--set", "tune.seed=3", "--out", "a"], "--out: got 'a'"),
        (["--out", "other"], "--out: got 'other'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    file = config(DESCENT)
    Path("other").mkdir()
    Path("other/notes").write_text("mine")
    if more[-1] == "a":
        assert main(["tune", file, "--out", "a", "--trials", "1"]) == 0
        capsys.readouterr()
        assert main(["tune", file, *more]) == 2
        assert said in capsys.readouterr().err
    else:
        assert said in refused(capsys, "tune", file, *more)

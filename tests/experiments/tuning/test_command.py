# Tuning from the command line: the best step of gradient descent, interruptions, and the config that comes out.

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import optuna
import pytest

from experiments.cli import main
from experiments.tuning.display import Display
from server.tuning.journal import JOURNAL, journal
from tests.processes.console import config, refused
from tests.processes.flower import free_ports

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


def test_resume_goes_on_with_a_tuning_and_says_when_it_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = config(DESCENT)
    assert main(["tune", file, "--out", "whole", "--trials", "5", "--set", "title=mine"]) == 0
    assert main(["tune", file, "--out", "part", "--trials", "2", "--set", "title=mine"]) == 0
    asked = Path("part/config.toml").read_text()
    Path("part/config.toml").write_text(asked.replace("trials = 2", "trials = 5"))
    capsys.readouterr()
    assert main(["resume", "part"]) == 0
    said = capsys.readouterr().out
    assert "[3/5] aggitd, trial 2" in said
    assert "every trial is done" not in said
    for name in ("trials.csv", "tuned.toml", "config.toml", "sensitivity.png"):
        assert Path("part", name).read_bytes() == Path("whole", name).read_bytes()
    Path("part/tuned.toml").unlink()  # a kill at the last step
    assert main(["resume", "part"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("part: every trial is done\n")
    assert "lower_step = " in said
    assert Path("part/tuned.toml").read_bytes() == Path("whole/tuned.toml").read_bytes()


def test_a_tuning_of_another_config_is_refused_and_nothing_of_it_is_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = config(DESCENT)
    assert main(["tune", file, "--out", "a", "--trials", "1"]) == 0
    for more in (["tune.seed=3"], ["tune.stopping=false"], ["run.iterations=2"], ["tune.ranges.lower_step.low=0.4"]):
        line = refused(capsys, "tune", file, "--out", "a", "--set", *more)
        assert line.startswith("fedbilevel: --out: got 'a'; allowed: ")
        assert "a study of another config" in line
    Path("a/config.toml").write_text(Path("a/config.toml").read_text().replace("iterations = 3", "iterations = 2"))
    line = refused(capsys, "resume", "a")
    assert line.startswith("fedbilevel: DIR: got 'a'; allowed: ")
    assert "a study of another config" in line


def test_a_tuning_that_goes_on_elsewhere_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", config(DESCENT), "--out", "a", "--trials", "1"]) == 0
    with journal(Path("a")):
        assert "that no other process goes on with" in refused(capsys, "resume", "a")


def test_what_a_kill_has_left_of_a_line_is_taken_off(tmp_path):
    with journal(tmp_path) as storage:
        storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "mine")
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + whole[:-5])
    with journal(tmp_path) as storage:
        assert [study.study_name for study in storage.get_all_studies()] == ["mine"]
    assert (tmp_path / JOURNAL).read_bytes() == whole


def test_resume_executes_files_of_a_users_own_only_where_they_are_trusted(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    source = (
        "from fedbilevel.problems import Quadratic\n\ndef mine():\n    return Quadratic(clients=1, mu=0.5, L=0.5)\n"
    )
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.chdir(tmp_path / "here")
    named = DESCENT.replace('name = "quadratic"\nclients = 1\nmu = 0.5\nL = 0.5', 'name = "../mine.py:mine"')
    assert main(["tune", config(named), "--out", "a", "--trials", "1"]) == 0
    assert "or --trust to execute it" in refused(capsys, "resume", "a")
    assert main(["resume", "a", "--trust"]) == 0
    assert f"executes {tmp_path / 'mine.py'}" in capsys.readouterr().out


def test_a_fixed_algorithm_has_no_trials_and_keeps_its_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = '[algorithms.aggitd]\n[algorithms.mine]\nalgorithm = "aggitd"\nlower_step = 0.7\n[tune]\nfixed = ["mine"]\n'
    file = config(DESCENT.replace("[algorithms.aggitd]\n[tune]\n", mine))
    assert main(["tune", file, "--out", "a", "--trials", "3"]) == 0
    said = capsys.readouterr().out
    assert "[3/3] aggitd, trial 2" in said
    assert "mine: fixed; its options stay as they are" in said
    assert [row["algorithm"] for row in trials("a")] == ["aggitd"] * 3
    tuned = tomllib.loads(Path("a/tuned.toml").read_text())["algorithms"]
    assert tuned["mine"] == {"algorithm": "aggitd", "lower_step": 0.7}
    assert set(tuned["aggitd"]) == {"lower_step"}


def test_an_algorithm_whose_every_trial_fails_keeps_its_options_and_the_status_is_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ranges = ["--set", "tune.ranges.lower_step=[1e200]"]  # one value: one trial
    assert main(["tune", config(DESCENT), "--out", "a", *ranges]) == 1
    assert "aggitd: no trial came to its end; its options stay as they are" in capsys.readouterr().out
    assert [row["state"] for row in trials("a")] == ["failed"]
    assert "lower_step" not in tomllib.loads(Path("a/tuned.toml").read_text())["algorithms"]["aggitd"]


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
        (["--set", "tune.ranges.lower_step={low=0.0, high=1.0, log=true}"], "tune.ranges.lower_step.low: got 0.0"),
        (["--set", "tune.ranges.lower_stp=[1.0]"], "did you mean 'lower_step'?"),
        (["--set", "tune.algorithms.aggitd.penalty=[1.0]"], "tune.algorithms.aggitd.penalty: got [1.0]"),
        (["--set", "tune.best=metric_distance"], "tune.best: got 'metric_distance'"),
        (["--trials", "0"], "--trials: got 0"),
        (["--out", "other"], "--out: got 'other'"),
        (["--jobs", "0"], "--jobs: got 0"),
        (["--ray-address", "auto"], "--ray-address: got 'auto'; allowed: a cluster for --jobs N"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(tmp_path)
    file = config(DESCENT)
    Path("other").mkdir()
    Path("other/notes").write_text("mine")
    assert said in refused(capsys, "tune", file, *more)


def test_what_only_runs_take_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", config(DESCENT), "--out", "a", "--trials", "1"]) == 0
    assert "--engine: got 'ray'" in refused(capsys, "resume", "a", "--engine", "ray")
    assert "--mlflow: got 'a'" in refused(capsys, "resume", "a", "--mlflow")


@pytest.mark.slow
def test_of_a_start_that_a_cluster_refuses_nothing_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [port] = free_ports(1)
    nowhere = f"127.0.0.1:{port}"
    line = refused(capsys, "tune", config(DESCENT), "--out", "a/b", "--jobs", "2", "--ray-address", nowhere)
    assert f"--ray-address: got '{nowhere}'" in line

"""`fedbilevel memory`: a table and a figure of every algorithm's peaks, and what cannot be measured."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from experiments.cli import main
from tests.processes.console import config, refused

CONFIG = """
title = "Memory"
[run]
iterations = 1
dtype = "float64"
[problem]
name = "quadratic_tasks"
dim = 20
[options]
lower_step = 0.01
tasks_per_client = 2
[algorithms.maml]
[algorithms.a-maml]
solver = "euler"
[algorithms.cheap]
algorithm = "fomaml"
"""


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for out in ("one", "two"):
        assert main(["memory", config(CONFIG), "--steps", "50,5,10", "--out", out]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "algorithm" in said.out
    names = {"memory.csv", *(f"memory_vs_inner_steps.{kind}" for kind in ("png", "svg", "pdf"))}
    assert {path.name for path in Path("one").iterdir()} == names
    assert all(Path("one", name).read_bytes() == Path("two", name).read_bytes() for name in names)
    with open("one/memory.csv") as file:
        peaks = {(row["algorithm"], int(row["inner_steps"])): int(row["peak_bytes"]) for row in csv.DictReader(file)}
    assert list(dict.fromkeys(name for name, _ in peaks)) == ["maml", "a-maml", "cheap"]
    assert [steps for name, steps in peaks if name == "maml"] == [5, 10, 50]
    for name, arrays in (("maml", 1), ("a-maml", 1), ("cheap", 0)):
        assert (peaks[name, 50] - peaks[name, 10]) / (40 * 20 * 2 * 8) == pytest.approx(arrays, abs=0.05)


def test_a_flow_that_is_unstable_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["memory", config(CONFIG), "--steps", "4", "--set", "options.lower_step=9.0", "--out", "a"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "a-maml, 4 inner steps: step h = 9 of the euler flow is unstable" in said.err
    assert Path("a/memory.csv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", "3,0"), "--steps: got '3,0'"),
        (("--steps", "3,x"), "--steps: got '3,x'"),
        (("--set", "algorithms.comln={}"), "algorithms.comln: got 'comln'.*softmax head"),
        (("--set", "algorithms.joint={}"), "algorithms.joint: got 'joint'"),
        (("--out", "config.toml"), "--out: got"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert re.search(said, refused(capsys, "memory", config(CONFIG), *arguments))

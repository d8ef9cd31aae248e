"""`fedbilevel uncertainty`: the table, its csv, and the figures with their numbers, on curves and on classes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from tests.processes.console import config, refused

CURVES = """
title = "Curves"
[run]
seeds = [0, 1, 2]
iterations = 1
[problem]
name = "sinusoid"
clients = 2
shots = 3
queries = 3
noise = 0.3
hidden = [4]
[options]
tasks_per_client = 1
evaluation_tasks = 4
lower_step = 0.01
upper_step = 0.01
[algorithms.maml]
[algorithms.ibaml]
initial_variance = 0.01
temperature = 0.01
"""
CLASSES = CURVES.replace('name = "sinusoid"', 'name = "few_shot"\nnetwork = "mlp"').replace("shots = 3", "shots = 1")


def read(name: str) -> list[dict[str, Any]]:
    with open(name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "measure"),
    [
        (CURVES, "coverage_95"),
        pytest.param(CLASSES, "accuracy", marks=[pytest.mark.slow, pytest.mark.beside]),
    ],
)
def test_the_command_judges_a_run_directory(
    text: str, measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", config(text), "--out", "run"]) == 0
    command = ["uncertainty", "run", "--tasks", "12", "--training", "3", "--samples", "4", "--ensembles", "3"]
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    ways = ["maml", "maml, scaled", "maml × 3", "maml × 3, scaled", "ibaml", "ibaml, scaled"]
    assert all(f"  {name} " in said.out for name in ways)
    assert "95 % intervals" in said.out
    rows = read("run/uncertainty.csv")
    assert list(dict.fromkeys(row["prediction"] for row in rows)) == ways
    assert {"nll", "calibration_error", "risk_coverage_area", measure} <= {row["measure"] for row in rows}
    for row in rows:
        assert float(row["low"]) <= float(row["high"])
        assert row["seeds"] == ("1" if row["members"] == "3" else "3")
        assert row["tasks"] == "12"
        assert (row["temperature"] != "") == (row["scaled"] == "true")
        assert (row["posterior_factor"] != "") == (row["algorithm"] == "ibaml")
    drawn = [f"{stem}.{kind}" for stem in ("reliability", "risk_coverage") for kind in ("png", "svg", "pdf")]
    first = {name: Path("run", name).read_bytes() for name in (*drawn, "uncertainty.csv", "reliability.csv")}
    assert main(command) == 0
    assert all(Path("run", name).read_bytes() == content for name, content in first.items())
    assert all(name in first["reliability.svg"].decode() for name in ways)
    assert "maml × 3" in first["risk_coverage.svg"].decode()
    assert "scaled" not in first["risk_coverage.svg"].decode()
    ends = {row["prediction"]: float(row["risk"]) for row in read("run/risk_coverage.csv")}
    for row in rows:
        if row["measure"] == measure and measure == "accuracy" and row["scaled"] == "false":
            assert ends[row["prediction"]] == pytest.approx(1 - float(row["value"]))
    if measure == "coverage_95":
        found = {(row["prediction"], row["said"]): float(row["found"]) for row in read("run/reliability.csv")}
        for row in rows:
            if row["measure"] == measure:
                assert found[row["prediction"], "0.95"] == float(row["value"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "run directory: got 'nowhere'"),
        (("nowhere", "--tasks", "1"), "--tasks"),
        (("nowhere", "--ensembles", "0"), "--ensembles"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "uncertainty", *arguments)

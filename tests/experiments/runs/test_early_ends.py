# What a person sees of runs that a target or a budget ends.

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import main
from tests.processes.console import config, refused, tree


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_that_ends_at_its_start_is_finished_and_a_harder_target_is_remarked_on(capsys):
    ends = 'run.stop_at={column = "upper_loss", at_most = 1e9}'
    targets = 'run.targets=[{column = "upper_loss", at_most = 1.0}, {column = "upper_loss", at_most = 2e9}]'
    assert main(["run", config(), "--out", "a", "--set", ends, "--set", targets, "--set", "run.seeds=[0]"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "run.stop_at ends every run" in line] == [
        "run.stop_at ends every run at upper loss ≤ 1e+09: one that has not met upper loss ≤ 1 by then counts as later "
        "than its last row"
    ]
    assert any(line.startswith("[2/2] mine, seed 0: done, 0/6 iterations in ") for line in said)
    assert len(Path("a/history.csv").read_text().splitlines()) == 1 + 2
    assert {path.name for path in Path("a/models").iterdir()} == {"aggitd-0.safetensors", "mine-0.safetensors"}
    before = tree("a")
    assert main(["resume", "a"]) == 0
    assert capsys.readouterr().out == "a: every run is finished\n"
    assert tree("a") == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run.max_bytes=-1", "run.max_bytes: got -1; allowed: a number above 0 ("),
        ("run.max_simulated_seconds=0", "run.max_simulated_seconds: got 0; allowed: a number above 0 ("),
        ("run.stop_at=2.0", "run.stop_at: got 2.0; allowed: a number above 0 and at most 1 or a table ("),
        ('run.stop_at={column="uper_loss", at_most=1}', "run.stop_at.column: got 'uper_loss'; allowed: upper_loss, "),
        ("run.stop_at=0.9", "run.stop_at: got 0.9; allowed: a column that is measured here: upper_loss, "),
        ('run.stop_at={column="metric_distanse", at_most=1}', "run.stop_at.column: got 'metric_distanse'; allowed: a "),
    ],
)
def test_bad_ends_are_refused_before_anything_is_written(capsys, override, says):
    line = refused(capsys, "run", config(), "--out", "a", "--set", override)
    assert line.startswith(f"fedbilevel: {says}")
    assert ("did you mean" in line) == ("uper_loss" in override or "distanse" in override)

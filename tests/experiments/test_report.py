# Reports over run directories.

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cli import main
from experiments.report import print_unseen
from tests.console import config, refused, tree


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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

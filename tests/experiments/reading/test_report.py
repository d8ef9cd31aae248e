# Reports over run directories: redrawn, compared, and in other formats.

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cli import main
from experiments.reading.report import compared, print_unseen
from fedbilevel.results import read_history, summarise, write_history
from tests.fedbilevel.results.rows import run
from tests.processes.console import QUADRATIC, config, refused, rows, tree

TWO = ["--set", 'algorithms={joint = {}, mine = {algorithm = "aggitd"}}', "--set", "options={}"]
OWN = """
import torch
from fedbilevel import ClientData

class Own:
    def __init__(self):
        rows = [torch.arange(2.0 * (i + 1)).reshape(2, i + 1).sum(1, keepdim=True) for i in range(3)]
        self.clients = ClientData(rows, rows)
    def initial(self, generator):
        return torch.zeros(2), torch.zeros(2)
    def lower(self, x, y, examples):
        return ((y - x - examples) ** 2).sum(-1)
    def upper(self, x, y, examples):
        return ((y - 1) ** 2).sum() + 0 * examples.sum(-1)
    def evaluate(self, x, y):
        return {"distance": float(y.norm())}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def drawn(stem, folder="a"):
    return {f"{folder}/{stem}.{kind}" for kind in ("png", "svg", "pdf")}


def summary(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---- one run


def test_a_report_redraws_in_place_the_same_bytes_and_takes_other_axes():
    assert main(["run", config(), "--out", "a"]) == 0
    before = tree("a")
    for name in ("summary.csv", "report.html", "rounds_vs_upper_loss.png", "bytes_vs_upper_loss.svg"):
        Path("a", name).unlink()
    assert main(["report", "a"]) == 0
    assert tree("a") == before
    assert main(["report", "a", "--x", "seconds"]) == 0
    assert set(tree("a")) - set(before) == drawn("seconds_vs_upper_loss")
    assert main(["report", "a", "--y", "metric_distance", "--log-x", "--log-y"]) == 0
    assert set(tree("a")) - set(before) == (
        drawn("seconds_vs_upper_loss") | drawn("rounds_vs_metric_distance") | drawn("bytes_vs_metric_distance")
    )
    decades = Path("a/rounds_vs_metric_distance.svg").read_bytes()
    assert main(["report", "a", "--y", "metric_distance", "--x", "rounds", "--linear-y"]) == 0
    assert Path("a/rounds_vs_metric_distance.svg").read_bytes() != decades


def test_a_run_that_broke_off_is_crossed_in_the_report_as_after_the_run():
    bad = ["--set", 'algorithms.bad={algorithm = "aggitd", lower_step = 50}', "--set", "run.iterations=30"]
    assert main(["run", config(), "--out", "a", *bad, "--set", "run.dtype=float32"]) == 1
    before = tree("a")
    assert "cross: broken off" in Path("a/rounds_vs_upper_loss.svg").read_text()
    assert main(["report", "a"]) == 0
    assert tree("a") == before


def test_nothing_of_the_runs_own_files_is_executed(tmp_path):
    Path("own.py").write_text(OWN)
    text = '[run]\niterations = 2\n[problem]\nname = "own.py:Own"\n[algorithms.joint]\n'
    assert main(["run", config(text), "--out", "a"]) == 0
    before = tree("a")
    Path("own.py").write_text("open('executed', 'w')\n" + OWN)
    assert main(["report", "a"]) == 0
    assert not Path("executed").exists()
    Path("own.py").unlink()
    assert main(["report", "a"]) == 0
    assert tree("a") == before


def test_what_a_report_cannot_show_changes_nothing(capsys):
    assert main(["run", config(), "--out", "a"]) == 0
    assert "--y: got 'upper_los'; allowed: " in refused(capsys, "report", "a", "--y", "upper_los")
    assert "--y: got 'error'" in refused(capsys, "report", "a", "--y", "error", "--out", "b")
    axes = "bytes, epsilon, gradients, rounds, seconds, wall"
    assert f"--x: got 'byte'; allowed: {axes}" in refused(capsys, "report", "a", "--x", "byte")
    assert "--format: got 'html'" in refused(capsys, "report", "a", "--format", "html")
    losses = [row | {"lower_loss": -1.0} for row in read_history("a/history.csv")]
    write_history("a/history.csv", losses)
    assert "--log-y: got 'lower_loss'" in refused(capsys, "report", "a", "--y", "lower_loss", "--log-y", "--out", "b")


def test_the_other_formats_hold_the_same_numbers_and_nothing_else(capsys):
    assert main(["run", config(), "--out", "a", "--set", "run.targets=[{column = 'upper_loss', at_most = -1e9}]"]) == 0

    def said(form):
        capsys.readouterr()
        assert main(["report", "a", "--format", form]) == 0
        return capsys.readouterr().out.strip()

    kept = summary("a/summary.csv")
    assert [{key: line[key] for key in kept[0]} for line in csv.DictReader(said("csv").splitlines())] == kept
    lines = said("markdown").splitlines()
    assert lines[0].startswith("**Spent until upper loss ≤ -1e+09: median of 2 seeds (lowest–highest)**")
    [last] = {
        max(row["round"] for row in rows("a") if (row["algorithm"], row["seed"]) == ("aggitd", s)) for s in (0, 1)
    }
    assert any(line.startswith(f"| aggitd | 0/2 | > {last} | ") for line in lines)
    latex = said("latex")
    assert f"\naggitd & 0/2 & $>$ {last} & " in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2


# ---- several runs


def test_several_directories_are_compared_and_names_that_clash_are_told_apart(capsys):
    assert main(["run", config(), "--out", "x/a", *TWO]) == 0
    assert main(["run", config(), "--out", "x/b"]) == 0
    before = tree("x")
    capsys.readouterr()
    assert main(["report", "x/a", "x/b"]) == 0
    said = capsys.readouterr().out
    names = [line.split("  ")[1] for line in said.splitlines()[2:]]
    assert names == ["joint", "mine (a)", "mine (b)", "aggitd"]
    assert tree("x") == before
    assert main(["report", "x/a", "x/b", "--out", "c", "--x", "bytes"]) == 0
    assert set(tree("c")) == {"c/summary.csv", "c/report.html", *drawn("bytes_vs_upper_loss", "c")}
    lines = summary("c/summary.csv")
    assert [line["algorithm"] for line in lines] == names
    assert [line["run"] for line in lines] == ["x/a", "x/a", "x/b", "x/b"]
    losses = [float(line["final_upper_loss"]) for line in lines]
    assert [line["ratio_of"] for line in lines] == ["final_upper_loss"] * 3 + [""]
    assert float(lines[2]["ratio"]) == losses[2] / losses[1]
    assert [line["ratio"] for line in lines][0:2] == ["1.0", "1.0"]
    assert lines[3]["ratio"] == ""
    assert tree("x") == before
    assert "--out: got" in refused(capsys, "report", "x/a", "x/b", "--out", "c")
    assert "differ from each other" in refused(capsys, "report", "x/a", "x/../x/a")


def test_ratios_are_of_rounds_and_say_which_side_is_known():
    """First run: a at 20, b never until 60. Second: a at 30, b at 40. Third: a never until 50, b never until 90."""
    bases, found = {}, []
    ends = {"one": (20, None, 60), "two": (30, 40, 80), "three": (None, None, 50)}
    for folder, (a, b, last) in ends.items():
        for label, at, until in (("a", a, last), ("b", b, 90 if folder == "three" else last)):
            name = f"{label} ({folder})"
            bases[name] = (label, Path(folder))
            found += run(name, 0, [(0, 0.0), *([(2 * at, 1.0)] if at else []), (until, 1.0 if at else 0.0)])
    lines = {line["algorithm"]: line for line in compared(summarise(found, [0.5]), bases, Path("one"))}
    assert list(lines) == [f"{label} ({folder})" for label in "ab" for folder in ends]
    shown = {name: (line["ratio"], line["ratio_is"]) for name, line in lines.items()}
    assert shown == {
        "a (one)": (1.0, "exactly"),
        "a (two)": (1.5, "exactly"),
        "a (three)": (2.5, "at_least"),
        "b (one)": (None, None),
        "b (two)": (pytest.approx(40 / 60), "at_most"),
        "b (three)": (None, None),
    }
    assert {line["ratio_of"] for line in lines.values()} == {"rounds", None}


def test_runs_of_different_problems_are_compared_only_anyway(capsys):
    assert main(["run", config(), "--out", "a"]) == 0
    changes = ["--set", "problem.clients=4", "--set", "run.dtype=float32", "--set", "problem.mu=0.25"]
    assert main(["run", config(), "--out", "b", *changes]) == 0
    line = refused(capsys, "report", "a", "b", "--out", "c")
    assert "DIR: got 'b'; allowed: a run of the same problem (or --anyway), and problem." in line
    assert "problem.clients is 5 in a and 4 here" in line
    assert "run.dtype is 'float64' in a and 'float32' here" in line
    assert main(["report", "a", "b", "--out", "c", "--anyway"]) == 0
    assert len(summary("c/summary.csv")) == 4


def test_titles_of_compared_runs_say_what_was_overridden():
    assert main(["run", config('title = "Plain"\n' + Path(config()).read_text()), "--out", "a"]) == 0
    assert main(["run", config(name="other.toml"), "--out", "b", "--set", "options.lower_rounds=3"]) == 0
    assert main(["report", "a", "b", "--out", "c"]) == 0
    assert "Plain, fedbilevel; options.lower_rounds = 3" in Path("c/rounds_vs_upper_loss.svg").read_text()


# ---- targets that no evaluation gives


def test_a_target_that_the_problem_does_not_measure_is_refused_before_anything_is_written(capsys):
    line = refused(capsys, "run", config(), "--out", "out", "--set", "run.targets=[0.8]")
    assert "run.targets[0]: got 0.8; allowed: a column that is measured here: upper_loss, " in line
    asked = "run.targets=[{column = 'upper_loss', at_most = 1}, {column = 'metric_distanc', at_most = 1}]"
    line = refused(capsys, "run", config(), "--out", "out", "--set", asked)
    assert "run.targets[1].column: got 'metric_distanc'; allowed: a column that is measured here: upper_loss, " in line
    assert "metric_distance" in line


def test_measures_of_methods_are_known_when_each_has_been_evaluated(capsys):
    """`metric_unstable` is measured in the steps of one method; what neither has measured by then is refused."""
    text = """
    [run]
    rounds = 4
    evaluate_every = 2
    [problem]
    name = "sinusoid"
    clients = 2
    [options]
    lower_step = 0.01
    upper_step = 0.001
    tasks_per_client = 1
    evaluation_tasks = 2
    [algorithms.maml]
    [algorithms.a-maml]
    unstable = "report"
    """
    path = config(text)
    for column, status in (("metric_unstable", 0), ("metric_unstabel", 2)):
        asked = f"run.targets=[{{column = '{column}', at_most = -1}}]"
        capsys.readouterr()
        assert main(["run", path, "--out", column, "--set", asked]) == status
    said = capsys.readouterr().err
    assert said.startswith("fedbilevel: run.targets[0].column: got 'metric_unstabel'; allowed: ")
    assert "metric_unstable" in said
    assert said.count("\n") == 1
    assert len([row for row in rows("metric_unstabel") if row["algorithm"] == "a-maml"]) == 2
    lines = {line["algorithm"]: line for line in summary("metric_unstable/summary.csv")}
    assert (lines["maml"]["rounds"], lines["maml"]["seeds_reached"]) == ("", "")
    assert (lines["a-maml"]["censored"], lines["a-maml"]["seeds_reached"]) == ("true", "0")


# ---- adaptation to unseen tasks


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
        ["Adapted", "to", "unseen", "tasks,", "at", "the", "end:", "medians", "over", "seeds"],
        ["algorithm", "test", "accuracy", "NLL", "calibration", "error"],
        ["one", "0.6250", "±", "0.0200", "1.500", "0.250"],
        ["two", "0.7500", "±", "0.0100", "0.500", "—"],
    ]
    assert shown([row("other", 0, 2, test_accuracy=0.5)]) == shown([]) == []
    curves = shown([row("one", 0, 2, test_loss=0.3, metric_test_interval=0.1, metric_uncertainty_spearman=0.4)])
    assert curves[1][:3] == ["algorithm", "test", "loss"]
    assert curves[2] == ["one", "0.3000", "±", "0.1000", "0.400"]


# ---- several conditions


def test_a_report_of_crossed_runs_draws_their_map_and_none_of_several_directories(capsys):
    crossed = (
        QUADRATIC
        + """
[cross]
systems.dropout = [0.0, 0.3]
aggregation = [{ rule = "mean" }, { rule = "median" }]
"""
    )
    assert main(["run", config(crossed), "--out", "a"]) == 0
    before = Path("a/conditions.svg").read_bytes()
    for kind in ("png", "svg", "pdf"):
        Path(f"a/conditions.{kind}").unlink()
    assert main(["report", "a"]) == 0
    assert Path("a/conditions.svg").read_bytes() == before
    assert "worst" in capsys.readouterr().out
    assert main(["run", config(), "--out", "b"]) == 0
    assert main(["report", "a", "b", "--out", "both"]) == 0
    assert not list(Path("both").glob("conditions.*"))

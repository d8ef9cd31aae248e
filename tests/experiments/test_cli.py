# The command line: what a run leaves behind, and one line for bad input, which changes nothing.

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from tests.processes.console import FILES, ROOT, config, refused, rows

DIGITS = """
[run]
rounds = 4
[problem]
name = "hyper_representation"
hidden = [4]
[data]
clients = 3
[algorithms.aggitd]
lower_rounds = 1
"""
OWN = """
import torch
from fedbilevel import ClientData

class Own:
    def __init__(self, size: int = 2):
        rows = [torch.arange(2.0 * (i + 1)).reshape(2, i + 1).sum(1, keepdim=True) for i in range(3)]
        self.size, self.clients = size, ClientData(rows, rows)
    def initial(self, generator):
        return torch.zeros(self.size), torch.zeros(self.size)
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
    monkeypatch.delenv("FEDBILEVEL_DATA", raising=False)


# ---- runs that go well ----


def test_a_run_leaves_its_files_and_plain_text_and_can_be_run_again_from_its_own_config(capsys):
    assert main(["run", config(), "--out", "a", "--set", "title=Two"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert all(c == "\n" or c.isprintable() for c in said.out)
    assert not any(0x2500 <= ord(c) < 0x2600 for c in said.out)  # boxes and bars
    assert "[4/4] mine, seed 1: done, 6/6 iterations" in said.out
    assert {path.name for path in Path("a").iterdir()} == FILES | {"models"}
    assert {(row["algorithm"], row["seed"]) for row in rows("a")} == {
        (a, s) for a in ("aggitd", "mine") for s in (0, 1)
    }
    assert main(["run", "a/config.toml", "--out", "b"]) == 0
    assert rows("b") == rows("a")
    assert Path("b/config.toml").read_bytes() == Path("a/config.toml").read_bytes()
    assert Path("b/rounds_vs_upper_loss.png").read_bytes() == Path("a/rounds_vs_upper_loss.png").read_bytes()


def test_digits_print_what_each_target_took(capsys):
    assert main(["run", config(DIGITS), "--out", "a", "--set", "run.targets=[0.01, 1.0]"]) == 0
    said = capsys.readouterr().out
    first, second = said.partition("Spent until test accuracy ≥ 1")[::2]
    assert "Spent until test accuracy ≥ 0.01\n" in first
    assert ["aggitd", "1/1", "0", "0", "0", "0", "0"] in [line.split() for line in first.splitlines()]
    assert ["aggitd", "0/1", ">", "4", ">"] in [line.split()[:5] for line in second.splitlines()]
    assert max(map(len, said.partition("Spent")[2].partition("\n\na: ")[0].splitlines())) <= 80
    assert Path("a/rounds_vs_accuracy.png").is_file()
    assert Path("a/rounds_vs_accuracy.svg").is_file()


def test_the_default_folder_carries_the_configs_name_and_the_time_and_is_never_used_twice(monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260102-030405")
    for _ in range(2):
        assert main(["run", config(name="small.toml"), "--set", "run.iterations=1", "--set", "run.seeds=[0]"]) == 0
    assert sorted(os.listdir("runs")) == ["small-20260102-030405", "small-20260102-030405-2"]


def test_a_problem_file_beside_the_config_may_print_and_its_run_can_be_repeated_from_elsewhere(capsys, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/own.py").write_text(OWN + "print('hello')\n")
    text = '[run]\niterations = 2\n[problem]\nname = "own.py:Own"\nsize = 3\n[algorithms.joint]\n'
    assert main(["run", config(text, "there/own.toml"), "--out", "a"]) == 0
    assert capsys.readouterr().out.count("hello") == 1
    assert tomllib.loads(Path("a/config.toml").read_text())["problem"]["name"] == f"{tmp_path}/there/own.py:Own"
    assert main(["run", "a/config.toml", "--out", "b"]) == 0
    assert rows("a") == rows("b")


def test_names_and_options_are_listed(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    for name in ("fednest-sgd", "hyper_representation", "fashion_mnist", "size_skew", "local"):
        assert f"  {name} " in listed
    families = [line.strip() for line in listed.splitlines() if line.startswith("  ") and line.endswith(".")]
    assert "Single-loop methods with second derivatives: x, y and v = H^-1 fy move together, in one round." in families
    fednest = listed[listed.index("  fednest ") :].splitlines()[1]
    assert fednest.split("; ")[:2] == [
        " " * 19 + "Tarzanagh, Li, Thrampoulidis & Oymak, FedNest, ICML 2022",
        "confirmed: rounds",
    ]
    assert main(["list", "fednest"]) == 0
    listed = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["lower_step", "0.1"] in [line[:2] for line in listed]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("simfbo", ["radius", "coefficients", "upper_optimiser", "Our reading: the formulas"]),
        ("quadratic", ["heterogeneity  1.0", '[problem] with name = "quadratic"', "seed           the run's"]),
        ("hyper_representation", ["Takes the data set of the table [data].", "Widths of the hidden layers"]),
        ("dirichlet", ["alpha      0.3", "min_size   2"]),
        ("mnist", ["70,000 handwritten digits"]),
        ("demo", ["digits, 20 clients, Dirichlet(0.3)", "[algorithms.memfbo]"]),
    ],
)
def test_what_a_name_takes_is_listed(capsys, name, said):
    assert main(["list", name]) == 0
    listed = capsys.readouterr().out
    for text in said:
        assert text in listed


def test_a_name_that_is_nothing_gets_the_nearest(capsys):
    assert "NAME: got 'dirichlett'; allowed: dirichlet" in refused(capsys, "list", "dirichlett")


def test_check_is_handed_its_arguments_and_its_answer_is_the_status(monkeypatch):
    seen = []
    answers = iter([True, False])
    fake = types.ModuleType("experiments.checks.estimators")
    fake.run_check = lambda path, overrides, console: (seen.append((path, overrides)), next(answers))[1]
    monkeypatch.setitem(sys.modules, "experiments.checks.estimators", fake)
    assert main(["check"]) == 0
    assert main(["check", "x.toml", "--set", "a=1", "--set", "b=2"]) == 1
    assert seen == [(None, []), (Path("x.toml"), ["a=1", "b=2"])]


@pytest.mark.parametrize(("command", "said"), [("init", "The file to write."), ("run", "A config, or the name of")])
def test_help_says_once_what_an_argument_is(capsys, command, said):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.count(said) == 1


def test_version_and_help_answer_at_once(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["fedbilevel", "0.1.0"]
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out
    script = "import sys, experiments.cli as c; c.main(['run', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == 0


# ---- bad input ----


@pytest.mark.parametrize(
    "arguments", [["rnu"], ["run"], ["run", "--oot", "x", "y"], ["run", "a", "b"], ["report"], ["--x"], ["resume"]]
)
def test_usage_errors_are_one_line(capsys, arguments):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("fedbilevel: ")
    assert "--help)" in said.err


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.iteratons=3", "run.iteratons: got 3"),
        ("run.seeds=[0, 0]", "run.seeds"),
        ("run.clients_per_round=6", "run.clients_per_round: got 6; allowed: at most the number of clients, 5"),
        ("options.lower_step=fast", "options.lower_step: got 'fast'; allowed: a number of at least 0 (beta: step size"),
        ("options.local_steps=[1, 2]", "options.local_steps: got '2 numbers'; allowed: one number for each of the 5"),
        ("algorithms.mine.local_steps=[1]", "algorithms.mine.local_steps: got '1 numbers'"),
        ("algorithms.mine.indices=[0, 9, 0, 0, 0, 0]", "algorithms.mine.indices[1]: got 9; allowed: an integer from 0"),
        ("algorithms.mine.indices=[0]", "algorithms.mine.indices: got '1 indices'"),
        ("algorithms.mine.neumann_terms=0", "algorithms.mine.neumann_terms: got 0"),
        ("algorithms.mine.lower_stp=1", "algorithms.mine.lower_stp: got 1"),
        ("algorithms.mine=3", "algorithms.mine"),
        ("algorithms={}", "algorithms: got {}"),
        ("problem.name=quadratc", "problem.name: got 'quadratc'; allowed: fair_classification, "),
        ("problem.clinets=3", "problem.clinets: got 3; allowed: in [problem] only"),
        ("problem.clients=many", "problem.clients: got 'many'; allowed: an integer"),
        ("problem.clients=0", "problem.clients: got 0; allowed: an integer of at least 1"),
        ("problem.weights=[1, 2]", 'problem.weights: got [1, 2]; allowed: "size", "uniform" or 5 positive numbers'),
        ("problem.mu=nan", "problem.mu: got nan"),
        ("data.clients=3", "data: got"),
        ("run", "--set: got 'run'"),
        ("run.iterations.x=1", "--set: got"),
    ],
)
def test_bad_keys_of_a_quadratic(capsys, override, key):
    path = config()
    assert key in refused(capsys, "run", path, "--out", "out", "--set", override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.name=digit", "data.name: got 'digit'; allowed: broken, cifar10, digits"),
        ("data.name=broken", "data.name: got 'broken'; allowed: a readable npz file"),
        ("data.name=short", "data.name: got 'short'; allowed: an npz file with the arrays"),
        ("data.partition=irchlet", "(did you mean 'dirichlet'?)"),
        ("data.alpha=0", "data.alpha: got 0; allowed: a number from 0.001"),
        ("data.clients=100000", "data.clients: got 100000; allowed: at most 718"),
        ("data.min_size=1000", "data.min_size: got 1000; allowed: at most 479"),
        ("data.weights=[1, 2]", 'data.weights: got [1.0, 2.0]; allowed: "size", "uniform" or 3 positive numbers'),
        ("data.partition=natural", "data.partition: got 'natural'"),
        ("problem.hidden=[]", "problem.hidden: got []"),
        ("problem.hidden=[1.5]", "problem.hidden: got [1.5]; allowed: a list of integers"),
        ("problem.activation=relo", 'problem.activation: got \'relo\'; allowed: "relu" or "tanh"'),
    ],
)
def test_bad_data(capsys, monkeypatch, override, key):
    Path("data").mkdir()
    Path("data/broken.npz").write_bytes(b"PK\x03\x04 no archive")
    np.savez("data/short.npz", x_train=np.zeros((2, 2), np.float32))
    monkeypatch.setenv("FEDBILEVEL_DATA", "data")
    assert key in refused(capsys, "run", config(DIGITS), "--out", "out", "--set", override)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("gone.py:Own", "", "", "gone.py: No such file or directory"),
        ("own.py:Onw", "", "", "(did you mean 'own.py:Own'?)"),
        ("own.py:", "", "", "problem.name: got "),
        ("own.py", "", "", "path/to/file.py:factory"),
        ("own.py:torch", "", "", "allowed: own.py:Own"),
        ("own.py:Own", "class Own:", "class Own", "a file that imports, but it raised SyntaxError"),
        ("own.py:Own", "import torch", "import trch", "a file that imports, but it raised ModuleNotFoundError"),
        ("own.py:Own", "import torch", "raise SystemExit(0)", "a file that imports, but it raised SystemExit: 0"),
        ("own.py:Own", "self.size,", "raise SystemExit; self.size,", "a factory that runs, but it raised SystemExit"),
        ("own.py:Own", "self.size,", "1 / 0; self.size,", "raised ZeroDivisionError: division by zero"),
        ("own.py:Own", "size: int = 2", "size: int", "problem.size: got nothing; allowed: a value"),
        ("own.py:Own", "def upper", "def uper", "an object with a method upper"),
        ("own.py:Own", "return ((y - x - examples) ** 2).sum(-1)", "return (y - x - examples) ** 2", "shape (2,), not"),
        ("own.py:Own", "return ((y - x", "1 / 0; return ((y - x", "lower(x, y, examples) runs, but it raised Zero"),
        ("own.py:Own", "return torch.zeros(self.size), torch.zeros(self.size)", "return 3", "two flat tensors x0"),
        ("own.py:Own", '{"distance": float(y.norm())}', "3", "evaluate() returns a dict of numbers, not int"),
        ("own.py:Own", "float(y.norm())", "y.norm", "evaluate() returns numbers, and 'distance' is"),
        ("own.py:Own", '{"distance": float(y.norm())}', "1 / 0", "evaluate(x, y) runs, but it raised ZeroDivision"),
        ("own.py:Own", "rows = [", "print('hi'); rows = 3 * [torch.zeros(0)] + [", "a factory that runs|clients.lower"),
    ],
)
def test_bad_problem_files(capsys, name, old, new, said):
    assert old in OWN
    Path("own.py").write_text(OWN.replace(old, new, 1))
    path = config(f'[run]\niterations = 2\n[problem]\nname = "{name}"\n[algorithms.joint]\n')
    line = refused(capsys, "run", path, "--out", "out")
    assert any(
        part.replace("own.py", str(Path("own.py").resolve())) in line or part in line for part in said.split("|")
    )


def test_places_that_cannot_be_written_or_are_taken(capsys, monkeypatch):
    path = config()
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/paper.tex").write_text("mine")
    for out in ("file", "file/below/out", "full", "/proc/out"):
        assert "--out: got " in refused(capsys, "run", path, "--out", out)
    assert "local" in refused(capsys, "run", path, "--out", "out", "--engine", "lcoal")


def test_every_seed_is_looked_over_before_anything_is_written(capsys):
    # Seed 0 draws at least 5 examples for everyone, seed 1 does not: the first run alone would have gone well.
    path = config(DIGITS.replace("clients = 3", "clients = 20\nalpha = 0.05\nmin_size = 5"))
    assert main(["run", path, "--out", "alone"]) == 0
    assert "data.alpha: got 0.05" in refused(capsys, "run", path, "--out", "out", "--set", "run.seeds=[0, 1]")

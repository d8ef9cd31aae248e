"""The peak memory of a meta-gradient: what it counts, and how it grows with the inner steps."""

from __future__ import annotations

import csv
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from clients.methods import methods
from experiments.cli import main
from fedbilevel.errors import BadInput
from fedbilevel.machine.peak import peak_memory
from fedbilevel.problem import ClientData
from fedbilevel.tasks import Tasks
from server.running.peak import meta_gradient_peak
from tests.console import config, refused
from tests.test_flow_methods import Softmax

DIM, TASKS, SIZE = 2000, 4, 8
STATE = DIM * TASKS * SIZE
"""Bytes of one array [B, d]."""
# The arrays [B, d] that a method keeps per inner step (0: its memory is flat), its options, the steps measured.
GROWTH = {
    "maml": (1, {}, (10, 100, 1000)),
    "maml, last 10": (1, {"truncation": 10}, (10, 100, 1000)),
    "a-maml": (2, {}, (10, 1000)),
    "a-maml, euler": (1, {"solver": "euler"}, (10, 100, 1000)),
    "a-maml, midpoint": (2, {"solver": "midpoint"}, (10, 100, 300)),
    "a-maml, backward": (0, {"adjoint": "backward", "solver": "euler"}, (10, 1000)),
}
FLAT = ("fomaml", "reptile", "imaml", "ibaml", "memfbo", "bome")
CASES = GROWTH | {name: (0, {}, (10, 1000)) for name in methods() if name in FLAT}


class Diagonal:
    """L(y) = f(y) = 1/2 sum_j D_j (y_j - a_j)^2, large and cheap."""

    draws, task_sizes, kind = 1, (1, 1), None

    def __init__(self) -> None:
        rows = [torch.arange(4.0, dtype=torch.float64)]
        self.clients = ClientData(rows, rows)

    def initial(self, generator):
        x = torch.randn(DIM, generator=generator, dtype=torch.float64)
        return x, x.clone()

    def tasks(self, held, draws):
        a = torch.from_numpy(draws.reshape(-1, 1, 1)).expand(-1, 1, DIM).contiguous()
        return Tasks(a, a + 1)

    def lower(self, x, y, examples):
        r = y - examples
        return 0.5 * (torch.linspace(0.2, 1, DIM, dtype=y.dtype) * r * r).sum(-1)

    upper = lower


# ---- the measure ----


def test_it_is_the_most_that_is_alive_at_one_time():
    size = 1 << 16

    def work():
        a = torch.zeros(size)  # 1
        b = a + 1  # 2
        del a
        c = b * b  # 2
        del b
        return torch.cat([c, c, c])  # 4

    assert peak_memory(work) == 4 * size * 4


def test_what_was_there_before_does_not_count_and_the_second_time_is_as_the_first():
    kept = torch.ones(1000, dtype=torch.float64)
    found = [peak_memory(lambda: (kept * 2) + 3) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert 16000 <= found[0] <= 16000 + 64  # the two scalars


def test_graphs_and_temporaries_under_torch_func_are_seen():
    x = torch.ones(10_000, dtype=torch.float64)

    def loss(x):
        for _ in range(20):
            x = torch.sin(x)  # each keeps its input
        return x.sum()

    assert peak_memory(lambda: loss(x)) <= 3 * 80_000
    assert peak_memory(lambda: torch.func.grad(loss)(x)) >= 20 * 80_000


# ---- the methods ----


def test_every_method_is_measured():
    assert {name.split(",")[0] for name in CASES} | {"comln"} >= set(methods())


@pytest.mark.parametrize("case", sorted(CASES))
def test_memory_against_inner_steps(case):
    arrays, options, steps = CASES[case]
    name, *_ = case.split(",")
    problem = Diagonal()
    with pytest.warns(UserWarning, match="adjoint") if "backward" in case else nullcontext():
        peaks = [meta_gradient_peak(problem, name, {"local_steps": k, "lower_step": 1e-3, **options}) for k in steps]
    if arrays == 0:
        assert peaks[-1] <= 1.1 * peaks[0]
        return
    for k, peak in zip(steps[1:], peaks[1:], strict=True):
        assert (peak - peaks[0]) / ((k - steps[0]) * STATE) == pytest.approx(arrays, abs=0.02)


def test_comln_is_flat_in_the_horizon():
    peaks = [meta_gradient_peak(Softmax(), "comln", {"local_steps": k, "lower_step": 0.1}) for k in (10, 1000)]
    assert peaks[1] <= 1.1 * peaks[0]


def test_what_has_no_method_is_refused():
    problem = Diagonal()
    with pytest.raises(BadInput, match=r"algorithm: got 'fednest'; allowed: .*maml"):
        meta_gradient_peak(problem, "fednest", {})
    with pytest.raises(BadInput, match="softmax head"):
        meta_gradient_peak(problem, "comln", {})


# ---- the command ----

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

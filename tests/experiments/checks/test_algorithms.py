"""`fedbilevel check CONFIG.toml`: how far off the config's own algorithms are, against closed forms in numpy."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from experiments.checks.algorithms import OwnAlgorithms, OwnError
from experiments.checks.estimators import run_check
from experiments.cli import main
from fedbilevel.config.tables import read
from server.running.plan import plan
from tests.processes.console import refused

PROBLEM = """
import torch
from fedbilevel import ClientData

A = [[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.2], [-0.2, 3.0]], [[1.5, 0.0], [0.0, 0.6]]]
B = [[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], [[0.5, 1.0, 0.0], [2.0, 0.0, 0.3]], [[0.0, -1.0, 1.0], [1.0, 0.4, 0.0]]]
c = [[1.0, -2.0], [0.5, 3.0], [-1.0, 0.2]]
d = [[0.3, 0.0, -0.1], [0.0, 0.2, 0.4], [0.5, -0.5, 0.1]]
x0, p = [0.7, -0.3, 0.4], [0.2, 0.3, 0.5]


class Small:
    '''g_i = 1/2 y'A_i y - y'B_i x, f_i = 1/2 |y - c_i|^2 + d_i'x; each client has the same example twice.'''

    def __init__(self):
        twice = [[torch.tensor([part, part], dtype=torch.float64) for part in parts] for parts in zip(A, B, c, d)]
        self.clients = ClientData([tuple(each[:2]) for each in twice], [tuple(each[2:]) for each in twice], weights=p)

    def initial(self, generator):
        return torch.tensor(x0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)

    def lower(self, x, y, examples):
        A, B = examples
        return 0.5 * torch.einsum("i,nij,j->n", y, A, y) - torch.einsum("i,nij,j->n", y, B, x)

    def upper(self, x, y, examples):
        c, d = examples
        return 0.5 * ((y - c) ** 2).sum(-1) + d @ x

    def evaluate(self, x, y):
        return {}
"""
NUMBERS: dict[str, Any] = {}
exec(compile(PROBLEM.split("class Small")[0].split("ClientData\n")[1], "numbers", "exec"), NUMBERS)
A, B, c, d, x, p = (np.array(NUMBERS[name]) for name in ("A", "B", "c", "d", "x0", "p"))
H, C, I = np.einsum("k,kij->ij", p, A), np.einsum("k,kij->ij", p, B), np.eye(2)
Y = np.linalg.solve(H, C @ x)
"""y*(x0): H y = sum_i p_i B_i x."""
FY, FX = Y - p @ c, p @ d
TRUE = FX + C.T @ np.linalg.solve(H, FY)
"""h* = fx - J H^-1 fy with J = -B'."""


def off(h):
    return np.linalg.norm(h - TRUE) / np.linalg.norm(TRUE)


def power(n, lam, matrix=H):
    return np.linalg.matrix_power(I - lam * matrix, n)


def series(n, lam, matrix=H):
    """So many terms of the Neumann series of H^-1."""
    return lam * sum((power(k, lam, matrix) for k in range(n)), np.zeros((2, 2)))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(algorithms: str, run: str = "", name: str = "small.py:Small") -> Path:
    Path("small.py").write_text(PROBLEM)
    Path("config.toml").write_text(f'problem.name = "{name}"\n{algorithms}\n[run]\nrounds = 9\n{run}')
    return Path("config.toml")


def errors(algorithms: str, run: str = "") -> dict[str, list[OwnError]]:
    """What is found for each label at numpy's own y* and against numpy's own h*."""
    config = read(written(algorithms, run), ["run.dtype=float64"])
    found = {}
    for job in plan(config):
        own = OwnAlgorithms(job.setup().problem(), *map(torch.from_numpy, (x, Y, TRUE)), bias=0.25)
        found[job.label] = list(own.errors(job))
    return found


def exactly(value):
    return pytest.approx(value, rel=1e-9)


def checked(path: Path) -> tuple[bool, str]:
    text = io.StringIO()
    return run_check(path, [], Console(file=text, width=200)), text.getvalue()


# ---- the errors ----


def test_a_truncated_series_is_off_by_what_is_left_of_it():
    """Beyond the terms H^-1 (I - lam H)^n remains: n = N for AggITD, N + 1 for FedNest's N."""
    found = errors("""
        algorithms.aggitd = { lower_rounds = 4, lower_step = 0.2, upper_local_steps = 3 }
        algorithms.aggitd-lam = { algorithm = "aggitd", neumann_terms = 2, lower_step = 0.2, neumann_step = 0.3 }
        algorithms.fednest = { lower_rounds = 2, neumann_terms = 4, lower_step = 0.2, local_steps = 3 }
        algorithms.fednest-sgd = { lower_rounds = 2, neumann_terms = 0, lower_step = 0.2 }
    """)
    for label, n, lam in (("aggitd", 4, 0.2), ("aggitd-lam", 2, 0.3), ("fednest", 5, 0.2), ("fednest-sgd", 1, 0.2)):
        left = C.T @ np.linalg.solve(H, power(n, lam) @ FY)
        [one] = found[label]
        assert one.error == exactly(np.linalg.norm(left) / np.linalg.norm(TRUE))
    assert found["aggitd"][0].notes == ("N = 4, lam = 0.2, tau of x = 3",)
    assert found["fednest"][0].notes == ("T = 2, N = 4, lam = 0.2, tau = 3",)


def test_a_warm_start_is_told_after_one_iteration_and_after_many():
    found = errors("algorithms.aggitd = { lower_rounds = 2, lower_step = 0.01, warm_start = true }")["aggitd"]
    assert [each.error for each in found] == [exactly(off(FX + C.T @ series(n, 0.01) @ FY)) for n in (2, 200)]
    assert "warm start" in found[0].notes[0]
    assert found[1].label == ""
    assert found[1].notes[0].startswith("after 100 iterations at x0")


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_of_the_sampled_estimator_the_mean_of_all_draws_and_their_spread(name):
    """A draw is lam N (I - lam H)^n fy for n = 0..N-1, each with chance 1/N: on average N terms of the series."""
    N, lam = 5, 0.2
    [found] = errors(f'algorithms.{name} = {{ neumann_terms = {N}, lower_step = {lam}, estimator = "sample" }}')[name]
    draws = np.array([FX + C.T @ (lam * N * power(n, lam) @ FY) for n in range(N)])
    assert found.error == exactly(off(FX + C.T @ series(N, lam) @ FY)) == exactly(off(draws.mean(0)))
    spread = np.sqrt(((draws - draws.mean(0)) ** 2).sum(1).mean()) / np.linalg.norm(TRUE)
    assert found.notes[-1] == f"the mean of all 5 draws; one is off it by {spread:.1e}"


@pytest.mark.parametrize("tau", ["1", "3", "[1, 2, 4]", "{ epochs = 2 }"])
def test_lfednest_is_off_by_its_bias_too_and_local_steps_on_x_are_counted(tau):
    """Every client inverts its own H_i; tau steps at a small alpha move x tau times as far as one."""
    steps = f"lower_step = 0.2, upper_step = 1e-6, upper_local_steps = {tau}"
    [found] = errors(f"algorithms.lfednest = {{ neumann_terms = 3, {steps} }}")["lfednest"]
    taus = {"3": [3] * 3, "[1, 2, 4]": [1, 2, 4], "{ epochs = 2 }": [2] * 3}.get(tau, [1] * 3)
    share = p * taus / (p @ taus)
    h = sum(s * (d[i] + B[i].T @ series(4, 0.2, A[i]) @ (Y - c[i])) for i, s in enumerate(share))
    assert found.error == pytest.approx(off(h), rel=1e-4)
    assert found.notes[-1] == "biased by design: clients' own Hessians, off by 2.5e-01 with all terms"


def test_penalty_methods_at_their_own_penalty_and_rounds():
    """From y*, y descends f + lam g and z descends g: F2SA T rounds before it looks, MemFBO one round after it."""
    found = errors("""
        options = { lower_step = 0.3, penalty = 4.0, upper_step = 0.1 }
        algorithms.f2sa = { lower_rounds = 3 }
        algorithms.memfbo = {}
    """)
    eta, lam = 0.3 / 5, 4.0

    def steps(n):
        y = Y
        for _ in range(n):
            y = y - eta * (y - p @ c + lam * (H @ y - C @ x))
        return off(FX - lam * C.T @ (y - Y))  # z stays at y*

    assert [each.error for each in found["f2sa"]] == [exactly(steps(3)), exactly(steps(300))]
    assert [each.error for each in found["memfbo"]] == [exactly(steps(0)), exactly(steps(99))]
    assert found["f2sa"][0].notes == ("T = 3, penalty = 4",)


def test_methods_without_an_estimator_show_how_far_off_their_directions_are():
    found = errors("""
        algorithms.fedavg-alternating = { lower_step = 0.1, upper_step = 1e-6, upper_local_steps = 2 }
        algorithms.joint = { lower_weight = 2.0, upper_step = 1e-6, lower_step = 0.0, local_steps = 3 }
        algorithms.bome = { upper_level_lower_step = 0.0 }
    """)
    assert found["fedavg-alternating"][0].error == pytest.approx(off(FX), rel=1e-6)
    assert found["joint"][0].error == pytest.approx(off(FX - 2.0 * C.T @ Y), rel=1e-6)
    assert found["bome"][0].error == exactly(off(FX))  # y = yh: the barrier is inactive
    assert all("biased by design" in lines[0].notes[1] for lines in found.values())


def test_an_algorithm_that_does_not_move_x_has_no_direction():
    [found] = errors("algorithms.joint = { upper_step = 0.0 }")["joint"]
    assert (found.error, found.failed) == (None, False)
    assert "no direction" in found.notes[-1]


def test_minibatches_samples_and_absences_of_the_config_are_ignored():
    algorithms = "algorithms.fednest = { neumann_terms = 2 }"
    run = "batch = 1\ngradient_batch = 1\nclients_per_round = 1\n[systems]\navailability = 0.3"
    assert errors(algorithms, run)["fednest"] == errors(algorithms)["fednest"]


# ---- the command ----

OWN = """
from dataclasses import replace

import torch

from clients.operations.oracles import hypergradient, upper_gradient_y
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm


class Options(options.Options):
    scale: float = 0.25


@algorithm("one-term", source="here", options=Options)
def one_term(o):
    '''One term.'''

    def step(state, fed):
        fy = fed.mean(upper_gradient_y, x=state.x, y=state.y)
        h = fed.mean(hypergradient, x=state.x, y=state.y, v=o.scale * fy)
        return replace(state, x=state.x - h, hypergradient=h)

    return Algorithm(State, step, lambda index: 2)


@algorithm("silent", source="here", options=Options)
def silent(o):
    '''Tells no direction.'''
    return Algorithm(State, lambda state, fed: state, lambda index: 1)


@algorithm("lost", source="here", options=Options)
def lost(o):
    '''Leaves the numbers.'''
    return Algorithm(State, lambda state, fed: replace(state, hypergradient=state.x / 0), lambda index: 1)
"""


def own_lines(text: str) -> list[list[str]]:
    """The words of the table of the config's algorithms."""
    return [line.split() for line in text[text.index("this config's algorithms") :].splitlines()[3:]]


def test_the_table_of_a_config_with_algorithms_of_ones_own():
    Path("own.py").write_text(OWN)
    path = written("""
        algorithms.fednest = { neumann_terms = 4, lower_step = 0.2 }
        algorithms.mine = { algorithm = "own.py:one-term" }
        algorithms.function = { algorithm = "own.py:one_term", scale = 0.5 }
        algorithms.quiet = { algorithm = "own.py:silent" }
        algorithms.lfednest = {}
    """)
    passed, text = checked(path)
    assert passed
    assert text.count(" ok ") == 18  # the estimators are held to their bounds beside it
    assert "run.batch, run.gradient_batch, run.clients_per_round and [systems] are ignored" in text
    words = {line[0]: line[1] for line in own_lines(text)}
    assert words["fednest"] == f"{off(FX + C.T @ series(5, 0.2) @ FY):.1e}"
    assert words["mine"] == f"{off(FX + 0.25 * C.T @ FY):.1e}"
    assert words["function"] == f"{off(FX + 0.5 * C.T @ FY):.1e}"
    assert words["quiet"] == "-"
    bias = off(sum(w * (d[i] + B[i].T @ np.linalg.solve(A[i], Y - c[i])) for i, w in enumerate(p)))
    assert f"off by {bias:.1e} with all terms" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize(
    ("algorithms", "said"),
    [
        ('algorithms.mine = { algorithm = "own.py:lost" }', "not finite"),
        ("algorithms.fednest = { lower_step = 1e200 }", "the mean is not finite"),
    ],
)
def test_what_is_not_finite_fails_and_hides_no_other(algorithms, said):
    Path("own.py").write_text(OWN)
    passed, text = checked(written(f"{algorithms}\nalgorithms.f2sa = {{}}"))
    assert not passed
    lines = own_lines(text)
    assert sum("FAILED" in line for line in lines) == 1
    assert said in " ".join(functools.reduce(list.__add__, lines))
    assert any(line[0] == "f2sa" and float(line[1]) > 0 for line in lines)


def test_what_cannot_be_checked_is_refused(capsys):
    assert refused(capsys, "check", "--set", "a=1") == "fedbilevel: --set: got 'a=1'; allowed: a config to override\n"
    path = written("algorithms.maml = {}")
    assert "algorithms.maml: got 'maml'; allowed: for a problem with a global" in refused(capsys, "check", str(path))
    assert "options.lower_stp" in refused(capsys, "check", str(path), "--set", "options.lower_stp=1")


@pytest.mark.slow
@pytest.mark.beside
def test_overrides_reach_the_algorithms(capsys):
    path = written("algorithms.fednest = { neumann_terms = 4, lower_step = 0.2 }")
    assert main(["check", str(path), "--set", "algorithms.fednest.neumann_terms=0"]) == 0
    [line] = [line for line in own_lines(capsys.readouterr().out) if line[0] == "fednest"]
    assert line[1] == f"{off(FX + C.T @ series(1, 0.2) @ FY):.1e}"

"""`fedbilevel check`: right estimators pass, a wrong derivative fails, and the rest is said in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from clients.methods.comln import Comln
from experiments.check import run_check
from experiments.check_tasks import TaskOracle
from fedbilevel.errors import BadInput
from fedbilevel.problems.few_shot import FewShot
from fedbilevel.problems.inspection import convert
from fedbilevel.problems.quadratic_adaptation import QuadraticAdaptation
from fedbilevel.problems.quadratic_tasks import QuadraticTasks
from fedbilevel.reference.local_level import DenseTasks
from server.kit.algorithm import algorithms

CONFIG = """
run = {{ iterations = 1 }}
algorithms.aggitd = {{}}
[problem]
name = "{problem}"
"""
WRONG = """
from fedbilevel.problems import Quadratic


class Wrong(Quadratic):
    def {method}:
        {body}


def problem():
    return Wrong(clients=3, dim_x=2, dim_y=4)
"""


def checked(path: Path | None) -> tuple[bool, str]:
    text = io.StringIO()
    return run_check(path, [], Console(file=text, width=200)), text.getvalue()


def written(folder: Path, source: str) -> Path:
    (folder / "wrong.py").write_text(source)
    config = folder / "config.toml"
    config.write_text(CONFIG.format(problem=f"{folder / 'wrong.py'}:problem"))
    return config


def test_every_estimator_passes_on_both_problems() -> None:
    passed, text = checked(None)
    assert passed
    assert "quadratic: 10 clients" in text
    assert "hyper_representation: 5 clients" in text
    for name in ("aggitd, sum", "aggitd, warm start", "fednest, sum", "fednest-sgd, sum", "lfednest, sum"):
        assert sum(line.strip().startswith(name) for line in text.splitlines()) == 2
    assert text[: text.index("quadratic_tasks:")].count(" ok ") == 18
    assert "FAILED" not in text
    tasks = text[text.index("quadratic_tasks:") :].splitlines()
    for name in algorithms("local"):
        found = [line for line in tasks if line.split()[0].rstrip(",") == name]
        assert found
        assert all(any(said in line for said in (" ok ", "no dense reference", "does not solve")) for line in found)
    for name in ("maml", "maml, truncation 2", "fomaml", "reptile", "memfbo"):
        assert any(line.strip().startswith(name) and " ok " in line for line in tasks)


@pytest.mark.parametrize(
    ("method", "body"),
    [
        (
            "lower_hvp(self, x, y, v, prepared, weights)",
            "import torch; return torch.einsum('...n,...nij,...j->...i', weights, prepared['A'], v) * 1.0001",
        ),
        (
            "cross_vjp(self, x, y, v, examples, prepared, weights)",
            "import torch; return torch.einsum('n,nij,i->j', weights, examples['B'], v)",
        ),
        ("upper_gradient_x(self, x, y, examples, prepared, weights)", "return weights @ examples['d']"),
    ],
    ids=["hessian off by 1e-4", "cross product with the wrong sign", "direct gradient without a term"],
)
def test_a_wrong_closed_form_fails(tmp_path: Path, method: str, body: str) -> None:
    passed, text = checked(written(tmp_path, WRONG.format(method=method, body=body)))
    assert not passed
    assert any("fednest, sum" in line and "FAILED" in line for line in text.splitlines())


def test_a_lower_level_without_a_minimum_is_refused(tmp_path: Path) -> None:
    body = "return -super().lower(x, y, examples)"
    with pytest.raises(BadInput, match="strongly convex"):
        checked(written(tmp_path, WRONG.format(method="lower(self, x, y, examples)", body=body)))


# ---- local lower level ----

NETWORK = """
from fedbilevel import derivatives
from tests.test_meta_gradients import Softmax

right = Softmax()


class Changed(Softmax):
    {body}


def problem():
    return Changed()
"""


def network(folder: Path, body: str) -> Path:
    return written(folder, NETWORK.format(body=body))


def test_methods_pass_on_a_network_whose_support_losses_are_not_convex(tmp_path: Path) -> None:
    passed, text = checked(network(tmp_path, "pass"))
    assert passed
    assert "6 tasks, y [31]" in text
    smallest = float(text.splitlines()[1].split()[4])
    assert smallest < 0
    assert text.count(" ok ") >= 5


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (
            """def lower_hvp(self, x, y, v, prepared, weights):
        return 1.001 * derivatives.hvp(right, x, y, v, prepared, weights)""",
            "maml",
        ),
        (
            """def lower_gradient(self, x, y, prepared, weights):
        return 1.001 * derivatives.gradient_y(right, "lower", x, y, prepared, weights)""",
            "reptile",
        ),
        (
            """def upper_gradient_y(self, x, y, prepared, weights):
        return 1.001 * derivatives.gradient_y(right, "upper", x, y, prepared, weights)""",
            "fomaml",
        ),
    ],
    ids=["Hessian", "support gradient", "query gradient"],
)
def test_a_wrong_closed_form_of_a_task_fails(tmp_path: Path, body: str, wrong: str) -> None:
    passed, text = checked(network(tmp_path, body))
    assert not passed
    assert any(line.split()[0] == wrong and "FAILED" in line for line in text.splitlines())


def test_tasks_too_large_for_dense_hessians_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.check_tasks.LARGEST", 30)
    with pytest.raises(BadInput, match="dimension 31'; allowed: at most 30"):
        checked(network(tmp_path, "pass"))


HEAD = """
[run]
iterations = 1
[problem]
name = "few_shot"
ways = 3
shots = 2
side = 4
network = "mlp"
hidden = [4]
activation = "{activation}"
[algorithms.comln]
"""


@pytest.mark.parametrize(("activation", "smooth"), [("tanh", True), ("relu", False)])
def test_the_flow_of_a_head_passes_and_kinks_are_said(tmp_path: Path, activation: str, smooth: bool) -> None:
    (tmp_path / "head.toml").write_text(HEAD.format(activation=activation))
    passed, text = checked(tmp_path / "head.toml")
    assert passed
    [comln] = [line for line in text.splitlines() if line.split()[0] == "comln"]
    assert " ok " in comln
    assert float(comln.split()[1]) < 1e-8
    assert ("which is known to" not in text) == ("lie on kinks" not in text) == smooth


def test_a_wrong_flow_of_a_head_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = convert(FewShot(ways=2, side=2, network="mlp", hidden=[3], activation="tanh"), torch.float64)
    oracle, real = TaskOracle(problem, 0), Comln.meta_gradient
    [right] = oracle.head("comln")

    def wrong(self: Comln, tasks: Any, x: Any, o: Any) -> Any:
        gradient, told = real(self, tasks, x, o)
        gradient[:, -1] *= 1.001
        return gradient, told

    monkeypatch.setattr(Comln, "meta_gradient", wrong)
    [found] = oracle.head("comln")
    assert right.passed
    assert not found.passed


@pytest.mark.parametrize("time", [0.5, 3.0])
def test_dense_solutions_of_quadratic_tasks_equal_the_closed_forms(time: float) -> None:
    problem = QuadraticTasks(clients=2, dim=4)
    tasks = problem.tasks(problem.clients.lower, np.array([[[0.1], [0.6]], [[0.3], [0.9]]]))
    x = problem.initial(torch.Generator().manual_seed(0))[0]
    dense, exact = DenseTasks(problem, tasks, x), QuadraticAdaptation(tasks)
    y, unrolled = dense.descent(4, 0.3, 3)
    expected = exact.maml(x, steps=4, step=0.3, truncation=3)
    pairs = [(y, expected.y), (unrolled, expected.gradient), (dense.flow(time)[0], exact.flow(x, time=time).gradient)]
    held = exact.imaml(x, proximal=0.7)
    pairs += [(dense.minimiser(0.7), held.y), (dense.implicit(0.7, held.y), held.gradient)]
    for found, wanted in pairs:
        assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-9)

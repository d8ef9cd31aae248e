"""`fedbilevel check` where the lower level is local: right methods pass, and a wrong derivative fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.linalg import expm

from clients.methods.comln import Comln
from clients.methods.penalty import Bome, MemFBO
from clients.tasks import TaskBatch
from experiments.checks import algorithms as check_algorithms
from experiments.checks.algorithms import TRUTHS, OwnError, OwnMethods
from experiments.checks.estimators import run_check
from experiments.checks.tasks import TaskOracle
from fedbilevel.config.tables import read
from fedbilevel.errors import BadInput
from fedbilevel.problems.inspection import convert
from fedbilevel.problems.tasks.few_shot import FewShot
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from server.kit.algorithm import find
from server.running.plan import plan

NETWORK = """
from fedbilevel import derivatives
from fedbilevel.problems.tasks.few_shot import FewShot

small = {{"ways": 2, "side": 2, "network": "mlp", "hidden": [3], "activation": "tanh"}}
right = FewShot(**small)


class Changed(FewShot):
    {body}


def problem():
    return Changed(**small)
"""
CONFIG = """
run = {{ iterations = 1 }}
algorithms.maml = {{}}
[problem]
name = "{problem}"
"""


def checked(path: Path) -> tuple[bool, str]:
    text = io.StringIO()
    return run_check(path, [], Console(file=text, width=200)), text.getvalue()


def network(folder: Path, body: str) -> Path:
    """A config of a small network whose class is changed by `body`."""
    (folder / "network.py").write_text(NETWORK.format(body=body))
    config = folder / "config.toml"
    config.write_text(CONFIG.format(problem=f"{folder / 'network.py'}:problem"))
    return config


def test_methods_pass_on_a_network_whose_support_losses_are_not_convex(tmp_path: Path) -> None:
    passed, text = checked(network(tmp_path, "pass"))
    assert passed
    assert "6 tasks, y [23]" in text
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
    monkeypatch.setattr("experiments.checks.tasks.LARGEST", 22)
    with pytest.raises(BadInput, match="dimension 23'; allowed: at most 22"):
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
lower_step = 1.0
local_steps = 2
"""


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize(("activation", "smooth"), [("tanh", True), ("relu", False)])
def test_the_flow_of_a_head_passes_and_kinks_are_said(tmp_path: Path, activation: str, smooth: bool) -> None:
    (tmp_path / "head.toml").write_text(HEAD.format(activation=activation))
    passed, text = checked(tmp_path / "head.toml")
    assert passed
    estimators, own = text.split("this config's algorithms")
    [comln] = [line for line in estimators.splitlines() if line.startswith("  comln ")]
    assert " ok " in comln
    assert float(comln.split()[1]) < 1e-8
    assert ("which is known to" not in estimators) == ("have kinks" not in estimators) == smooth
    [comln] = [line for line in own.splitlines() if line.startswith("  comln ")]
    assert 1e-7 < float(comln.split()[1]) < 1e-2  # two steps of its solver


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


PENALISED = {"memfbo": (MemFBO, TaskOracle.penalty), "bome": (Bome, TaskOracle.barrier)}
SMALL: dict[str, Any] = {
    "quadratics": lambda: QuadraticTasks(clients=3, dim=3),
    "network": lambda: FewShot(ways=2, side=2, network="mlp", hidden=[3], activation="tanh"),
}


@pytest.mark.parametrize("problem", SMALL)
@pytest.mark.parametrize("name", PENALISED)
def test_a_wrong_penalty_direction_is_found(name: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direction that is a thousandth too long fails, and one by a query gradient that is."""
    method, reference = PENALISED[name]
    oracle, real = TaskOracle(convert(SMALL[problem](), torch.float64), 0), method.meta_gradient
    right = list(reference(oracle, name))
    assert all(finding.passed for finding in right)
    assert right[0].error is not None
    assert right[0].error < 1e-9

    def longer(self: Any, *args: Any) -> Any:
        gradient, told = real(self, *args)
        return 1.001 * gradient, told

    monkeypatch.setattr(method, "meta_gradient", longer)
    assert not next(reference(oracle, name)).passed
    monkeypatch.undo()
    slope = TaskBatch.gradient

    def steeper(self: TaskBatch, level: Any, y: Any) -> Any:
        return slope(self, level, y) * (1.001 if level == "upper" else 1.0)

    monkeypatch.setattr(TaskBatch, "gradient", steeper)
    assert not next(reference(oracle, name)).passed


def test_the_dense_penalty_has_its_closed_form_on_quadratics() -> None:
    """`y = argmin f + lam g`, `z = argmin g`: linear systems in numpy."""
    oracle = TaskOracle(convert(QuadraticTasks(clients=3, dim=3), torch.float64), 0)
    q, lam, penalty = Quadratics(oracle), 0.7, 30.0
    H = q.C + penalty * (q.A + lam * q.I)
    y = q.times(np.linalg.inv(H), q.times(q.C, q.c) + penalty * (q.times(q.A, q.a) + lam * q.x))
    np.testing.assert_allclose(oracle.dense.minimiser(lam, penalty).numpy(), y, rtol=1e-10)
    np.testing.assert_allclose(oracle.dense.minimiser(lam).numpy(), q.minimum(lam), rtol=1e-10)


# ---- the config's own algorithms ----

OWN = """
from server.kit.algorithm import algorithm
from server.kit.meta import MetaOptions, meta_algorithm


@algorithm("mine", source="here", options=MetaOptions, lower="local")
def mine(o):
    '''First order.'''
    return meta_algorithm("fomaml", o)
"""


class Quadratics:
    """The tasks that are looked at and x0, in numpy: L = 1/2 (y - a)'A(y - a), f = 1/2 (y - c)'C(y - c)."""

    def __init__(self, oracle: TaskOracle) -> None:
        tasks: Any = oracle.batch.tasks
        self.A, self.a = (tasks.support[name][:, 0].numpy() for name in ("A", "a"))
        self.C, self.c = (tasks.query[name][:, 0].numpy() for name in ("C", "c"))
        self.x, self.I = oracle.x.numpy(), np.eye(len(oracle.x))

    def times(self, M: Any, v: Any) -> Any:
        return np.einsum("bij,bj->bi", M, v)

    def query(self, y: Any) -> Any:
        return self.times(self.C, y - self.c)

    def implicit(self, y: Any, lam: float) -> Any:
        return lam * self.times(np.linalg.inv(self.A + lam * self.I), self.query(y))

    def minimum(self, lam: float) -> Any:
        return self.times(np.linalg.inv(self.A + lam * self.I), self.times(self.A, self.a) + lam * self.x)


def test_what_is_not_learnt_has_no_truth_but_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A horizon that stays, and variances that do: the last entries of the meta-gradient, and no others, are 0."""
    monkeypatch.setattr(check_algorithms, "settled", lambda expected: (expected(4), 0.0))  # a coarse flow will do
    network = convert(FewShot(ways=2, side=2, network="mlp", hidden=[3], activation="tanh"), torch.float64)
    quadratics = convert(QuadraticTasks(clients=3, dim=3), torch.float64)
    for name, option, problem, entries in (
        ("comln", "learn_horizon", network, 1),
        ("ibaml", "learn_variance", quadratics, 3),
    ):
        entry, oracle = find(name), TaskOracle(problem, 0)
        learnt, fixed = (TRUTHS[name](oracle, entry.parse({option: value})).gradient for value in (True, False))
        assert learnt is not None
        assert fixed is not None
        assert torch.equal(fixed[:, :-entries], learnt[:, :-entries])
        assert bool((fixed[:, -entries:] == 0).all())
        assert bool((learnt[:, -entries:] != 0).any(1).all())


def own_methods(folder: Path, algorithms: str) -> tuple[Quadratics, dict[str, OwnError]]:
    """The tasks, and the one line of each label."""
    (folder / "own.py").write_text(OWN)
    (folder / "own.toml").write_text(
        f"problem = {{ name = 'quadratic_tasks', clients = 4, dim = 3 }}\n{algorithms}\n[run]\niterations = 1\n"
    )
    jobs = plan(read(folder / "own.toml", ["run.dtype=float64"]))
    oracle = TaskOracle(jobs[0].setup().problem(), 0)  # type: ignore[arg-type]
    found = {job.label: list(OwnMethods(oracle).errors(job)) for job in jobs}
    assert all(len(lines) == 1 for lines in found.values())
    return Quadratics(oracle), {label: line for label, [line] in found.items()}


def off(found: Any, truth: Any) -> Any:
    """Within what dense solves of well conditioned systems leave."""
    return pytest.approx(np.linalg.norm(found - truth) / np.linalg.norm(truth), rel=1e-6)


def test_methods_that_unroll_are_off_by_the_steps_that_they_leave_out(tmp_path: Path) -> None:
    """With M = I - eta A: y_K = a + M^K (x - a), and the derivative through the last k steps is M^k C(y_K - c)."""
    q, found = own_methods(
        tmp_path,
        """
        options = { lower_step = 0.3, local_steps = 4 }
        algorithms.short = { algorithm = "maml", truncation = 1 }
        algorithms.maml = {}
        algorithms.fomaml = {}
        algorithms.reptile = {}
        algorithms.a-maml = { solver = "euler" }
        algorithms.mine = { algorithm = "own.py:mine" }
        """,
    )
    M = q.I - 0.3 * q.A
    y = q.a + q.times(np.linalg.matrix_power(M, 4), q.x - q.a)
    through = [q.times(np.linalg.matrix_power(M, k), q.query(y)) for k in range(5)]
    assert found["maml"].error < 1e-12  # type: ignore[operator]
    assert found["short"].error == off(through[1], through[4])
    assert found["fomaml"].error == off(through[0], through[4])
    assert "biased by design" in " ".join(found["fomaml"].notes)
    flown = np.stack([expm(-1.2 * A) for A in q.A])
    exact = q.times(flown, q.query(q.a + q.times(flown, q.x - q.a)))
    assert found["a-maml"].error == off(through[4], exact)
    assert found["reptile"].error is found["mine"].error is None
    assert not found["mine"].failed
    assert found["mine"].notes[-1].endswith("no dense reference")


def test_implicit_methods_are_off_by_what_their_solvers_leave(tmp_path: Path) -> None:
    """The truth is the implicit gradient at the minimum; few steps end elsewhere, and penalties are finite."""
    q, found = own_methods(
        tmp_path,
        """
        options = { lower_step = 0.2, local_steps = 3 }
        algorithms.imaml = { proximal = 0.5 }
        algorithms.ibaml = { initial_variance = 0.5 }
        algorithms.memfbo = { proximal = 0.5, penalty = 20.0 }
        """,
    )

    def descended(lam: float) -> Any:
        y = np.broadcast_to(q.x, q.a.shape)
        for _ in range(3):
            w = y - 0.2 * q.times(q.A, y - q.a)
            y = w + 0.2 * lam / (1 + 0.2 * lam) * (q.x - w)
        return y

    truth = q.implicit(q.minimum(0.5), 0.5)
    assert found["imaml"].error == off(q.implicit(descended(0.5), 0.5), truth)
    in_mean, true_mean = q.implicit(descended(2.0), 2.0), q.implicit(q.minimum(2.0), 2.0)
    both = [np.concatenate([m, m * (y - q.x)], 1) for m, y in ((in_mean, descended(2.0)), (true_mean, q.minimum(2.0)))]
    assert found["ibaml"].error == off(*both)
    y = z = np.broadcast_to(q.x, q.a.shape)
    for _ in range(3):
        slope_y, slope_z = (q.times(q.A, v - q.a) + 0.5 * (v - q.x) for v in (y, z))
        y, z = y - 0.2 / 21 * (q.query(y) + 20 * slope_y), z - 0.2 * slope_z
    assert found["memfbo"].error == off(20 * 0.5 * (z - y), truth)
    assert "lam_p = 0.5" in found["memfbo"].notes[-1]

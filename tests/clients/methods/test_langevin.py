"""Stochastic bilevel optimisation on quadratics: the chains' law, no bias, and an error that falls as 1/sqrt(S)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.methods import langevin
from clients.methods.langevin import chains, covariance
from clients.tasks import TaskBatch
from fedbilevel import BadInput, simulate
from fedbilevel.problems import Quadratic
from fedbilevel.problems.tasks.quadratic_adaptation import QuadraticAdaptation
from fedbilevel.tasks import Tasks
from tests.agreement import relative
from tests.problem_table import Softmax, quadratic_tasks
from tests.reference import Dense
from tests.runs import meta_gradient, settings, start, tasks_of, traced

LAM, ETA = 0.8, 0.2
OWN = {"proximal": LAM, "lower_step": ETA, "lower_rounds": 60}


def one_task() -> tuple[TaskBatch, Tensor, QuadraticAdaptation]:
    tasks, x = tasks_of(quadratic_tasks(), 1)
    one = TaskBatch(tasks.problem, tasks.tasks[:1], x)
    return one, x, QuadraticAdaptation(one.tasks)


def expected(own: QuadraticAdaptation, x: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The stationary covariance over T, H^-1 (I - eta H/2)^-1, and the meta-gradient lam_p of it times grad f(y*)."""
    H = own.A[0] + LAM * torch.eye(len(x), dtype=x.dtype)
    law = torch.linalg.inv(H) @ torch.linalg.inv(torch.eye(len(x), dtype=x.dtype) - eta * H / 2)
    y = own.imaml(x, proximal=LAM).y[0]
    return law, LAM * law @ own.C[0] @ (y - own.c[0])


def repeated(task: TaskBatch, times: int) -> TaskBatch:
    """The same task many times, each with random numbers of its own."""
    parts = (
        {k: t.expand(times, *t.shape[1:]) for k, t in part.items()} for part in (task.tasks.support, task.tasks.query)
    )
    return TaskBatch(task.problem, Tasks(*parts), task.x)


@pytest.mark.parametrize("eta", [0.05, 0.6])
def test_the_chains_covariance_is_that_of_their_step(eta: float) -> None:
    """T H^-1 (I - eta H/2)^-1 within 3 %, and the mean where the support loss and the pull balance."""
    task, x, own = one_task()
    T, steps = 0.7, math.ceil(12 / eta)
    o = settings(
        "stochastic-bilevel", **{**OWN, "lower_step": eta, "lower_rounds": steps}, temperature=T, samples=10_000
    )
    y = chains(task, x, o)[:, 0]
    law, _ = expected(own, x, eta)
    found = torch.cov(y.T)
    assert relative(found, T * law) < 0.03
    if eta > 0.1:  # the step shows: the law of the flow itself is further away
        assert relative(found, T * torch.linalg.inv(own.A[0] + LAM * torch.eye(len(x)).to(x))) > 0.1
    error = (y.mean(0) - own.imaml(x, proximal=LAM).y[0]).abs() / (T * law.diagonal() / len(y)).sqrt()
    assert float(error.max()) < 4


@pytest.mark.parametrize("T", [0.3, 1.0])
def test_the_meta_gradient_has_no_bias_and_an_error_that_falls_as_the_root_of_the_samples(T: float) -> None:
    """Means over 200 repetitions within three standard errors of the implicit gradient, but for the step."""
    task, x, own = one_task()
    many, errors = repeated(task, 200), {}
    _, exact = expected(own, x, ETA)
    without_step = expected(own, x, 0.0)[1]
    assert relative(without_step, own.imaml(x, proximal=LAM).gradient[0]) < 1e-10
    for S in (4, 16, 64):
        found = meta_gradient("stochastic-bilevel", many, x, **OWN, temperature=T, samples=S)
        error = (found.mean(0) - exact) / (found.std(0) / math.sqrt(200))
        assert float(error.abs().max()) < 3
        errors[S] = float((found - exact).square().sum(-1).mean().sqrt())
    for S in (4, 16):  # of a covariance S - 1 differences are free
        assert errors[S] / errors[4 * S] == pytest.approx(math.sqrt((4 * S - 1) / (S - 1)), rel=0.2)


def test_the_covariance_is_unbiased_and_by_hand() -> None:
    draw = np.random.default_rng(0)
    f, g = draw.standard_normal(6), draw.standard_normal((6, 3))
    whole = np.cov(np.concatenate([f[:, None], g], 1).T)
    assert relative(covariance(torch.from_numpy(f), torch.from_numpy(g)), torch.from_numpy(whole[0, 1:])) < 1e-12


def test_the_temperature_of_a_loss_that_is_no_quadratic_tends_to_none() -> None:
    """As T falls the meta-gradient of a network tends to the implicit one at the minimum."""
    tasks, x = tasks_of(Softmax(1), 1)
    o = {"inner_solver": "newton", "local_steps": 15, "cg_steps": 60, "cg_tolerance": 1e-14, "proximal": 2.0}
    implicit = meta_gradient("imaml", tasks, x, **o)
    own = {"proximal": 2.0, "lower_step": 0.05, "lower_rounds": 100, "samples": 5_000}
    cold, hot = (meta_gradient("stochastic-bilevel", tasks, x, **own, temperature=T) for T in (0.05, 3.0))
    assert relative(cold, implicit) < 0.25
    assert relative(hot, implicit) > 2 * relative(cold, implicit)


def test_noise_is_a_tasks_own_and_a_rounds_own() -> None:
    tasks, x = tasks_of(quadratic_tasks(), 2)
    o = settings("stochastic-bilevel", **{**OWN, "lower_rounds": 1}, samples=3)
    moved = chains(tasks, x, o) + ETA * tasks.gradient("lower", x)
    assert not torch.allclose(moved[:, 0], moved[:, 1])
    assert torch.equal(chains(tasks, x, o), chains(tasks, x, o))
    still = {"upper_step": 0.0, "tasks_per_client": 2, "samples": 3}
    first, second = traced(quadratic_tasks(), "stochastic-bilevel", 2, **still).trace or ()
    assert not torch.equal(first.hypergradient, second.hypergradient)


# ---- the clients' common lower level ----


@pytest.mark.parametrize("T", [0.3, 1.0])
def test_on_a_common_lower_level_directions_have_no_bias(T: float) -> None:
    """The directions at x0 of many iterations, from chains that have forgotten their start, but for the step."""
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.5, seed=8)
    eta, steps = 0.4, 15
    options: dict[str, Any] = {"lower_step": eta, "lower_rounds": steps, "temperature": T, "samples": 20}
    result = traced(problem, "stochastic-bilevel", 18, upper_step=0.0, **options)
    assert result.trace is not None
    found = np.stack([entry.hypergradient.numpy() for entry in result.trace[2:]])  # type: ignore[union-attr]
    dense, x = Dense.of(problem), start(problem)[0].numpy()
    y = dense.lower_solution(x)
    law = np.linalg.inv(dense.A) @ np.linalg.inv(np.eye(4) - eta * dense.A / 2)
    exact = dense.d + dense.rho * x + dense.B.T @ law @ dense.fy(y)
    error = (found.mean(0) - exact) / (found.std(0, ddof=1) / np.sqrt(len(found)))
    assert np.abs(error).max() < 3.5
    through = exact - dense.d - dense.rho * x
    assert np.linalg.norm(found.mean(0) - exact) < 0.5 * np.linalg.norm(through)
    assert [entry.rounds for entry in result.trace] == [steps + 1] * 18


def test_on_a_common_lower_level_x_comes_near_the_solution() -> None:
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, rho=1.0, seed=8)
    options: dict[str, Any] = {"lower_step": 0.3, "lower_rounds": 5, "temperature": 0.05, "samples": 16}
    result = traced(problem, "stochastic-bilevel", 40, upper_step=0.2, **options)
    start_x, solution = start(problem)[0], torch.as_tensor(problem.solution())
    assert float((result.x - solution).norm()) < 0.3 * float((start_x - solution).norm())


def test_chains_that_are_differentiated_apart_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, x = tasks_of(Softmax(2), 2)
    own = {"samples": 6, "lower_rounds": 3}
    whole = meta_gradient("stochastic-bilevel", tasks, x, **own)
    monkeypatch.setattr(langevin, "TOGETHER", 4 * len(x) * 4)
    assert relative(meta_gradient("stochastic-bilevel", tasks, x, **own), whole) < 1e-12
    monkeypatch.setattr(langevin, "TOGETHER", 1)
    assert relative(meta_gradient("stochastic-bilevel", tasks, x, **own), whole) < 1e-12


def test_options_that_cannot_be_used() -> None:
    for key, value in (("samples", 1), ("temperature", 0.0), ("lower_step", 0.0), ("proximal", -1.0)):
        with pytest.raises(BadInput, match=f"options.{key}: got .*; allowed"):
            simulate("quadratic_tasks", "stochastic-bilevel", iterations=1, **{key: value})

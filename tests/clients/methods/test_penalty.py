"""First-order penalty methods on tasks: MemFBO and BOME."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clients.tasks import TaskBatch
from fedbilevel.problems.tasks.quadratic_adaptation import QuadraticAdaptation
from tests.agreement import relative
from tests.algorithm_table.row import Options
from tests.problem_table import DIM, M, Softmax, quadratic_tasks
from tests.runs import Loss, meta_gradient, of_task, tasks_of

PROXIMAL = {"proximal": 0.8, "lower_step": 0.5}


def matched(penalty: float) -> Options:
    """Steps that suit eigenvalues in [0.2, 1] of A and C."""
    return {**PROXIMAL, "penalty": penalty, "penalised_lower_step": 2 / (2.8 * penalty + 1.2)}


def test_memfbo_tends_to_the_implicit_gradient_as_the_penalty_grows() -> None:
    tasks, x = tasks_of(quadratic_tasks(), 3)
    own, errors = QuadraticAdaptation(tasks.tasks), []
    implicit = own.imaml(x, proximal=0.8).gradient
    for penalty in (1e2, 1e3, 1e4):
        found = meta_gradient("memfbo", tasks, x, local_steps=80, **matched(penalty))
        assert relative(found, own.penalty(x, proximal=0.8, penalty=penalty).gradient) < 1e-8
        errors.append(relative(found, implicit))
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.05)


def test_memfbo_moves_along_the_x_gradient_of_the_penalty() -> None:
    """Against a central difference of lam (g(x, y) - g(x, z)) in x, y and z held where plain loops leave them."""
    (tasks, x), penalty = tasks_of(Softmax(), 1, seed=1), 7.0
    options = {"local_steps": 4, "penalty": penalty, "proximal": 0.8, "lower_step": 0.2}
    found = meta_gradient("memfbo", tasks, x, **options)
    for b in range(len(tasks)):
        L, f = of_task(tasks, b)

        def g(x: Tensor, y: Tensor, L: Loss = L) -> Tensor:
            return L(y) + 0.4 * (y - x).square().sum()

        y = z = x
        for _ in range(4):
            y, z = y.detach().requires_grad_(), z.detach().requires_grad_()
            y = y - 0.2 / 8 * torch.autograd.grad(f(y) + penalty * g(x, y), y)[0]
            z = z - 0.2 * torch.autograd.grad(g(x, z), z)[0]
        y, z, h = y.detach(), z.detach(), 1e-5
        steps = h * torch.eye(len(x), dtype=x.dtype)
        ends = [penalty * (g(x + s, y) - g(x + s, z) - g(x - s, y) + g(x - s, z)) / (2 * h) for s in steps]
        assert relative(found[b], torch.stack(ends)) < 1e-7


def bome_by_hand(
    tasks: TaskBatch, x: Tensor, *, K: int, T: int, xi: float, beta: float, eta: float, proximal: float
) -> Tensor:
    """BOME on y alone, one task after another, gradients by torch.autograd."""
    found = []
    for b in range(len(tasks)):
        L, f = of_task(tasks, b)

        def slope(loss: Loss, y: Tensor) -> Tensor:
            y = y.detach().requires_grad_()
            return torch.autograd.grad(loss(y), y)[0]

        def g_slope(y: Tensor, L: Loss = L) -> Tensor:
            return slope(L, y) + proximal * (y - x)

        y = x
        for k in range(K + 1):
            fy, gy = slope(f, y), g_slope(y)
            mult = max(eta * float(gy @ gy) - float(fy @ gy), 0.0) / float(gy @ gy)
            if k < K:
                y = y - xi * (fy + mult * gy)
        yh = y
        for _ in range(T):
            yh = yh - beta * g_slope(yh)
        found.append(mult * (-proximal * (y - x) + proximal * (yh - x)))
    return torch.stack(found)


def test_bome_equals_a_second_implementation() -> None:
    tasks, x = tasks_of(Softmax(), 1, seed=1)
    options = {"local_steps": 6, "lower_rounds": 3, "upper_level_lower_step": 0.2, "lower_step": 0.4, "barrier": 0.6}
    found = meta_gradient("bome", tasks, x, proximal=0.8, **options)
    assert relative(found, bome_by_hand(tasks, x, K=6, T=3, xi=0.2, beta=0.4, eta=0.6, proximal=0.8)) < 1e-10


def test_the_bias_of_bome_falls_with_its_step() -> None:
    tasks, x = tasks_of(quadratic_tasks(), 1)
    implicit, errors = QuadraticAdaptation(tasks.tasks).imaml(x, proximal=0.8).gradient, []
    for step in (0.1, 0.02):
        options = {"local_steps": round(7 / step), "lower_rounds": 20, "upper_level_lower_step": step, **PROXIMAL}
        found = meta_gradient("bome", tasks, x, **options)
        errors.append(relative(found, implicit))
    assert errors[0] < 0.3
    assert errors[1] < 0.01


def test_a_vanishing_lower_gradient_leaves_no_multiplier() -> None:
    """At a task that x solves already, gy = 0: BOME's multiplier is 0 by definition, and x does not move."""
    problem = quadratic_tasks(heterogeneity=0.0, spread=0.0)
    tasks, x = tasks_of(problem, 1)[0], torch.zeros(DIM, dtype=torch.float64)
    assert torch.equal(meta_gradient("bome", tasks, x), torch.zeros(M, DIM, dtype=torch.float64))

"""Dense solves task by task: the adapted parameters by Newton, and the gradients at them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev

from clients.tasks import TaskBatch
from fedbilevel.problems.tasks.quadratic_adaptation import QuadraticAdaptation
from fedbilevel.tasks import Tasks
from tests.runs import Loss, of_task


def eye(d: int) -> Tensor:
    """The identity."""
    return torch.eye(d, dtype=torch.float64)


def hessian(J: Loss, z: Tensor) -> Tensor:
    """The dense second derivative."""
    found: Tensor = jacrev(grad(J))(z)
    return found


def newton(J: Loss, z: Tensor) -> Tensor:
    """Dense Newton steps, halved until J does not grow."""
    for _ in range(60):
        if grad(J)(z).norm() < 1e-13:
            break
        step, length = torch.linalg.solve(hessian(J, z), grad(J)(z)), 1.0
        while not J(z - length * step) <= J(z) + 1e-14 and length > 1e-12:
            length /= 2
        z = z - length * step
    assert grad(J)(z).norm() < 1e-12
    return z


def dense(tasks: TaskBatch, mu: Tensor, s: Tensor, T: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """y*, the gradient of f(y*) in mu and in log s, [B, d] each, by dense solves task by task."""
    rows = []
    for b in range(len(tasks)):
        L, f = of_task(tasks, b)
        y = newton(lambda y, L=L: L(y) + 0.5 * T * ((y - mu) ** 2 / s).sum(), mu)
        u = torch.linalg.solve(hessian(L, y) + T * torch.diag(1 / s), grad(f)(y))
        rows.append((y, T * u / s, T * u * (y - mu) / s))
    y, in_mean, in_variance = (torch.stack(part) for part in zip(*rows, strict=True))
    return y, in_mean, in_variance


def points(d: int) -> tuple[Tensor, Tensor]:
    """A prior's mean and log variances."""
    draw = torch.Generator().manual_seed(7)
    mean, log_variance = (torch.randn(d, generator=draw, dtype=torch.float64) for _ in range(2))
    return mean, 0.5 * log_variance


def closed_form(name: str, tasks: Tasks, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The meta-gradient of quadratic tasks, [B, d]."""
    told = {"steps": options["local_steps"], "step": options["lower_step"]}
    if "truncation" in options:
        told["truncation"] = options["truncation"]
    gradient: Tensor = getattr(QuadraticAdaptation(tasks), name)(x, **told).gradient
    return gradient

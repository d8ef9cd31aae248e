"""Dense reference solutions, on problems small enough to write H down: what the estimators are held against.

Nothing here is used by an algorithm. Derivatives come from `torch.func` on the losses themselves, never from a
problem's closed forms, so that a wrong closed form shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev

from fedbilevel import derivatives
from fedbilevel.errors import BadInput
from fedbilevel.problem import Problem, leaves, loss_of

LARGEST = 4000
"""The largest dimension of y for which H is written down."""
_CHUNK = 64
"""Rows of a dense Hessian that are computed together."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Losses:
    """g and f of some clients, their p_i-weighted means, as functions of (x, y)."""

    lower: Loss
    upper: Loss

    @classmethod
    def of(cls, problem: Problem, clients: np.ndarray) -> Losses:
        """Return the mean losses of these clients, weighted by p_i / sum p_j."""
        weights = problem.clients.weights[clients] / problem.clients.weights[clients].sum()

        def mean(level: Literal["lower", "upper"]) -> Loss:
            ragged = getattr(problem.clients, level).take(clients)
            share = np.repeat(weights / ragged.sizes, ragged.sizes)
            device = leaves(ragged.values)[0].device

            def loss(x: Tensor, y: Tensor) -> Tensor:
                prepared = derivatives.prepare(problem, x, ragged.values)
                per_example = loss_of(problem, level)(x, y, prepared)
                return (torch.as_tensor(share, dtype=per_example.dtype, device=device) * per_example).sum()

            return loss

        return cls(mean("lower"), mean("upper"))


def _slope(loss: Loss, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the gradient in y as a function of y."""

    def of(y: Tensor) -> Tensor:
        return loss(x, y)

    gradient: Callable[[Tensor], Tensor] = grad(of)
    return gradient


def hessian(loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """d2 loss / dy2, shape [dy, dy]. Raises BadInput if dy exceeds `LARGEST`."""
    if len(y) > LARGEST:
        raise BadInput("problem", f"a lower level of dimension {len(y)}", f"at most {LARGEST}, for a dense solve")
    rows: Tensor = jacrev(_slope(loss, x), chunk_size=_CHUNK)(y)
    return rows.detach()


def lower_solution(loss: Loss, x: Tensor, y: Tensor, *, tolerance: float = 1e-13, steps: int = 100) -> Tensor:
    """y*(x) by Newton's method with a halved step while the loss does not fall.

    Raises BadInput if H is not positive definite on the way, or if Newton's method does not converge.
    """
    slope = _slope(loss, x)
    scale = 1.0 + float(torch.linalg.vector_norm(slope(y)))
    for _ in range(steps):
        g = slope(y)
        H = hessian(loss, x, y)
        factor, failed = torch.linalg.cholesky_ex(H)
        if bool(failed):
            raise BadInput("problem.lower", "a Hessian that is not positive definite", "a strongly convex lower level")
        step = torch.cholesky_solve(g[:, None], factor)[:, 0]
        if float(torch.linalg.vector_norm(g)) <= tolerance * scale:
            return y
        before, size = loss(x, y), 1.0
        while size > 1e-8 and float(loss(x, y - size * step)) > float(before) + 1e-15 * abs(float(before)):
            size /= 2
        moved = y - size * step
        if torch.equal(moved, y):
            return y
        y = moved
        if float(torch.linalg.vector_norm(size * step)) <= 1e-15 * (1.0 + float(torch.linalg.vector_norm(y))):
            return y
    raise BadInput("problem.lower", f"no minimum after {steps} Newton steps", "a smooth, strongly convex lower level")


@dataclass(frozen=True)
class Implicit:
    """The hypergradient by the implicit function theorem at (x, y): h = fx - J v, v = H^-1 fy, and H's eigenvalues."""

    h: Tensor
    v: Tensor
    H: Tensor
    smallest: float
    largest: float

    @classmethod
    def of(cls, losses: Losses, x: Tensor, y: Tensor) -> Implicit:
        """Solve densely; J is applied to v and never written down."""
        H = hessian(losses.lower, x, y)
        fy = grad(lambda y: losses.upper(x, y))(y)
        v = torch.linalg.solve(H, fy)
        eigenvalues = torch.linalg.eigvalsh(H)
        h = grad(lambda x: losses.upper(x, y))(x) - cross(losses.lower, x, y, v)
        return cls(h, v, H, float(eigenvalues[0]), float(eigenvalues[-1]))


def cross(loss: Loss, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """`J v` = d/dx <grad_y g(x, y), v>."""
    return torch.as_tensor(grad(lambda x: grad(lambda y: loss(x, y))(y) @ v)(x))

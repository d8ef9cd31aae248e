"""Dense reference solutions where the lower level is local: what meta-gradients are held against.

Nothing here is used by an algorithm. Derivatives come from `torch.func` on the losses themselves, never from a
problem's closed forms, so that a wrong closed form shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from fedbilevel.derivatives import Level
from fedbilevel.problem import Examples, map_examples
from fedbilevel.tasks import TaskProblem, Tasks, loss_of_outputs

FINE = 100
"""The most Runge-Kutta steps of the flow."""
_ROWS = 600
"""Rows of dense Hessians, of one task or of several, that are computed together."""


class DenseTasks:
    """B tasks at x [d]: derivatives at parameters y of their own [B, d], with Hessians [B, d, d]."""

    def __init__(self, problem: TaskProblem, tasks: Tasks, x: Tensor) -> None:
        self.problem, self.examples = problem, {"lower": tasks.support, "upper": tasks.query}
        self.x, self.one = x.expand(len(tasks), -1), torch.eye(len(x), dtype=x.dtype, device=x.device)

    def _loss(self, level: Level) -> Callable[[Tensor, Examples], Tensor]:
        return lambda y, examples: torch.as_tensor(getattr(self.problem, level)(self.x[0], y, examples).mean())

    def gradient(self, level: Level, y: Tensor) -> Tensor:
        """`grad L(y)` (level "lower") or `grad f(y)` (level "upper")."""
        return torch.as_tensor(vmap(grad(self._loss(level)))(y, self.examples[level]))

    def hessian(self, y: Tensor, level: Level = "lower") -> Tensor:
        """`Hess L(y)`."""
        together = max(1, _ROWS // y.shape[1])
        return torch.as_tensor(vmap(jacrev(grad(self._loss(level))), chunk_size=together)(y, self.examples[level]))

    def descent(self, steps: int, step: float, kept: int) -> tuple[Tensor, Tensor]:
        """Y after K gradient steps, and `(dy/dx)' grad f(y)` through the last `kept` of them."""
        y, J = self.x, self.one.expand(len(self.x), -1, -1)
        for k in range(steps):
            if k >= steps - kept:
                J = J - step * self.hessian(y) @ J
            y = y - step * self.gradient("lower", y)
        return y, self._back(y, J)

    def flow(self, time: float, moving: int | None = None, steps: int = FINE) -> tuple[Tensor, Tensor]:
        """`(dy/dx)' grad f(y)` and d f(y) / dT after the gradient flow up to T: fourth order on a fine grid.

        moving: how many of the last coordinates flow; None: all. The others stay at x.
        """
        moves = torch.zeros_like(self.x[0])
        moves[0 if moving is None else -moving :] = 1.0

        def slope(y: Tensor, J: Tensor) -> tuple[Tensor, Tensor]:
            return -moves * self.gradient("lower", y), -moves[:, None] * (self.hessian(y) @ J)

        y, J, h = self.x, self.one.expand(len(self.x), -1, -1), time / steps
        for _ in range(steps):
            a = slope(y, J)
            b = slope(y + h / 2 * a[0], J + h / 2 * a[1])
            c = slope(y + h / 2 * b[0], J + h / 2 * b[1])
            d = slope(y + h * c[0], J + h * c[1])
            y, J = (v + h / 6 * (p + 2 * q + 2 * r + s) for v, p, q, r, s in zip((y, J), a, b, c, d, strict=True))
        return self._back(y, J), -(moves * self.gradient("lower", y) * self.gradient("upper", y)).sum(-1)

    def ridge_head(self, lam: float, scale: float) -> Tensor:
        """The gradient in (x, log lam, log scale) of f behind the head of a ridge regression on the features, [B, d+2].

        The head comes from the normal equations, a system of the size of the features.
        """
        problem: Any = self.problem  # one with `features` and `classes`
        C = int(problem.classes)

        def loss(z: Tensor, support: Any, query: Any) -> Tensor:
            phi = problem.features(z[:-2], support["input"])
            phi = torch.cat([phi, torch.ones_like(phi[:, :1])], 1)
            Y = (support["label"][:, None] == torch.arange(C)).to(phi.dtype)
            system = phi.mT @ phi + z[-2].exp() * torch.eye(phi.shape[1], dtype=phi.dtype)
            W = z[-1].exp() * (torch.linalg.inv(system) @ phi.mT @ Y).mT
            y = torch.cat([z[: len(self.x[0]) - W.numel()], W[:, :-1].flatten(), W[:, -1]])
            return torch.as_tensor(problem.upper(y, y, query).mean())

        z = torch.cat([self.x[0], self.x.new_tensor([lam, scale]).log()])
        sets = self.examples["lower"], self.examples["upper"]
        return torch.stack([grad(loss)(z, *(_of(part, b) for part in sets)) for b in range(len(self.x))])

    def tangent(self, phi: Callable[[Tensor, Tensor], Tensor], z: Tensor, scale: float) -> Tensor:
        """The gradient in z [d+k] of f behind an adaptation of the network linearised at z's first d entries, [B, d+k].

        phi: from K/n and z to the matrix phi(K/n); scale: of one-hot labels. Jacobians are written down, and
        autograd goes through them.
        """
        problem: Any = self.problem  # one with a kind

        def loss(z: Tensor, support: Any, query: Any) -> Tensor:
            def outputs(part: Any) -> Callable[[Tensor], Tensor]:
                return lambda y: torch.as_tensor(problem.outputs(y, part).flatten())

            y, n = z[: len(self.x[0])], len(support["label"])
            J, J_q = (jacrev(outputs(part))(y) for part in (support, query))
            found, out = outputs(support)(y), outputs(query)(y)
            Y = support["label"]
            if problem.kind == "classification":
                Y = scale * (Y[:, None] == torch.arange(len(found) // n)).to(y.dtype)
            out = out + J_q @ J.mT @ phi(J @ J.mT / n, z) @ (Y.flatten() - found) / n
            shaped = out.view_as(problem.outputs(y, query))
            return loss_of_outputs(problem, shaped, query["label"]).mean()

        sets = self.examples["lower"], self.examples["upper"]
        return torch.stack([grad(loss)(z, *(_of(part, b) for part in sets)) for b in range(len(self.x))])

    def _back(self, y: Tensor, J: Tensor) -> Tensor:
        return torch.einsum("bij,bi->bj", J, self.gradient("upper", y))

    def minimiser(self, lam: float, penalty: float | None = None, steps: int = 50) -> Tensor:
        """The y that minimises `g = L(y) + (lam/2) |y - x|^2`, with a penalty `f/penalty + g`, by Newton's method."""
        y = self.x
        for _ in range(steps):
            slope, curved = self.pulled(y, lam), self.hessian(y) + lam * self.one
            if penalty is not None:
                slope = slope + self.gradient("upper", y) / penalty
                curved = curved + self.hessian(y, "upper") / penalty
            moved = torch.linalg.solve(curved, slope)
            y = y - moved
            if float(torch.linalg.vector_norm(moved)) <= 1e-14 * float(torch.linalg.vector_norm(y)):
                break
        return y

    def pulled(self, y: Tensor, lam: float) -> Tensor:
        """The gradient in y of `g(x, y) = L(y) + (lam/2) |y - x|^2`; the one in x is `-lam (y - x)`."""
        return self.gradient("lower", y) + lam * (y - self.x)

    def barrier(self, lam: float, o: Mapping[str, Any]) -> Tensor:
        """BOME's direction `mult (gx(x, y) - gx(x, yh))` with options o, step by step from x: it has no closed form.

        `y -= xi (fy + mult gy)`, K times, with `mult = max(eta |gy|^2 - <fy, gy>, 0) / |gy|^2`, 0 where gy is;
        `yh -= beta gy(yh)`, T times from the last y.
        """
        y, K = self.x, o["local_steps"]
        for k in range(K + 1):
            fy, gy = self.gradient("upper", y), self.pulled(y, lam)
            square = torch.linalg.vecdot(gy, gy)
            wanted = (o["barrier"] * square - torch.linalg.vecdot(fy, gy)).clamp_min(0)
            mult = torch.where(square > 0, wanted / square, 0.0)[:, None]
            if k < K:
                y = y - o["upper_level_lower_step"] * (fy + mult * gy)
        yh = y
        for _ in range(o["lower_rounds"]):
            yh = yh - o["lower_step"] * self.pulled(yh, lam)
        return torch.as_tensor(mult * lam * (yh - y))

    def implicit(self, lam: float, y: Tensor) -> Tensor:
        """`lam (Hess L(y) + lam I)^-1 grad f(y)`."""
        return lam * torch.as_tensor(torch.linalg.solve(self.hessian(y) + lam * self.one, self.gradient("upper", y)))


def _of(part: Examples, b: int) -> Examples:
    """One task's examples."""
    return map_examples(lambda t: t[b], part)


def flowing(K: Tensor, z: Tensor) -> Tensor:
    """The integral of exp(-K t) over t from 0 to T = exp(z[-1]), by one matrix exponential of twice the size."""
    zero, one = torch.zeros_like(K), torch.eye(len(K), dtype=K.dtype)
    both = torch.cat([torch.cat([-K, one], 1), torch.cat([zero, zero], 1)])
    return torch.as_tensor(torch.linalg.matrix_exp(both * z[-1].exp())[: len(K), len(K) :])

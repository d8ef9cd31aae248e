"""Closed forms of adaptation and meta-gradient on quadratic tasks, for every method, by dense linear algebra.

Nothing here is used by an algorithm: it is what the algorithms are held against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedbilevel.tasks import Tasks


@dataclass(frozen=True)
class Adaptation:
    """Adapted parameters y [B, d] and the meta-gradient in x of every task [B, dx]."""

    y: Tensor
    gradient: Tensor


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(matrix, vector)
    return solution


class QuadraticAdaptation:
    """B tasks of `QuadraticTasks`: support loss 1/2 (y - a)'A(y - a), query loss 1/2 (y - c)'C(y - c).

    Everything is computed in float64, whatever the dtype of the tasks. x is [d] for all tasks, or [B, d].

    >>> import numpy as np
    >>> from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
    >>> problem = QuadraticTasks(clients=2, dim=3)
    >>> exact = QuadraticAdaptation(problem.tasks(problem.clients.lower, np.zeros((2, 4, 1))))
    >>> exact.maml(torch.zeros(3), steps=5, step=0.1).gradient.shape
    torch.Size([8, 3])
    """

    def __init__(self, tasks: Tasks) -> None:
        self.A, self.a = (tasks.support[name][:, 0].double() for name in ("A", "a"))
        self.C, self.c = (tasks.query[name][:, 0].double() for name in ("C", "c"))
        self._one = torch.eye(self.a.shape[-1], dtype=torch.float64, device=self.a.device)

    def _of(self, x: Tensor) -> Tensor:
        return x.double().expand(self.a.shape)

    def query_gradient(self, y: Tensor) -> Tensor:
        """`grad f(y) = C (y - c)`."""
        return _times(self.C, y - self.c)

    def maml(self, x: Tensor, *, steps: int, step: float, truncation: int | None = None) -> Adaptation:
        """`y_K = a + M^K (x - a)`, M = I - eta A; `M^k C (y_K - c)` with k the steps differentiated, at most K."""
        M = self._one - step * self.A
        y = self.a + _times(torch.linalg.matrix_power(M, steps), self._of(x) - self.a)
        kept = steps if truncation is None else min(steps, truncation)
        return Adaptation(y, _times(torch.linalg.matrix_power(M, kept), self.query_gradient(y)))

    def fomaml(self, x: Tensor, *, steps: int, step: float) -> Adaptation:
        """`C (y_K - c)`."""
        return self.maml(x, steps=steps, step=step, truncation=0)

    def reptile(self, x: Tensor, *, steps: int, step: float) -> Adaptation:
        """`x - y_K`."""
        y = self.maml(x, steps=steps, step=step).y
        return Adaptation(y, self._of(x) - y)

    def flow(self, x: Tensor, *, time: float) -> Adaptation:
        """A-MAML's gradient flow `dy/dt = -grad L(y)` up to T: `y = a + E (x - a)` and `E C (y - c)`, E = exp(-T A)."""
        E = torch.linalg.matrix_exp(-time * self.A)
        y = self.a + _times(E, self._of(x) - self.a)
        return Adaptation(y, _times(E, self.query_gradient(y)))

    def flow_time_gradient(self, x: Tensor, *, time: float) -> Tensor:
        """How the query loss after the flow changes with T: `-<grad L(y), grad f(y)>`, [B]."""
        y = self.flow(x, time=time).y
        return -(_times(self.A, y - self.a) * self.query_gradient(y)).sum(-1)

    def imaml(self, x: Tensor, *, proximal: float) -> Adaptation:
        """`y = argmin L(y) + (lam/2) |y - x|^2` and `lam (A + lam I)^-1 C (y - c)`."""
        H = self.A + proximal * self._one
        y = _solve(H, _times(self.A, self.a) + proximal * self._of(x))
        return Adaptation(y, proximal * _solve(H, self.query_gradient(y)))

    def ibaml_map(self, mu: Tensor, log_s: Tensor) -> Adaptation:
        """`y = argmin L(y) + 1/2 sum (y - mu)^2 / s`; `u / s` and `u (y - mu) / s`, u = (A + diag 1/s)^-1 C (y - c).

        The gradient in x = (mu, log s) is [B, 2 d].
        """
        mu, precision = self._of(mu), torch.exp(-self._of(log_s))
        H = self.A + torch.diag_embed(precision)
        y = _solve(H, _times(self.A, self.a) + precision * mu)
        u = _solve(H, self.query_gradient(y))
        return Adaptation(y, torch.cat([u * precision, u * (y - mu) * precision], -1))

    def penalty(self, x: Tensor, *, proximal: float, penalty: float) -> Adaptation:
        """`z = argmin g`, `y = argmin f + lam g` for g = L + (lam_p/2) |. - x|^2; z and `lam lam_p (z - y)`."""
        z = self.imaml(x, proximal=proximal).y
        H = self.C + penalty * (self.A + proximal * self._one)
        pull = penalty * (_times(self.A, self.a) + proximal * self._of(x))
        y = _solve(H, _times(self.C, self.c) + pull)
        return Adaptation(z, penalty * proximal * (z - y))

"""`Quadratic` problems as matrices, and what follows from them by dense solves.

Client i has f_i = 1/2 y'C y - y'Cc + d'x + rho/2 |x|^2 + const and g_i = 1/2 y'A y - y'(B x + b), the means over its
examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbilevel.problems import Quadratic

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Client:
    """One client's mean losses, as matrices, and its weight p_i."""

    p: float
    A: Vector
    B: Vector
    b: Vector
    C: Vector
    Cc: Vector
    d: Vector
    rho: float

    def fx(self, x: Vector, y: Vector) -> Vector:
        return self.d + self.rho * x

    def fy(self, x: Vector, y: Vector) -> Vector:
        return self.C @ y - self.Cc

    def gx(self, x: Vector, y: Vector) -> Vector:
        return -self.B.T @ y

    def gy(self, x: Vector, y: Vector) -> Vector:
        return self.A @ y - self.B @ x - self.b

    def hvp(self, v: Vector) -> Vector:
        return self.A @ v

    def cross(self, v: Vector) -> Vector:
        return -self.B.T @ v


def clients_of(problem: Quadratic) -> list[Client]:
    """Average every client's per-example matrices."""
    data = problem.clients
    found = []
    for i in range(len(data)):
        g = slice(int(data.lower.offsets[i]), int(data.lower.offsets[i + 1]))
        f = slice(int(data.upper.offsets[i]), int(data.upper.offsets[i + 1]))
        A, B, b = (data.lower.values[name][g].double().numpy() for name in ("A", "B", "b"))
        C, c, d = (data.upper.values[name][f].double().numpy() for name in ("C", "c", "d"))
        Cc = np.mean([C[e] @ c[e] for e in range(len(c))], axis=0)
        p = float(data.weights[i])
        found.append(Client(p, A.mean(0), B.mean(0), b.mean(0), C.mean(0), Cc, d.mean(0), problem.rho))
    return found


@dataclass(frozen=True)
class Dense:
    """The p_i-weighted means of the matrices and what follows from them by dense solves."""

    A: Vector
    B: Vector
    b: Vector
    C: Vector
    Cc: Vector
    d: Vector
    rho: float

    @classmethod
    def of(cls, problem: Quadratic) -> Dense:
        clients = clients_of(problem)
        return cls(
            *(sum(each.p * getattr(each, name) for each in clients) for name in ("A", "B", "b", "C", "Cc", "d")),
            rho=problem.rho,
        )

    def lower_solution(self, x: Vector) -> Vector:
        return np.linalg.solve(self.A, self.B @ x + self.b)

    def fy(self, y: Vector) -> Vector:
        return self.C @ y - self.Cc

    def v(self, y: Vector) -> Vector:
        return np.linalg.solve(self.A, self.fy(y))

    def cross(self, v: Vector) -> Vector:
        return -self.B.T @ v

    def hypergradient(self, x: Vector, y: Vector | None = None) -> Vector:
        y = self.lower_solution(x) if y is None else y
        return self.d + self.rho * x - self.cross(self.v(y))

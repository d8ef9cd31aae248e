"""`MinimaxQuadratic` problems as matrices, and what follows from them by dense solves.

Client i has f_i = 1/2 x'A x + x'B y - 1/2 y'C y + a'x - c'y, the mean over its examples, and g_i = -f_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedbilevel.problems import MinimaxQuadratic
from tests.reference.quadratic import Vector


@dataclass(frozen=True)
class Player:
    """One client's mean loss, as matrices, and its weight p_i; or the weighted mean of all."""

    p: float
    A: Vector
    B: Vector
    C: Vector
    a: Vector
    c: Vector

    def f(self, x: Vector, y: Vector) -> float:
        return float(x @ self.A @ x / 2 + x @ self.B @ y - y @ self.C @ y / 2 + self.a @ x - self.c @ y)

    def fx(self, x: Vector, y: Vector) -> Vector:
        return self.A @ x + self.B @ y + self.a

    def fy(self, x: Vector, y: Vector) -> Vector:
        return self.B.T @ x - self.C @ y - self.c

    def gy(self, x: Vector, y: Vector) -> Vector:
        return -self.fy(x, y)

    def field(self, z: Vector) -> Vector:
        """Descent in x, ascent in y."""
        x, y = z[: len(self.a)], z[len(self.a) :]
        return np.concatenate([self.fx(x, y), -self.fy(x, y)])

    def best_response(self, x: Vector) -> Vector:
        return np.linalg.solve(self.C, self.B.T @ x - self.c)

    def saddle_point(self) -> Vector:
        """(x*, y*) where the field is 0: it is field(0) + M z."""
        zero = np.zeros(len(self.a) + len(self.c))
        M = np.stack([self.field(e) - self.field(zero) for e in np.eye(len(zero))], axis=1)
        return np.linalg.solve(M, -self.field(zero))


def players_of(problem: MinimaxQuadratic) -> list[Player]:
    """Average every client's per-example matrices."""
    data, found = problem.clients, []
    for i in range(len(data)):
        rows = slice(int(data.upper.offsets[i]), int(data.upper.offsets[i + 1]))
        held = {name: values[rows].double().numpy().mean(0) for name, values in data.upper.values.items()}
        dx, dy = held["B"].shape
        flat = {"A": np.zeros((dx, dx)), "C": np.zeros((dy, dy))}
        found.append(Player(float(data.weights[i]), **{**flat, **held}))
    return found


def together(problem: MinimaxQuadratic) -> Player:
    """The p_i-weighted mean of the clients' losses."""
    players = players_of(problem)
    return Player(1.0, *(sum(each.p * getattr(each, name) for each in players) for name in "ABCac"))

"""An outer iteration to the second implementation: the sampled clients and their weights, and steps that many share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tests.reference.quadratic import Client, Vector


class Entry(NamedTuple):
    """x, y and the direction of the x step after one outer iteration."""

    x: Vector
    y: Vector
    h: Vector


@dataclass
class Memory:
    """What an algorithm keeps besides x and y; own: what each client does; more: whatever else it needs."""

    k: int = 0
    seed: int = 0
    v: Vector | None = None
    z: Vector | None = None
    own: dict[int, Vector] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


class Round:
    """The clients of one outer iteration and their weights w_i: p_i / sum_S p_j, or (m / |S|) p_i."""

    def __init__(self, clients: Sequence[Client], chosen: Sequence[int], unbiased: bool) -> None:
        self.everyone, self.unbiased = clients, unbiased
        self.members = [(i, clients[i]) for i in chosen]
        total = sum(client.p for _, client in self.members)
        scale = len(clients) / len(self.members) if unbiased else 1.0 / total
        self.weights = {i: scale * client.p for i, client in self.members}
        self.shares = {i: client.p / total for i, client in self.members}
        self.fixed = {i: client.p for i, client in enumerate(clients)} if unbiased else self.shares

    def among(self, chosen: Sequence[int]) -> Round:
        """The same iteration with other clients."""
        return Round(self.everyone, chosen, self.unbiased)

    def agg(self, answer: Callable[[int, Client], Vector], start: Vector | None = None) -> Vector:
        """sum_S w_i u_i; an iterate is averaged as its start plus the weighted displacements."""
        total: Any = 0.0
        for i, client in self.members:
            u = answer(i, client)
            total = total + self.weights[i] * (u if start is None else u - start)
        return np.asarray(total if start is None else start + total)

    def agg_along(
        self, walk: Callable[[int, Client], Vector], start: Vector, step: float, tau: Sequence[int], vector: Vector
    ) -> Vector:
        """An iterate whose clients also go tau_i steps along an aggregate: those are taken whole, not weighed again."""
        own = self.agg(lambda i, c: walk(i, c) + step * tau[i] * vector, start)
        return own - step * sum(p * tau[i] for i, p in self.fixed.items()) * vector


Options = dict[str, Any]
"""The library's option names; `local_steps` and `upper_local_steps` one number per client."""
Step = Callable[[Round, Vector, Vector, Memory, Options], Entry]
ALGORITHMS: dict[str, tuple[Step, Options]] = {}
"""By the library's name: one outer iteration from (x, y), and what options are unless given."""


def implements(name: str, **unless_given: Any) -> Callable[[Step], Step]:
    """Enter a function as the second implementation of an algorithm."""

    def enter(step: Step) -> Step:
        known, _ = ALGORITHMS.setdefault(name, (step, unless_given))
        assert known.__qualname__ == step.__qualname__, f"two functions implement {name}"
        return step

    return enter


def fed_svrg(fed: Round, x: Vector, y: Vector, beta: float, tau: Sequence[int]) -> Vector:
    gbar = fed.agg(lambda i, c: c.gy(x, y))

    def walk(i: int, c: Client) -> Vector:
        y_i = y
        for _ in range(tau[i]):
            y_i = y_i - beta * (c.gy(x, y_i) - c.gy(x, y) + gbar)
        return y_i

    return fed.agg_along(walk, y, beta, tau, gbar)


def fed_sgd(fed: Round, x: Vector, y: Vector, beta: float, tau: Sequence[int]) -> Vector:
    def walk(i: int, c: Client) -> Vector:
        y_i = y
        for _ in range(tau[i]):
            y_i = y_i - beta * c.gy(x, y_i)
        return y_i

    return fed.agg(walk, y)


def fed_out(fed: Round, x: Vector, y: Vector, h: Vector, alpha: float, tau: Sequence[int]) -> Vector:
    """All zeros in tau: the server's own step."""
    if not any(tau):
        return x - alpha * h

    def walk(i: int, c: Client) -> Vector:
        x_i = x
        for _ in range(tau[i]):
            x_i = x_i - alpha * (c.fx(x_i, y) - c.fx(x, y) + h)
        return x_i

    return fed.agg_along(walk, x, alpha, tau, h)

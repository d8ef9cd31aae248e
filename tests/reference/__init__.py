"""Every algorithm a second time: plain numpy in float64, one Python loop over the clients, for `Quadratic` problems.

Written from the published recurrences and kept apart from the library: tests hold the library's iterates against these.
Client i has f_i = 1/2 y'C y - y'Cc + d'x + rho/2 |x|^2 + const and g_i = 1/2 y'A y - y'(B x + b), the means over its
examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Entry(NamedTuple):
    """x, y and the direction of the x step after one outer iteration."""

    x: Vector
    y: Vector
    h: Vector


class Round:
    """The clients of one outer iteration and their weights w_i: p_i / sum_S p_j, or (m / |S|) p_i."""

    def __init__(self, clients: Sequence[Client], chosen: Sequence[int], unbiased: bool) -> None:
        self.members = [(i, clients[i]) for i in chosen]
        total = sum(client.p for _, client in self.members)
        scale = len(clients) / len(self.members) if unbiased else 1.0 / total
        self.weights = {i: scale * client.p for i, client in self.members}
        self.shares = {i: client.p / total for i, client in self.members}
        self.fixed = {i: client.p for i, client in enumerate(clients)} if unbiased else self.shares

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


@dataclass
class Memory:
    """What an algorithm keeps besides x and y."""

    k: int = 0
    v: Vector | None = None
    z: Vector | None = None


def aggitd(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    N, lam, beta = o["lower_rounds"], o["neumann_step"], o["lower_step"]
    Q = o["indices"][memory.k] if o["estimator"] == "sample" else None
    r = np.zeros_like(y)
    v = np.zeros_like(y)
    if o["warm_start"] and memory.v is not None:
        v = memory.v
    for n in range(N):
        if Q is None:
            v = fed.agg(lambda i, c, v=v, y=y: v - lam * (c.hvp(v) - c.fy(x, y)), v)
        elif n == Q:
            r = fed.agg(lambda i, c, y=y: c.fy(x, y))
        elif n > Q:
            r = fed.agg(lambda i, c, r=r: r - lam * c.hvp(r), r)
        y = fed_svrg(fed, x, y, beta, o["local_steps"])
    if Q is not None:
        v = lam * N * r
    memory.v = v
    h = fed.agg(lambda i, c: c.fx(x, y) - c.cross(v))
    return Entry(fed_out(fed, x, y, h, o["upper_step"], o["upper_local_steps"]), y, h)


def fednest(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any], inner: Any = fed_svrg) -> Entry:
    N, lam = o["neumann_terms"], o["neumann_step"]
    for _ in range(o["lower_rounds"]):
        y = inner(fed, x, y, o["lower_step"], o["local_steps"])
    p = fed.agg(lambda i, c: c.fy(x, y))
    if o["estimator"] == "sample":
        p = lam * N * p
        for _ in range(o["indices"][memory.k]):
            p = fed.agg(lambda i, c, p=p: p - lam * c.hvp(p), p)
    else:
        terms = [p]
        for _ in range(N):
            p = fed.agg(lambda i, c, p=p: p - lam * c.hvp(p), p)
            terms.append(p)
        p = lam * np.sum(terms, axis=0)
    h = fed.agg(lambda i, c: c.fx(x, y) - c.cross(p))
    return Entry(fed_out(fed, x, y, h, o["upper_step"], o["upper_local_steps"]), y, h)


def fednest_sgd(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    return fednest(fed, x, y, memory, o, fed_sgd)


def lfednest(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any], inner: Any = fed_sgd) -> Entry:
    N, lam, alpha = o["neumann_terms"], o["neumann_step"], o["upper_step"]
    for _ in range(o["lower_rounds"]):
        y = inner(fed, x, y, o["lower_step"], o["local_steps"])

    def walk(i: int, c: Client) -> Vector:
        x_i = x
        for _ in range(o["upper_local_steps"][i]):
            factor = np.eye(len(y)) - lam * c.A
            if o["estimator"] == "sample":
                p = lam * N * np.linalg.matrix_power(factor, o["indices"][memory.k]) @ c.fy(x_i, y)
            else:
                p = lam * sum(np.linalg.matrix_power(factor, n) @ c.fy(x_i, y) for n in range(N + 1))
            x_i = x_i - alpha * (c.fx(x_i, y) - c.cross(p))
        return x_i

    x_next = fed.agg(walk, x)
    return Entry(x_next, y, (x - x_next) / alpha)


def lfednest_svrg(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    return lfednest(fed, x, y, memory, o, fed_svrg)


def bome(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    yh = y
    for _ in range(o["lower_rounds"]):
        yh = yh - o["lower_step"] * fed.agg(lambda i, c, yh=yh: c.gy(x, yh))
    fx, fy = fed.agg(lambda i, c: c.fx(x, y)), fed.agg(lambda i, c: c.fy(x, y))
    qx, gy = fed.agg(lambda i, c: c.gx(x, y) - c.gx(x, yh)), fed.agg(lambda i, c: c.gy(x, y))
    n2 = float(np.sum(qx**2) + np.sum(gy**2))
    mult = 0.0 if n2 == 0 else max(o["barrier"] * n2 - fx @ qx - fy @ gy, 0.0) / n2
    shrink = 1.0 / (1.0 + memory.k) ** o["step_decay"]
    h = fx + mult * qx
    y_next = y - shrink * o["upper_level_lower_step"] * (fy + mult * gy)
    return Entry(x - shrink * o["upper_step"] * h, y_next, h)


def f2sa(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    lam = o["penalty"] + memory.k * o["penalty_growth"]
    eta_z = o["lower_step"]
    eta_y = o["penalised_lower_step"] or eta_z / (1.0 + lam)
    z = y if memory.z is None else memory.z
    for _ in range(o["lower_rounds"]):
        dy = fed.agg(lambda i, c, y=y: c.fy(x, y) + lam * c.gy(x, y))
        dz = fed.agg(lambda i, c, z=z: c.gy(x, z))
        y, z = y - eta_y * dy, z - eta_z * dz
    memory.z = z
    h = fed.agg(lambda i, c: c.fx(x, y) + lam * (c.gx(x, y) - c.gx(x, z)))
    return Entry(x - o["upper_step"] * h, y, h)


def memfbo(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    lam, alpha, eta_z, tau = o["penalty"], o["upper_step"], o["lower_step"], o["local_steps"]
    eta_y = o["penalised_lower_step"] or eta_z / (1.0 + lam)
    z = y if memory.z is None else memory.z
    dx, dy = len(x), len(y)

    def walk(i: int, c: Client) -> Vector:
        x_i, y_i, z_i, q = x, y, z, np.zeros(dx + 2 * dy)
        for _ in range(tau[i]):
            step_x = c.fx(x_i, y_i) + lam * (c.gx(x_i, y_i) - c.gx(x_i, z_i))
            step_y = c.fy(x_i, y_i) + lam * c.gy(x_i, y_i)
            step_z = c.gy(x_i, z_i)
            q = q + np.concatenate([step_x, step_y, step_z])
            x_i, y_i, z_i = x_i - alpha * step_x, y_i - eta_y * step_y, z_i - eta_z * step_z
        return q / tau[i]

    q = fed.agg(walk)
    rho = sum(share * tau[i] for i, share in fed.shares.items())
    memory.z = z - rho * eta_z * q[dx + dy :]
    return Entry(x - rho * alpha * q[:dx], y - rho * eta_y * q[dx : dx + dy], q[:dx])


def fedavg_alternating(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    for _ in range(o["lower_rounds"]):
        y = fed_sgd(fed, x, y, o["lower_step"], o["local_steps"])

    def walk(i: int, c: Client) -> Vector:
        x_i = x
        for _ in range(o["upper_local_steps"][i]):
            x_i = x_i - o["upper_step"] * c.fx(x_i, y)
        return x_i

    x_next = fed.agg(walk, x)
    return Entry(x_next, y, (x - x_next) / o["upper_step"])


def joint(fed: Round, x: Vector, y: Vector, memory: Memory, o: dict[str, Any]) -> Entry:
    weight = o["lower_weight"]

    def walk(i: int, c: Client) -> Vector:
        x_i, y_i = x, y
        for _ in range(o["local_steps"][i]):
            down_x = c.fx(x_i, y_i) + weight * c.gx(x_i, y_i)
            down_y = c.fy(x_i, y_i) + weight * c.gy(x_i, y_i)
            x_i, y_i = x_i - o["upper_step"] * down_x, y_i - o["lower_step"] * down_y
        return np.concatenate([x_i, y_i])

    both = fed.agg(walk, np.concatenate([x, y]))
    x_next, y_next = both[: len(x)], both[len(x) :]
    return Entry(x_next, y_next, (x - x_next) / o["upper_step"])


ALGORITHMS: dict[str, Callable[[Round, Vector, Vector, Memory, dict[str, Any]], Entry]] = {
    "aggitd": aggitd,
    "fednest": fednest,
    "fednest-sgd": fednest_sgd,
    "lfednest": lfednest,
    "lfednest-svrg": lfednest_svrg,
    "bome": bome,
    "f2sa": f2sa,
    "memfbo": memfbo,
    "fedavg-alternating": fedavg_alternating,
    "joint": joint,
}
UNLESS_GIVEN: dict[str, Any] = {
    "estimator": "sum",
    "warm_start": False,
    "local_steps": 1,
    "upper_local_steps": 1,
    "lower_weight": 1.0,
    "penalised_lower_step": None,
    "penalty_growth": 0.0,
    "step_decay": 0.0,
}


def run(
    name: str,
    problem: Quadratic,
    x: Vector,
    y: Vector,
    iterations: int,
    options: dict[str, Any],
    *,
    sets: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
) -> list[Entry]:
    """Run an algorithm with the library's option names.

    local_steps, upper_local_steps: one number, or one per client; sets: the clients of each iteration (default: all).
    """
    clients = clients_of(problem)
    m = len(clients)
    o = {**UNLESS_GIVEN, **options}
    o.setdefault("neumann_step", o.get("lower_step"))
    for key in ("local_steps", "upper_local_steps"):
        o[key] = [o[key]] * m if isinstance(o[key], int) else list(o[key])
    memory, entries = Memory(), []
    for k in range(iterations):
        memory.k = k
        fed = Round(clients, range(m) if sets is None else sets[k], unbiased)
        entry = ALGORITHMS[name](fed, x, y, memory, o)
        x, y = entry.x, entry.y
        entries.append(entry)
    return entries

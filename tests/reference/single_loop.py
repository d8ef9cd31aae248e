"""The second implementation of the single-loop methods with second derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.reference.federation import Entry, Memory, Options, Round, implements
from tests.reference.quadratic import Client, Vector


def direction(c: Client, x: Vector, y: Vector, v: Vector) -> Vector:
    """dx, dy, dv of one client, one after another."""
    return np.concatenate([c.fx(x, y) - c.cross(v), c.gy(x, y), c.hvp(v) - c.fy(x, y)])


class Point:
    """z = (x, y, v) as one vector, and the step of each entry."""

    def __init__(self, x: Vector, y: Vector, memory: Memory, o: Options) -> None:
        self.dx, self.dy = len(x), len(y)
        v = np.zeros(self.dy) if memory.v is None else memory.v
        self.z = np.concatenate([x, y, v])
        self.eta = np.repeat([o["upper_step"], o["lower_step"], o["neumann_step"]], [self.dx, self.dy, self.dy])

    def parts(self, z: Vector) -> tuple[Vector, Vector, Vector]:
        return z[: self.dx], z[self.dx : self.dx + self.dy], z[self.dx + self.dy :]

    def d(self, c: Client, z: Vector) -> Vector:
        return direction(c, *self.parts(z))


def coefficient(o: Options, i: int, k: int) -> float:
    a = o["coefficients"]
    return 1.0 if a is None else float(a[i][k] if isinstance(a[0], list) else a[k])


def simfbo(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options, normalised: bool = False) -> Entry:
    at, tau = Point(x, y, memory, o), o["local_steps"]
    length = {i: sum(coefficient(o, i, k) for k in range(tau[i])) for i, _ in fed.members}

    def walk(i: int, c: Client) -> Vector:
        z, q = at.z, np.zeros_like(at.z)
        for k in range(tau[i]):
            step = coefficient(o, i, k) * at.d(c, z)
            q, z = q + step, z - at.eta * step
        return q / length[i] if normalised else q

    q, mean_length = fed.agg(walk), sum(share * length[i] for i, share in fed.shares.items())
    names = ("upper_server_step", "lower_server_step", "neumann_server_step")
    given = [own if o[name] is None else o[name] for name, own in zip(names, at.eta[[0, at.dx, -1]], strict=True)]
    gam = np.repeat(given, [at.dx, at.dy, at.dy])
    x_next, y_next, v = at.parts(at.z - (mean_length if normalised else 1.0) * gam * q)
    size = np.linalg.norm(v)
    memory.v = v if o["radius"] is None or size <= o["radius"] else v * o["radius"] / size
    return Entry(x_next, y_next, q[: at.dx] if normalised else q[: at.dx] / mean_length)


GIVEN: Options = {
    "local_steps": 1,
    "coefficients": None,
    "radius": None,
    "upper_server_step": None,
    "lower_server_step": None,
    "neumann_server_step": None,
}


@implements("simfbo", **GIVEN)
def _simfbo(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    return simfbo(fed, x, y, memory, o)


@implements("shrofbo", **GIVEN)
def _shrofbo(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    return simfbo(fed, x, y, memory, o, normalised=True)


@implements("fedbio", local_steps=1)
def fedbio(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    at, tau = Point(x, y, memory, o), o["local_steps"]

    def walk(i: int, c: Client) -> Vector:
        z = at.z
        for _ in range(tau[i]):
            z = z - at.eta * at.d(c, z)
        return z

    x_next, y_next, memory.v = at.parts(fed.agg(walk, at.z))
    steps = sum(share * tau[i] for i, share in fed.shares.items())
    return Entry(x_next, y_next, (x - x_next) / (o["upper_step"] * steps))


@implements("fedbioacc", local_steps=1, momentum_decay=0.1)
def fedbioacc(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    at, tau, c_ = Point(x, y, memory, o), o["local_steps"], o["momentum_decay"]
    carried: Any = memory.z  # the means of the clients' directions

    def walk(i: int, c: Client) -> Vector:
        z, m = at.z, at.d(c, at.z) if carried is None else carried
        for _ in range(tau[i]):
            old = z
            z = z - at.eta * m
            m = at.d(c, z) + (1 - c_) * (m - at.d(c, old))
        return np.concatenate([z, m])

    both = fed.agg(walk, np.concatenate([at.z, 0 * at.z]))
    x_next, y_next, memory.v = at.parts(both[: len(at.z)])
    memory.z = both[len(at.z) :]
    steps = sum(share * tau[i] for i, share in fed.shares.items())
    return Entry(x_next, y_next, (x - x_next) / (o["upper_step"] * steps))


@implements("br-fedbi", variant="plain", momentum=0.9, radius=None)
def br_fedbi(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    """With full batches PAGE's estimates are the directions themselves."""
    at, b = Point(x, y, memory, o), o["momentum"]

    def answer(i: int, c: Client) -> Vector:
        d = at.d(c, at.z)
        if o["variant"] == "momentum":
            memory.own[i] = d = b * memory.own[i] + (1 - b) * d if i in memory.own else d
        return d

    q = fed.agg(answer)
    x_next, y_next, v = at.parts(at.z - at.eta * q)
    memory.v = v if o["radius"] is None else v * min(1.0, o["radius"] / np.linalg.norm(v))
    return Entry(x_next, y_next, q[: at.dx])

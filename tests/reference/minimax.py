"""The second implementation of the minimax methods: z = (x, y) is one vector, F its field."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.reference.federation import Entry, Memory, Options, Round, fed_out, fed_svrg, implements
from tests.reference.quadratic import Vector


def eta(x: Vector, y: Vector, o: Options) -> Vector:
    """The step of each entry of z."""
    eta_y = o["upper_step"] if o["lower_step"] is None else o["lower_step"]
    return np.repeat([o["upper_step"], eta_y], [len(x), len(y)])


def field(fed: Round, z: Vector) -> Vector:
    """Agg F_i(z)."""

    def of(i: int, c: Any) -> Vector:
        found: Vector = c.field(z)
        return found

    return fed.agg(of)


def entry(z: Vector, h: Vector, dim_x: int) -> Entry:
    return Entry(z[:dim_x], z[dim_x:], h[:dim_x])


@implements("fedgda", lower_step=None, local_steps=1)
def fedgda(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    start, steps = np.concatenate([x, y]), eta(x, y, o)

    def walk(i: int, c: Any) -> Vector:
        z = start
        for _ in range(o["local_steps"][i]):
            z = z - steps * c.field(z)
        return z

    z = fed.agg(walk, start)
    tau = sum(share * o["local_steps"][i] for i, share in fed.shares.items())
    return entry(z, (start - z) / (o["upper_step"] * tau), len(x))


@implements("fedgda-gt", lower_step=None, local_steps=1)
def fedgda_gt(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    start, steps, tau = np.concatenate([x, y]), eta(x, y, o), o["local_steps"]
    mean = field(fed, start)

    def walk(i: int, c: Any) -> Vector:
        z = start
        for _ in range(tau[i]):
            z = z - steps * (c.field(z) - c.field(start) + mean)
        return z

    return entry(fed.agg_along(walk, start, 1.0, tau, steps * mean), mean, len(x))


@implements("fednest-minimax", lower_step=None, lower_rounds=1, local_steps=1, upper_local_steps=1)
def fednest_minimax(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    for _ in range(o["lower_rounds"]):
        y = fed_svrg(fed, x, y, eta(x, y, o)[-1], o["local_steps"])
    h = fed.agg(lambda i, c: c.fx(x, y))
    return Entry(fed_out(fed, x, y, h, o["upper_step"], o["upper_local_steps"]), y, h)


@implements("fed-extragradient", lower_step=None)
def fed_extragradient(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    z, steps = np.concatenate([x, y]), eta(x, y, o)
    found = field(fed, z - steps * field(fed, z))
    return entry(z - steps * found, found, len(x))


@implements("fed-optimistic", lower_step=None)
def fed_optimistic(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    z = np.concatenate([x, y])
    now = field(fed, z)
    last = now if memory.z is None else memory.z
    memory.z = now
    return entry(z - 2 * eta(x, y, o) * now + eta(x, y, o) * last, 2 * now - last, len(x))


@implements("oadagrad", lower_step=None, delta=1.0)
def oadagrad(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    """memory: v is w, z the sum of the field's squares."""
    z, steps = np.concatenate([x, y]), eta(x, y, o)
    now = field(fed, z)
    memory.z = now**2 if memory.z is None else memory.z + now**2
    D = o["delta"] + np.sqrt(memory.z)
    memory.v = z if memory.v is None else memory.v - steps * now / D
    return entry(memory.v - steps * now / D, now, len(x))

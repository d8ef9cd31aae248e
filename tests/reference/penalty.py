"""The second implementation of the first-order penalty methods."""

from __future__ import annotations

import numpy as np

from tests.reference.federation import Entry, Memory, Options, Round, implements
from tests.reference.quadratic import Client, Vector


@implements("bome", step_decay=0.0)
def bome(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
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


@implements("f2sa", penalised_lower_step=None, penalty_growth=0.0)
def f2sa(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
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


@implements("memfbo", penalised_lower_step=None, local_steps=1)
def memfbo(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
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

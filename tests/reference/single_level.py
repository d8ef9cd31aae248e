"""The second implementation of the baselines that ignore a level, or what lies between the two."""

from __future__ import annotations

import numpy as np

from tests.reference.federation import Entry, Memory, Options, Round, fed_sgd, implements
from tests.reference.quadratic import Client, Vector


@implements("fedavg-alternating", local_steps=1, upper_local_steps=1)
def fedavg_alternating(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    for _ in range(o["lower_rounds"]):
        y = fed_sgd(fed, x, y, o["lower_step"], o["local_steps"])

    def walk(i: int, c: Client) -> Vector:
        x_i = x
        for _ in range(o["upper_local_steps"][i]):
            x_i = x_i - o["upper_step"] * c.fx(x_i, y)
        return x_i

    x_next = fed.agg(walk, x)
    steps = sum(share * o["upper_local_steps"][i] for i, share in fed.shares.items())
    return Entry(x_next, y, (x - x_next) / (o["upper_step"] * steps))


@implements("joint", lower_weight=1.0, local_steps=1)
def joint(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
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
    steps = sum(share * o["local_steps"][i] for i, share in fed.shares.items())
    return Entry(x_next, y_next, (x - x_next) / (o["upper_step"] * steps))

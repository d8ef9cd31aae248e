"""The second implementation of the methods that sample the lower level."""

from __future__ import annotations

import numpy as np

from fedbilevel import randomness
from tests.reference.federation import Entry, Memory, Options, Round, implements
from tests.reference.quadratic import Client, Vector


def upper(c: Client, x: Vector, y: Vector) -> float:
    """f_i but for what does not depend on y."""
    return float(0.5 * y @ c.C @ y - y @ c.Cc)


@implements("stochastic-bilevel", temperature=0.1, samples=16)
def stochastic_bilevel(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    eta, T, S = o["lower_step"], o["temperature"], o["samples"]
    points = memory.more.get("points", [y] * S)
    draw = randomness.generator(memory.seed, randomness.SERVER, memory.k, "langevin")
    for _ in range(o["lower_rounds"]):
        noise = draw.standard_normal(S * len(y)).reshape(S, -1)
        points = [
            y_s - eta * fed.agg(lambda i, c, y_s=y_s: c.gy(x, y_s)) + np.sqrt(2 * eta * T) * xi
            for y_s, xi in zip(points, noise, strict=True)
        ]
    memory.more["points"] = points
    f = [float(fed.agg(lambda i, c, y_s=y_s: np.array(upper(c, x, y_s)))) for y_s in points]
    gx = [fed.agg(lambda i, c, y_s=y_s: c.gx(x, y_s)) for y_s in points]
    h = np.mean([fed.agg(lambda i, c, y_s=y_s: c.fx(x, y_s)) for y_s in points], axis=0)
    for f_s, gx_s in zip(f, gx, strict=True):
        h = h - (f_s - np.mean(f)) * (gx_s - np.mean(gx, axis=0)) / (S - 1) / T
    return Entry(x - o["upper_step"] * h, np.mean(points, axis=0), h)

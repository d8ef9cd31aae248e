"""The second implementation of what differentiates implicitly."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.reference.federation import Entry, Memory, Options, Round, fed_out, fed_sgd, fed_svrg, implements
from tests.reference.quadratic import Client, Vector

SERIES: Options = {"estimator": "sum", "local_steps": 1, "upper_local_steps": 1}


@implements("aggitd", **SERIES, warm_start=False)
def aggitd(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
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


@implements("fednest", **SERIES)
def fednest(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options, inner: Any = fed_svrg) -> Entry:
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


@implements("fednest-sgd", **SERIES)
def fednest_sgd(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    return fednest(fed, x, y, memory, o, fed_sgd)


@implements("fedmbo", local_steps=1, upper_local_steps=1)
def fedmbo(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    """resampled: the rounds of clients of the gradient and of each factor of the estimate."""
    N, lam = o["neumann_terms"], o["neumann_step"]
    for _ in range(o["lower_rounds"]):
        y = fed_sgd(fed, x, y, o["lower_step"], o["local_steps"])
    others = [fed.among(each) for each in o.get("resampled", {}).get(memory.k, ())] or [fed] * (N + 1)
    p = lam * N * others[0].agg(lambda i, c: c.fy(x, y))
    for each in others[1 : o["indices"][memory.k] + 1]:
        p = each.agg(lambda i, c, p=p: p - lam * c.hvp(p), p)
    h = fed.agg(lambda i, c: c.fx(x, y) - c.cross(p))
    return Entry(fed_out(fed, x, y, h, o["upper_step"], o["upper_local_steps"]), y, h)


@implements("lfednest", **SERIES)
def lfednest(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options, inner: Any = fed_sgd) -> Entry:
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
    steps = sum(share * o["upper_local_steps"][i] for i, share in fed.shares.items())
    return Entry(x_next, y, (x - x_next) / (alpha * steps))


@implements("lfednest-svrg", **SERIES)
def lfednest_svrg(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    return lfednest(fed, x, y, memory, o, fed_svrg)

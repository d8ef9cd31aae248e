"""The second implementation of our own methods: what is random in them is the library's first probe alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedbilevel import randomness
from tests.reference.federation import Entry, Memory, Options, Round, implements
from tests.reference.quadratic import Client, Vector


def first_probe(memory: Memory, like: Vector) -> Vector:
    d = randomness.generator(memory.seed, randomness.SERVER, 0, "probe").standard_normal(len(like))
    return np.asarray(d / np.linalg.norm(d))


@implements("aggitd-s", upper_step=10.0, upper_optimiser="spectral", lower_step=None, lower_hedge=0.0, local_steps=1)
def aggitd_s(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    v = np.zeros_like(y) if memory.v is None else memory.v
    known = memory.more
    d, L = known.get("d"), known.get("L", 0.0)
    d = first_probe(memory, y) if d is None else d
    given, k = o["lower_step"], memory.k + 1

    c = known.setdefault("c", 1.0)

    def beta_of(L: float, k: int) -> float:
        return float(given) if given is not None else 0.0 if k < 3 or L == 0.0 else known["c"] / L

    beta = beta_of(L, k - 1)

    def walk(i: int, c: Client) -> Vector:
        y_i, v_i, qy, qv = y, v, 0.0 * y, 0.0 * v
        for _ in range(o["local_steps"][i]):
            dy, dv = c.gy(x, y_i), c.hvp(v_i) - c.fy(x, y_i)
            y_i, v_i, qy, qv = y_i - beta * dy, v_i - beta * dv, qy + dy, qv + dv
        return np.concatenate([qy, qv])

    h, Hd = fed.agg(lambda i, c: c.fx(x, y) - c.cross(v)), fed.agg(lambda i, c: c.hvp(d))
    qy, qv = np.split(fed.agg(walk), 2)
    size = float(np.linalg.norm(Hd))
    L = max(size, 0.98 * L)
    if k >= 4:
        before = known["gy"]
        cosine = float(np.dot(qy, before)) / np.sqrt(np.dot(qy, qy) * np.dot(before, before))
        known["c"] = float(np.clip(c * np.exp(o["lower_hedge"] * cosine), 0.25, 1.8))
    known["gy"] = qy
    beta = beta_of(L, k)
    known.update(d=Hd / size, L=L)
    memory.v = v - beta * qv
    return Entry(x - o["upper_step"] * h, y - beta * qy, h)


def bfgs(g: Vector, S: list[Vector], Y: list[Vector], rc: float, b0: float) -> Vector:
    """B g of one vector, the operator written down."""
    if not S:
        return b0 * g
    s, t = np.array(S).T, np.array(Y).T
    w, V = np.linalg.eigh((s.T @ t + t.T @ s) / 2)
    keep = [j for j in range(len(w)) if w[j] > rc * w.max()]
    W = np.stack([V[:, j] / np.sqrt(w[j]) for j in keep], axis=1)
    s, t, eye = s @ W, t @ W, np.eye(len(g))
    B = s @ s.T + b0 * (eye - s @ t.T) @ (eye - t @ s.T)
    return np.asarray(B @ g)


@implements("aggitd-aq", upper_step=0.5, memory=20, regularisation=0.01, settling=20, probes=10, cutoff=0.1, cap=10.0)
def aggitd_aq(fed: Round, x: Vector, y: Vector, memory: Memory, o: Options) -> Entry:
    known: dict[str, Any] = memory.more
    v = np.zeros_like(y) if memory.v is None else memory.v
    d = known["d"] if "d" in known else first_probe(memory, y)
    n, m, a = len(x), len(y), o["upper_step"]
    qx, qy = fed.agg(lambda i, c: c.fx(x, y) - c.cross(v)), fed.agg(lambda i, c: c.gy(x, y))
    qv, t = fed.agg(lambda i, c: c.hvp(v) - c.fy(x, y)), fed.agg(lambda i, c: c.hvp(d))
    S, Y, Z, Q = (known.setdefault(name, []) for name in "SYZQ")
    factor = 3.0 if "L" not in known else 1.0
    if d @ t > 0:
        S.append(d), Y.append(t)
        del S[: -o["probes"]], Y[: -o["probes"]]
        known["L"] = max(known.get("L", 0.0), float(np.linalg.norm(t)))
    b0 = 1.0 / (factor * known["L"])
    z = np.concatenate([x, y, v])
    Z.append(z), Q.append((qx, qy, qv))
    early = memory.k < o["settling"]
    mixed = 1 + (max(o["memory"] // 2, 1) if early else o["memory"])
    reg = o["regularisation"] * (10 if early else 1)
    del Z[:-mixed], Q[:-mixed]
    F = [
        -np.concatenate([a * px, bfgs(py, S, Y, o["cutoff"], b0), bfgs(pv, S, Y, o["cutoff"], b0)]) for px, py, pv in Q
    ]
    f = F[-1]
    zn = z + f
    if len(Z) > 1:
        pairs = [(F[j + 1] - F[j], Z[j + 1] - Z[j]) for j in range(len(Z) - 1)]
        dF = np.stack([df / np.linalg.norm(df) for df, _ in pairs], axis=1)
        dZ = np.stack([dz / np.linalg.norm(df) for df, dz in pairs], axis=1)
        c = np.linalg.solve(dF.T @ dF + reg * np.eye(len(pairs)), dF.T @ f)
        zn = z + f - (dZ + dF) @ c
    s, size = zn[:n] - x, float(np.linalg.norm(qx))
    if s @ qx > -1e-3 * a * size**2:
        zn = z + f
    elif np.linalg.norm(s) > o["cap"] * a * size:
        zn = z + (zn - z) * o["cap"] * a * size / np.linalg.norm(s)
    way = zn[n : n + m] - y if memory.k % 2 == 0 else zn[n + m :] - v
    known["d"] = way / np.linalg.norm(way)
    memory.v = zn[n + m :]
    return Entry(zn[:n], zn[n : n + m], qx)

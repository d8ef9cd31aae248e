# The robust rules once more, in numpy, as they are defined: by loops over rows and pairs.

from __future__ import annotations

import math

import numpy as np


def squared_distance(a, b):
    return float(((a - b) ** 2).sum())


def mean(rows):
    return np.array([math.fsum(column) / len(rows) for column in rows.T])


def median(rows):
    return np.median(rows, axis=0)


def trimmed_mean(rows, f):
    return mean(np.sort(rows, axis=0)[f : len(rows) - f])


def geometric_median(rows):
    z = mean(rows)
    for _ in range(100):
        weights = np.array([1.0 / max(1e-6, math.sqrt(squared_distance(u, z))) for u in rows])
        new = sum(w * u for w, u in zip(weights, rows, strict=True)) / weights.sum()
        moved = np.linalg.norm(new - z)
        z = new
        if moved <= 1e-10 * np.linalg.norm(z):
            break
    return z


def krum_scores(rows, f):
    """Sum over the n - f - 2 nearest others."""
    n = len(rows)
    return [sum(sorted(squared_distance(rows[i], rows[j]) for j in range(n) if j != i)[: n - f - 2]) for i in range(n)]


def krum_order(rows, f):
    scores = krum_scores(rows, f)
    return sorted(range(len(rows)), key=lambda i: (scores[i], i))


def krum(rows, f):
    return rows[krum_order(rows, f)[0]]


def multi_krum(rows, f):
    return mean(rows[krum_order(rows, f)[: len(rows) - f]])


def centred_clipping(rows, radius, last):
    z = np.zeros(rows.shape[1]) if last is None else last
    for _ in range(3):
        steps = []
        for u in rows:
            distance = math.sqrt(squared_distance(u, z))
            steps.append((u - z) * (1.0 if distance <= radius else radius / distance))
        z = z + mean(np.array(steps))
    return z


def nearest(rows, f):
    """Of every row the n - f nearest rows, itself one."""
    n = len(rows)
    return [sorted(range(n), key=lambda j: (squared_distance(rows[i], rows[j]), j))[: n - f] for i in range(n)]


def nnm(rows, f):
    return np.array([mean(rows[chosen]) for chosen in nearest(rows, f)])


def bucketing(rows, size, order):
    rows = rows if order is None else rows[order]
    return np.array([mean(rows[start : start + size]) for start in range(0, len(rows), size)])


def prepared(rows, f, before, bucket, order):
    rows = np.asarray(rows, dtype=np.float64)
    if before == "nnm":
        return nnm(rows, f)
    return bucketing(rows, bucket, order) if before == "bucketing" else rows


def aggregate(rows, rule, f, radius, last):
    """The rule of rows that are prepared."""
    if rule in ("trimmed_mean", "krum", "multi_krum"):
        return {"trimmed_mean": trimmed_mean, "krum": krum, "multi_krum": multi_krum}[rule](rows, f)
    if rule == "centred_clipping":
        return centred_clipping(rows, radius, last)
    return {"mean": mean, "median": median, "geometric_median": geometric_median}[rule](rows)

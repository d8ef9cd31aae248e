"""The second implementation of the server's step: optimisers, schedules and weight decay, number by number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.reference.quadratic import Vector


class Server:
    """Steps along directions with the library's option names."""

    def __init__(self, o: dict[str, Any]) -> None:
        self.o, self.t = o, 0
        self.m: Any = 0.0
        self.s: Any = 0.0
        self.longest = 0.0

    def step(self, x: Vector, h: Vector) -> Vector:
        o, t = self.o, self.t
        self.t = n = t + 1
        b1, b2, eps = o.get("upper_beta1", 0.9), o.get("upper_beta2", 0.999), o.get("upper_epsilon", 1e-8)
        kind, period = o.get("upper_optimiser", "sgd"), o.get("upper_period", 1)
        factor = {
            "constant": 1.0,
            "halving": 0.5 ** (t / period),
            "cosine": (1 + math.cos(math.pi * min(1, t / period))) / 2,
            "inverse_sqrt": 1 / math.sqrt(1 + t / period),
            "inverse": 1 / (1 + t / o.get("upper_period", 100)),
        }[o.get("upper_schedule", "constant")]
        alpha = factor * o["upper_step"]
        if kind == "spectral":  # x of these problems is one vector
            entries = o.get("upper_vectors", "gradient") == "adam"
            if t == 0:
                size = math.sqrt(np.mean(x**2)) if entries else float(np.linalg.norm(x))
                self.longest = o.get("upper_limit", 0.2) * (size or 1.0)
            self.m = b1 * self.m + (1 - b1) * h
            m = self.m / (1 - b1**n)
            if entries:
                self.s = b2 * self.s + (1 - b2) * h**2
                way = m / (np.sqrt(self.s / (1 - b2**n)) + eps)
                return x - factor * self.longest * way - alpha * o.get("upper_weight_decay", 0.0) * x
            size = float(np.linalg.norm(m))
            length = factor * min(o["upper_step"] * size, self.longest)
            return x - length * m / size - alpha * o.get("upper_weight_decay", 0.0) * x
        moved = np.empty_like(x)
        first, second = np.broadcast_to(self.m, x.shape), np.broadcast_to(self.s, x.shape)
        ms, ss = [], []
        for j in range(len(x)):
            g, m, s = float(h[j]), float(first[j]), float(second[j])
            if kind == "sgd":
                d = g
            elif kind == "momentum":
                d = m = b1 * m + g
            else:
                m = b1 * m + (1 - b1) * g
                if kind == "adam":
                    s = b2 * s + (1 - b2) * g**2
                elif kind == "yogi":
                    s = s + (1 - b2) * g**2 if s < g**2 else s - (1 - b2) * g**2 if s > g**2 else s
                else:
                    s = b2 * s + (1 - b2) * m**2 + eps
                hat, root = m / (1 - b1**n), math.sqrt(s / (1 - b2**n))
                d = hat / root if kind == "adamomentum" else hat / (root + eps)
            moved[j] = x[j] - alpha * d - alpha * o.get("upper_weight_decay", 0.0) * x[j]
            ms.append(m)
            ss.append(s)
        self.m, self.s = np.array(ms), np.array(ss)
        return moved

# Rows of a history for the tests of what becomes of them.

from __future__ import annotations

import math


def row(algorithm="a", seed=0, round=0, accuracy=None, loss=1.0, **more):
    """One evaluation in which a round moves 10 bytes up, 20 down, and takes half a simulated second."""
    return {
        "algorithm": algorithm,
        "seed": seed,
        "iteration": round,
        "round": round,
        "uplink_bytes": 10 * round,
        "downlink_bytes": 20 * round,
        "simulated_seconds": 0.5 * round,
        "wall_seconds": 0.001,
        "upper_loss": loss,
        "lower_loss": 0.5,
        "test_loss": 0.25,
        "test_accuracy": accuracy,
        "hypergradient_norm": 1e-3,
        **more,
    }


def run(algorithm, seed, points, column="accuracy"):
    return [row(algorithm, seed, round, **{column: value}) for round, value in points]


def rising(algorithms=5, seeds=3):
    return [
        row(f"method_{a}", seed, 10 * i * (a + 1), 0.9 - 0.8 * math.exp(-i * (a + 2) / 20) + 0.01 * seed)
        for a in range(algorithms)
        for seed in range(seeds)
        for i in range(12)
    ]


def nothing_temporary(folder):
    return not [path for path in folder.iterdir() if path.name.endswith(".part")]

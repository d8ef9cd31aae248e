"""Rows of our own methods."""

from __future__ import annotations

from tests.algorithm_table.row import TAU, Options, Row


def once(o: Options, index: int | None) -> int:
    return 1


ROWS = {
    "aggitd-s": Row(
        cases=[
            {},
            {"upper_step": 10.0, "lower_step": None},
            {"upper_step": 0.3, "lower_step": None, "upper_limit": 0.01},
            {"upper_optimiser": "sgd", "lower_step": None},
            {"upper_step": 0.3, "upper_vectors": "adam", "upper_limit": 0.01, "lower_step": None, "lower_hedge": 0.2},
            {"lower_step": None, "lower_hedge": 2.0, "local_steps": 3, "upper_limit": 0.05},
            {"upper_optimiser": "momentum", "lower_step": None, "local_steps": 3},
            {"lower_step": None, "local_steps": TAU},
            {"lower_step": 0.3, "local_steps": TAU},
        ],
        rounds=once,
        counts=[({}, 1), ({"local_steps": 3}, 1)],
        sampled={"lower_step": None, "local_steps": TAU},
        pooled={"lower_step": None},
        travels=[
            ({}, [[("x y v d", "h y v d")]] * 2),
            ({"local_steps": 3}, [[("x y v d", "h d y v")]] * 2),
        ],
    ),
    "aggitd-aq": Row(
        cases=[
            {},
            {"upper_step": 0.5, "memory": 1, "probes": 2},
            {"upper_step": 2.0, "cap": 1.5, "cutoff": 0.5, "regularisation": 0.01, "settling": 4, "memory": 3},
        ],
        rounds=once,
        counts=[({}, 1)],
        sampled={"memory": 2},
        pooled={},
        travels=[({}, [[("x y v d", "h y v d")]] * 2)],
    ),
}

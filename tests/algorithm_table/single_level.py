"""Rows of the baselines that ignore a level, or what lies between the two."""

from __future__ import annotations

from tests.algorithm_table.row import STEPS, TAU, UPPER_TAU, Row, T, choices, combined, lower_rounds

LOCAL = choices("local_steps", 1, 3, TAU)

ROWS = {
    "fedavg-alternating": Row(
        cases=combined([{**STEPS, "lower_rounds": T}], LOCAL, choices("upper_local_steps", 1, UPPER_TAU)),
        rounds=lambda o, index: lower_rounds(o) + 1,
        counts=[({}, 3 + 1)],
        sampled={"lower_rounds": 2, "local_steps": 2, "upper_local_steps": UPPER_TAU},
        pooled={"lower_rounds": 2},
        travels=[({"lower_rounds": 2}, [[("x y", "y"), ("y", "y"), ("y", "x")]] * 2)],
    ),
    "joint": Row(
        cases=combined([{**STEPS, "lower_weight": 0.7}], LOCAL),
        rounds=lambda o, index: 1,
        counts=[({}, 1)],
        sampled={"local_steps": TAU},
        pooled={},
        travels=[({}, [[("x y", "x y")]] * 2)],
    ),
}

"""Rows of the first-order penalty methods."""

from __future__ import annotations

from tests.algorithm_table.row import STEPS, TAU, Row, T, Transcript, choices, combined, lower_rounds

PENALTY: Transcript = [("y z", "dy gz"), ("y z", "h")]
MATCHED = choices("penalised_lower_step", None, 0.02)

ROWS = {
    "bome": Row(
        cases=combined(
            [{**STEPS, "lower_rounds": T, "upper_level_lower_step": 0.15, "barrier": 0.6}],
            choices("step_decay", 0.0, 0.5),
        ),
        rounds=lambda o, index: lower_rounds(o) + 1,
        counts=[({}, 3 + 1)],
        sampled={"lower_rounds": 2, "upper_level_lower_step": 0.15, "barrier": 0.6},
        pooled={"lower_rounds": 3},
        travels=[({"lower_rounds": 2}, [[("x y", "gy"), ("yh", "gy"), ("yh", "fx fy qx gy")]] * 2)],
    ),
    "f2sa": Row(
        cases=combined([{**STEPS, "lower_rounds": T, "penalty": 7.0}], choices("penalty_growth", 0.0, 1.5), MATCHED),
        rounds=lambda o, index: lower_rounds(o) + 1,
        counts=[({}, 3 + 1)],
        sampled={"lower_rounds": 2, "penalty": 7.0, "penalty_growth": 0.5},
        pooled={"lower_rounds": 3},
        # z starts as y itself: in the first iteration one vector serves as both
        travels=[({"lower_rounds": 2}, [[("x y", "dy gz"), *PENALTY], [("x y z", "dy gz"), *PENALTY]])],
    ),
    "memfbo": Row(
        cases=combined([{**STEPS, "penalty": 7.0}], choices("local_steps", 1, 3, TAU), MATCHED),
        rounds=lambda o, index: 1,
        counts=[({}, 1)],
        sampled={"penalty": 7.0, "local_steps": TAU},
        pooled={},
        travels=[({"local_steps": 2}, [[("x y", "x y z")], [("x y z", "x y z")]])],
    ),
}

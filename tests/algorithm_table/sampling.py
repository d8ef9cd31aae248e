"""Rows of the methods that sample the lower level."""

from __future__ import annotations

from tests.algorithm_table.row import STEPS, Row, T, choices, combined, lower_rounds

ROWS = {
    "stochastic-bilevel": Row(
        cases=combined([{**STEPS, "lower_rounds": T, "samples": 3}], choices("temperature", 0.1, 2.0)),
        rounds=lambda o, index: lower_rounds(o) + 1,
        counts=[({}, 3 + 1)],
        sampled={"lower_rounds": 2, "samples": 4, "temperature": 0.3},
        pooled={"lower_rounds": 3, "samples": 4},
        travels=[
            (
                {"lower_rounds": 2, "samples": 3},
                [[("x points", "points"), ("points", "points"), ("points", "f fx gxs")]] * 2,
            )
        ],
    )
}

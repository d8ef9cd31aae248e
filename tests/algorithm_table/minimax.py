"""Rows of the minimax methods, which are run on a game of their own instead of `quadratic`."""

from __future__ import annotations

from tests.algorithm_table.row import (
    STEPS,
    TAU,
    UPPER_TAU,
    Row,
    T,
    Transcript,
    choices,
    combined,
    outer_rounds,
    svrg_rounds,
)

LOCAL = choices("local_steps", 1, 3, TAU)
ONE_STEP = {"upper_step": 0.2}
"""eta of y is that of x, unless it is given."""
SVRG_2: Transcript = [("x y", "gy"), ("g", "y"), ("y", "gy"), ("g", "y")]

ROWS = {
    "fedgda": Row(
        cases=[*combined([STEPS], LOCAL), {**ONE_STEP, "local_steps": 3}],
        rounds=lambda o, index: 1,
        counts=[({}, 1)],
        sampled={"local_steps": TAU},
        pooled={},
        travels=[({"local_steps": 2}, [[("x y", "x y")]] * 2)],
    ),
    "fedgda-gt": Row(
        cases=[*combined([STEPS], LOCAL), {**ONE_STEP, "local_steps": 3}],
        rounds=lambda o, index: 2,
        counts=[({}, 2)],
        sampled={"local_steps": TAU},
        pooled={},
        travels=[({"local_steps": 2}, [[("x y", "fx fy"), ("fx fy", "x y")]] * 2)],
    ),
    "fednest-minimax": Row(
        cases=[
            *combined(
                [{**STEPS, "lower_rounds": T}],
                choices("accounting", "paper", "merged"),
                LOCAL,
                choices("upper_local_steps", 0, 1, UPPER_TAU),
            ),
            ONE_STEP,
        ],
        rounds=lambda o, index: svrg_rounds(o) + 1 + outer_rounds(o),
        counts=[
            ({}, 2 * 3 + 2),
            ({"accounting": "merged"}, 3 + 1),
            ({"accounting": "merged", "local_steps": 2}, 2 * 3 + 1),
        ],
        sampled={"lower_rounds": 2, "local_steps": TAU, "upper_local_steps": UPPER_TAU},
        pooled={"lower_rounds": 2},
        travels=[
            ({"lower_rounds": 2}, [[*SVRG_2, ("y", "h"), ("h", "x")]] * 2),
            ({"lower_rounds": 2, "accounting": "merged"}, [[("x y", "gy"), ("y", "gy"), ("y", "h")]] * 2),
        ],
    ),
    "fed-extragradient": Row(
        cases=[STEPS, ONE_STEP],
        rounds=lambda o, index: 2,
        counts=[({}, 2)],
        sampled={},
        pooled={},
        travels=[({}, [[("x y", "fx fy"), ("x y", "fx fy")]] * 2)],
    ),
    "fed-optimistic": Row(
        cases=[STEPS, ONE_STEP],
        rounds=lambda o, index: 1,
        counts=[({}, 1)],
        sampled={},
        pooled={},
        travels=[({}, [[("x y", "fx fy")]] * 2)],
    ),
    "oadagrad": Row(
        cases=[STEPS, {**ONE_STEP, "delta": 0.1}],
        rounds=lambda o, index: 1,
        counts=[({}, 1)],
        sampled={"delta": 0.3},
        pooled={},
        travels=[({}, [[("x y", "fx fy")]] * 2)],
    ),
}

"""Rows of the algorithms that differentiate implicitly."""

from __future__ import annotations

from tests.algorithm_table.row import (
    INDICES,
    SAMPLE,
    STEPS,
    SUM,
    TAU,
    UPPER_TAU,
    N,
    Options,
    Row,
    T,
    Transcript,
    choices,
    combined,
    lower_rounds,
    outer_rounds,
    svrg_rounds,
)

ACCOUNTING = choices("accounting", "paper", "merged")
LOCAL = choices("local_steps", 1, 3, TAU)
SERIES: Options = {**STEPS, "neumann_step": 0.5, "lower_rounds": T, "neumann_terms": N}
NEST = combined([SERIES], [SUM, SAMPLE], ACCOUNTING, LOCAL, choices("upper_local_steps", 0, 1, UPPER_TAU))
LOCAL_NEST = [case for case in NEST if case["upper_local_steps"] != 0]
IHGP_3: Transcript = [("y", "fy"), ("p", "p"), ("p", "p"), ("p", "p"), ("p_sum", "h")]
SVRG_2: Transcript = [("x y", "gy"), ("g", "y"), ("y", "gy"), ("g", "y")]


def terms(o: Options, index: int | None) -> int:
    """Neumann terms after the first."""
    return int(o["neumann_terms"]) if index is None else index


ROWS = {
    "aggitd": Row(
        cases=[
            *combined(
                [{**STEPS, "neumann_step": 0.5, "lower_rounds": N}],
                [SUM, SAMPLE, {**SUM, "warm_start": True}],
                ACCOUNTING,
                LOCAL,
                choices("upper_local_steps", 0, 1, 2),
            ),
            {**STEPS, "lower_rounds": 1, "warm_start": True, "accounting": "merged"},
        ],
        rounds=lambda o, index: svrg_rounds(o) + 1 + outer_rounds(o),
        counts=[
            ({}, 2 * 3 + 2),
            ({"upper_local_steps": 0}, 2 * 3 + 1),
            ({"accounting": "merged"}, 3 + 1),
            ({"accounting": "merged", "estimator": "sample"}, 3 + 1),
            ({"accounting": "merged", "local_steps": 2}, 2 * 3 + 1),
        ],
        sampled={"lower_rounds": 3, "local_steps": TAU, "upper_local_steps": 2, "warm_start": True},
        pooled={"lower_rounds": 4},
        travels=[
            (
                {"lower_rounds": 2, "accounting": "merged"},
                [[("x y", "gy fy"), ("y v", "gy v"), ("y v", "h")]] * 2,
            ),
            (
                {"lower_rounds": 2},
                [[("x y", "gy fy"), ("g", "y"), ("y v", "gy v"), ("g", "y"), ("y v", "h"), ("h", "x")]] * 2,
            ),
            (
                {"lower_rounds": 2, "local_steps": 3, "upper_local_steps": 0, "accounting": "merged"},
                [[("x y", "gy fy"), ("g", "y"), ("y v", "gy v"), ("g", "y"), ("y v", "h")]] * 2,
            ),
            (
                {"lower_rounds": 2, "accounting": "merged", "warm_start": True},
                [[("x y", "gy fy"), ("y v", "gy v"), ("y v", "h")], [("x y v", "gy v"), ("y v", "gy v"), ("y v", "h")]],
            ),
            (
                {"lower_rounds": 3, "accounting": "merged", "estimator": "sample", "indices": [1, 2]},
                [
                    [("x y", "gy"), ("y", "gy fy"), ("y r", "gy r"), ("y r", "h")],
                    [("x y", "gy"), ("y", "gy"), ("y", "gy fy"), ("y r", "h")],
                ],
            ),
        ],
    ),
    "fednest": Row(
        cases=[
            *NEST,
            {**STEPS, "lower_rounds": T, "neumann_terms": N},
            {**SERIES, "neumann_terms": 0},
        ],
        rounds=lambda o, index: svrg_rounds(o) + terms(o, index) + 2 + outer_rounds(o),
        counts=[
            ({}, 2 * 3 + 4 + 3),
            ({"accounting": "merged"}, 3 + 4 + 2),
            ({"estimator": "sample"}, 2 * 3 + 2 + 3),
            ({"estimator": "sample", "accounting": "merged"}, 3 + 2 + 2),
        ],
        sampled={"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2, "upper_local_steps": UPPER_TAU},
        pooled={"lower_rounds": 2, "neumann_terms": 4},
        travels=[
            ({"lower_rounds": 2, "neumann_terms": 3}, [[*SVRG_2, *IHGP_3, ("h", "x")]] * 2),
            (
                {"lower_rounds": 2, "neumann_terms": 3, "accounting": "merged"},
                [[("x y", "gy"), ("y", "gy"), *IHGP_3]] * 2,
            ),
            (
                {
                    "lower_rounds": 1,
                    "neumann_terms": 3,
                    "accounting": "merged",
                    "estimator": "sample",
                    "indices": [0, 2],
                },
                [
                    [("x y", "gy"), ("y", "fy"), ("p", "h")],
                    [("x y", "gy"), ("y", "fy"), ("p", "p"), ("p", "p"), ("p", "h")],
                ],
            ),
        ],
    ),
    "fednest-sgd": Row(
        cases=NEST,
        rounds=lambda o, index: lower_rounds(o) + terms(o, index) + 2 + outer_rounds(o),
        counts=[({}, 3 + 4 + 3), ({"estimator": "sample"}, 3 + 2 + 3)],
        sampled={"lower_rounds": 2, "neumann_terms": 4, "estimator": "sample", "indices": [*INDICES, 1]},
        pooled={"lower_rounds": 2, "neumann_terms": 4},
        travels=[
            (
                {"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2},
                [[("x y", "y"), ("y", "y"), *IHGP_3, ("h", "x")]] * 2,
            ),
        ],
    ),
    "fedmbo": Row(
        cases=combined(
            [{**SERIES, "indices": INDICES}],
            ACCOUNTING,
            choices("local_steps", 1, TAU),
            choices("upper_local_steps", 0, 1, UPPER_TAU),
        ),
        rounds=lambda o, index: lower_rounds(o) + (index or 0) + 2 + outer_rounds(o),
        counts=[({}, 3 + 2 + 3), ({"accounting": "merged"}, 3 + 2 + 2)],
        sampled={"lower_rounds": 2, "neumann_terms": 4, "indices": [*INDICES, 1], "local_steps": TAU},
        travels=[
            (
                {"lower_rounds": 1, "neumann_terms": 3, "indices": [0, 2]},
                [
                    [("x y", "y"), ("y", "fy"), ("p", "h"), ("h", "x")],
                    [("x y", "y"), ("y", "fy"), ("p", "p"), ("p", "p"), ("p", "h"), ("h", "x")],
                ],
            ),
        ],
    ),
    "lfednest": Row(
        cases=LOCAL_NEST,
        rounds=lambda o, index: lower_rounds(o) + 1,
        counts=[({}, 3 + 1)],
        sampled={"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2, "upper_local_steps": UPPER_TAU},
        travels=[({"lower_rounds": 2, "neumann_terms": 3}, [[("x y", "y"), ("y", "y"), ("y", "x")]] * 2)],
    ),
    "lfednest-svrg": Row(
        cases=LOCAL_NEST,
        rounds=lambda o, index: svrg_rounds(o) + 1,
        counts=[({}, 2 * 3 + 1), ({"accounting": "merged"}, 3 + 1)],
        sampled={"lower_rounds": 2, "neumann_terms": 3, "local_steps": 2, "upper_local_steps": 2},
        travels=[({"lower_rounds": 2}, [[*SVRG_2, ("y", "x")]] * 2)],
    ),
}

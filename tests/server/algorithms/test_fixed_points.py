"""Where iterations end: many clients and the pooled problem, corrected local steps, and drift without correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel.problems import MinimaxQuadratic, Quadratic
from server.kit.algorithm import find
from tests.agreement import relative
from tests.algorithm_table import SHARED
from tests.problem_table import lower_point, pooled
from tests.reference import Dense
from tests.runs import directions, traced

POOLED = {name: row.pooled for name, row in SHARED.items() if row.pooled is not None}


@pytest.mark.parametrize("name", sorted(POOLED))
def test_clients_with_one_local_step_equal_the_pooled_problem(name: str) -> None:
    kind: Any = MinimaxQuadratic if find(name).lower == "minimax" else Quadratic
    problem = kind(clients=5, dim_x=3, dim_y=4, examples=(2, 6), seed=7)
    options = {"upper_step": 0.1, "lower_step": 0.5, **POOLED[name]}
    many, one = (traced(each, name, 6, **options) for each in (problem, pooled(problem)))
    assert many.trace is not None
    assert one.trace is not None
    for k in range(6):
        assert relative(many.trace[k].x, one.trace[k].x) < 1e-9
        assert relative(many.trace[k].y, one.trace[k].y) < 1e-9
        assert relative(directions(many)[k], directions(one)[k]) < 1e-9


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_corrected_local_steps_have_the_fixed_point_of_the_pooled_problem(name: str) -> None:
    """Which is where d + rho x + B' S (C y*(x) - Cc) = 0 with S the Neumann sum: a linear system in x."""
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, rho=1.0, seed=8)
    terms = 3
    options = {"upper_step": 0.18, "lower_step": 0.4, "neumann_step": 1.0, "lower_rounds": terms}
    if name == "fednest":
        options["neumann_terms"] = terms - 1
    many = traced(problem, name, 60, local_steps=3, upper_local_steps=2, **options)
    one = traced(pooled(problem), name, 4, accounting="merged", **options)
    assert many.trace is not None
    assert one.trace is not None
    assert relative(many.trace[3].x, one.trace[3].x) > 1e-3
    dense = Dense.of(problem)
    S = sum(np.linalg.matrix_power(np.eye(problem.dim_y) - dense.A, n) for n in range(terms))
    y0, slope = np.linalg.solve(dense.A, dense.b), np.linalg.solve(dense.A, dense.B)  # y*(x) = y0 + slope x
    curvature = dense.rho * np.eye(problem.dim_x) + dense.B.T @ S @ dense.C @ slope
    x = np.linalg.solve(curvature, -dense.d - dense.B.T @ S @ dense.fy(y0))
    y = y0 + slope @ x
    assert relative(many.x, x) < 1e-9
    assert relative(many.y, y) < 1e-9
    assert relative(x, problem.solution()) > 1e-3  # the sum is not the inverse
    start = {"x0": torch.from_numpy(x), "y0": torch.from_numpy(y)}
    assert relative(traced(pooled(problem), name, 1, **start, accounting="merged", **options).x, x) < 1e-12


def test_fed_svrg_with_local_steps_has_the_fixed_point_of_the_lower_level() -> None:
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.4, seed=12)
    x, y = lower_point(problem)
    far = y + 1.0
    options = {"upper_step": 0.0, "lower_step": 0.3, "local_steps": 4, "neumann_terms": 0, "lower_rounds": 60}
    assert relative(traced(problem, "fednest", 1, x0=x, y0=far, **options).y, y) < 1e-10
    assert relative(traced(problem, "fednest-sgd", 1, x0=x, y0=far, **options).y, y) > 1e-2
    one_step = {**options, "local_steps": 1}
    assert relative(traced(problem, "fednest-sgd", 2, x0=x, y0=far, **one_step).y, y) < 1e-6


def test_fed_sgd_drifts_with_step_and_local_steps() -> None:
    """The fixed point lies O(beta (tau - 1)) from y*: doubling either doubles the distance, to first order."""
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.5, seed=12)
    x, y = lower_point(problem)

    def drift(beta: float, tau: int) -> float:
        options = {"upper_step": 0.0, "lower_step": beta, "local_steps": tau, "neumann_terms": 0}
        rounds = round(15 / (beta * tau))  # each over the same time: e^(-7.5) is left of the way to the fixed point
        return relative(traced(problem, "fednest-sgd", 1, x0=x, y0=y, lower_rounds=rounds, **options).y, y)

    base = drift(0.03, 2)
    assert drift(0.03, 1) < 1e-12
    assert drift(0.06, 2) / base == pytest.approx(2, rel=0.08)
    assert drift(0.03, 3) / base == pytest.approx(2, rel=0.08)
    assert drift(0.03, 5) / base == pytest.approx(4, rel=0.12)

"""Where iterations end: many clients and the pooled problem, corrected local steps, and drift without correction."""

from __future__ import annotations

import pytest

from fedbilevel.problems import Quadratic
from tests.agreement import relative
from tests.algorithm_table import GLOBAL
from tests.problem_table import lower_point, pooled
from tests.runs import directions, traced

POOLED = {name: row.pooled for name, row in GLOBAL.items() if row.pooled is not None}


@pytest.mark.parametrize("name", sorted(POOLED))
def test_clients_with_one_local_step_equal_the_pooled_problem(name: str) -> None:
    problem = Quadratic(clients=5, dim_x=3, dim_y=4, examples=(2, 6), seed=7)
    many, one = (
        traced(each, name, 6, upper_step=0.1, lower_step=0.5, **POOLED[name]) for each in (problem, pooled(problem))
    )
    assert many.trace is not None
    assert one.trace is not None
    for k in range(6):
        assert relative(many.trace[k].x, one.trace[k].x) < 1e-9
        assert relative(many.trace[k].y, one.trace[k].y) < 1e-9
        assert relative(directions(many)[k], directions(one)[k]) < 1e-9


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_corrected_local_steps_have_the_fixed_point_of_the_pooled_problem(name: str) -> None:
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, seed=8)
    options = {"upper_step": 0.18, "lower_step": 0.4, "neumann_step": 1.0, "neumann_terms": 3, "lower_rounds": 3}
    many = traced(problem, name, 110, local_steps=3, upper_local_steps=2, **options)
    one = traced(pooled(problem), name, 200, accounting="merged", **options)
    assert many.trace is not None
    assert relative(many.trace[3].x, one.trace[3].x if one.trace else 0) > 1e-3
    assert relative(many.x, one.x) < 1e-9
    assert relative(many.y, one.y) < 1e-9


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
        rounds = round(24 / (beta * tau))
        return relative(traced(problem, "fednest-sgd", 1, x0=x, y0=y, lower_rounds=rounds, **options).y, y)

    base = drift(0.02, 2)
    assert drift(0.02, 1) < 1e-12
    assert drift(0.04, 2) / base == pytest.approx(2, rel=0.08)
    assert drift(0.02, 3) / base == pytest.approx(2, rel=0.08)
    assert drift(0.02, 5) / base == pytest.approx(4, rel=0.12)

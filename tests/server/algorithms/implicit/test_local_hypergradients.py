"""LFedNest: local hypergradients, and their bias where clients differ."""

from __future__ import annotations

import numpy as np
import pytest

from fedbilevel.problems import Quadratic
from tests import reference
from tests.agreement import relative
from tests.problem_table import SHAPES, lower_point, pooled
from tests.reference import Dense
from tests.runs import directions, traced


@pytest.mark.parametrize("name", ["lfednest", "lfednest-svrg"])
def test_local_hypergradients_are_biased_where_clients_differ(name: str) -> None:
    """As N grows: sum p_i (fx_i - J_i H_i^-1 fy_i) at the common y, far from the hypergradient."""
    problem = Quadratic(**SHAPES[1], mu=0.5)
    x, y = lower_point(problem)
    options = {"x0": x, "y0": y, "neumann_terms": 40, "neumann_step": 1.0, "lower_step": 0.5}
    (h,) = directions(traced(problem, name, 1, **options))
    local = sum(
        c.p * (c.fx(x.numpy(), y.numpy()) - c.cross(np.linalg.solve(c.A, c.fy(x.numpy(), y.numpy()))))
        for c in reference.clients_of(problem)
    )
    assert relative(h, local) < 1e-8
    expected = Dense.of(problem).hypergradient(x.numpy())
    assert relative(h, expected) > 0.01
    (one,) = directions(traced(pooled(problem), name, 1, **options))
    assert relative(one, expected) < 1e-8


def test_the_bias_of_local_hypergradients_vanishes_with_identical_clients() -> None:
    biases = []
    for heterogeneity in (0.0, 0.1, 1.0):
        problem = Quadratic(clients=5, dim_x=3, dim_y=4, heterogeneity=heterogeneity, noise=0.0, mu=0.5, seed=9)
        x, y = lower_point(problem)
        options = {"x0": x, "y0": y, "neumann_terms": 40, "neumann_step": 1.0, "lower_step": 0.5}
        (h,) = directions(traced(problem, "lfednest", 1, **options))
        biases.append(relative(h, problem.hypergradient(x)))
    assert biases[0] < 1e-8
    assert 1e-4 < biases[1] < biases[2]


def test_lfednest_with_identical_clients_is_fednest_sgd() -> None:
    problem = Quadratic(clients=5, dim_x=3, dim_y=4, heterogeneity=0.0, noise=0.0, seed=9)
    options = {"lower_rounds": 2, "neumann_terms": 3, "local_steps": 3, "lower_step": 0.3}
    local, whole = traced(problem, "lfednest", 5, **options), traced(problem, "fednest-sgd", 5, **options)
    assert relative(local.x, whole.x) < 1e-12
    assert relative(local.y, whole.y) < 1e-12

"""What a Neumann series of N terms leaves: the error, the mean over its terms, and how a warm start removes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel.problems import Quadratic
from tests.agreement import relative
from tests.problem_table import SHAPES, lower_point
from tests.reference import Dense
from tests.runs import directions, last_state, start, traced


@pytest.mark.parametrize("terms", [1, 2, 5, 9])
@pytest.mark.parametrize("parameters", SHAPES)
def test_truncation_error_of_aggitd(terms: int, parameters: dict[str, Any]) -> None:
    """From y* and v = 0 the error of v is (I - lam H)^N v*, exactly."""
    problem, lam = Quadratic(**parameters), 0.7
    x, y = lower_point(problem)
    dense = Dense.of(problem)
    state = last_state(problem, "aggitd", x, y, lower_rounds=terms, neumann_step=lam, lower_step=0.3)
    v = dense.v(y.numpy())
    error = np.linalg.matrix_power(np.eye(len(v)) - lam * dense.A, terms) @ v
    assert relative(v - state.v.numpy(), error) < 1e-11
    assert relative(state.hypergradient.numpy() - dense.hypergradient(x.numpy()), dense.cross(error)) < 1e-11


@pytest.mark.parametrize("terms", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("parameters", SHAPES)
def test_truncation_error_of_fednest(terms: int, parameters: dict[str, Any]) -> None:
    """At y* the sum n = 0..N leaves J H^-1 (I - lam H)^{N+1} fy, exactly."""
    problem, lam = Quadratic(**parameters), 0.7
    x, y = lower_point(problem)
    dense = Dense.of(problem)
    result = traced(problem, "fednest", 1, x0=x, y0=y, neumann_terms=terms, neumann_step=lam, lower_step=0.3)
    factor = np.linalg.matrix_power(np.eye(len(y)) - lam * dense.A, terms + 1)
    error = dense.cross(np.linalg.solve(dense.A, factor @ dense.fy(y.numpy())))
    assert relative(directions(result)[0].numpy() - dense.hypergradient(x.numpy()), error) < 1e-11


@pytest.mark.parametrize("local_steps", [1, 3])
def test_all_Q_average_to_the_sum_of_aggitd(local_steps: int) -> None:  # noqa: N802 - the paper's symbol
    """On one y trajectory, from a cold start: E over Q of lam N r is v_N."""
    problem, terms = Quadratic(**SHAPES[1]), 7
    x, y = start(problem, 2)
    options = {"lower_rounds": terms, "neumann_step": 0.8, "lower_step": 0.5, "local_steps": local_steps}
    (expected,) = directions(traced(problem, "aggitd", 1, x0=x, y0=y, **options))
    parts = [
        directions(traced(problem, "aggitd", 1, x0=x, y0=y, estimator="sample", indices=[Q], **options))[0]
        for Q in range(terms)
    ]
    assert relative(torch.stack(parts).mean(0), expected) < 1e-12


def test_all_indices_of_fed_ihgp_average_to_the_sum_of_N_terms() -> None:  # noqa: N802 - the paper's symbol
    """E over N' = the N-term Neumann sum, n = 0..N-1: the fixed sum with one term less."""
    problem, terms = Quadratic(**SHAPES[3]), 7
    x, y = start(problem, 2)
    options = {"neumann_step": 0.8, "lower_step": 0.5, "lower_rounds": 2}
    parts = [
        directions(
            traced(problem, "fednest", 1, x0=x, y0=y, neumann_terms=terms, estimator="sample", indices=[n], **options)
        )[0]
        for n in range(terms)
    ]
    average = torch.stack(parts).mean(0)
    dense = Dense.of(problem)
    y_next = y.numpy()
    for _ in range(2):
        y_next = y_next - 0.5 * (dense.A @ y_next - dense.B @ x.numpy() - dense.b)
    factor = np.eye(len(y)) - 0.8 * dense.A
    p = 0.8 * sum(np.linalg.matrix_power(factor, n) @ dense.fy(y_next) for n in range(terms))
    assert relative(average, dense.d + dense.rho * x.numpy() - dense.cross(p)) < 1e-12
    (shorter,) = directions(traced(problem, "fednest", 1, x0=x, y0=y, neumann_terms=terms - 1, **options))
    assert relative(average, shorter) < 1e-12


@pytest.mark.parametrize(("terms", "upper_step", "iterations"), [(1, 0.15, 130), (3, 0.3, 65)])
def test_a_warm_start_removes_the_truncation_bias(terms: int, upper_step: float, iterations: int) -> None:
    problem = Quadratic(clients=3, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, rho=1.0, seed=6)
    options = {"lower_rounds": terms, "lower_step": 1.0, "upper_step": upper_step, "accounting": "merged"}
    best = problem.solution()
    cold = traced(problem, "aggitd", iterations, **options)
    warm = traced(problem, "aggitd", iterations, warm_start=True, **options)
    assert relative(warm.x, best) < 1e-9
    assert relative(cold.x, best) > 1e-3
    assert float(directions(cold)[-1].norm()) < 1e-9


def test_a_warm_start_begins_with_v_of_the_last_iteration() -> None:
    """At y* two iterations of N factors leave the error of 2N."""
    problem, lam = Quadratic(**SHAPES[1]), 0.7
    x, y = lower_point(problem)
    dense = Dense.of(problem)
    options = {"lower_rounds": 3, "neumann_step": lam, "lower_step": 0.3, "upper_step": 0.0, "warm_start": True}
    state = last_state(problem, "aggitd", x, y, 2, **options)
    v = dense.v(y.numpy())
    error = np.linalg.matrix_power(np.eye(len(v)) - lam * dense.A, 6) @ v
    assert relative(v - state.v.numpy(), error) < 1e-11

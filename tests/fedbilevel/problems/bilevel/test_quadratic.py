"""The closed forms of `Quadratic` against dense solves and differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedbilevel.problems import Quadratic
from tests.agreement import relative
from tests.dense_global import global_gradient_y, global_loss
from tests.problem_table import SHAPES, lower_point
from tests.reference import Dense


@pytest.mark.parametrize("parameters", SHAPES)
def test_closed_forms_of_the_quadratic_problem(parameters: dict[str, Any]) -> None:
    problem = Quadratic(**parameters)
    dense = Dense.of(problem)
    x, y = lower_point(problem)
    eye = torch.eye(problem.dim_x, dtype=torch.float64)
    slopes = [(problem.value(x + 1e-3 * e) - problem.value(x - 1e-3 * e)) / 2e-3 for e in eye]
    assert relative(problem.hypergradient(x), slopes) < 1e-9
    assert relative(problem.hypergradient(x), dense.hypergradient(x.numpy())) < 1e-12
    elsewhere = y + 1.0
    assert relative(problem.hypergradient(x, elsewhere), dense.hypergradient(x.numpy(), elsewhere.numpy())) < 1e-12
    assert relative(problem.lower_solution(x), y) < 1e-12


@pytest.mark.parametrize("parameters", SHAPES)
def test_solutions_of_the_quadratic_problem_are_optima(parameters: dict[str, Any]) -> None:
    problem = Quadratic(**parameters)
    draw = torch.Generator().manual_seed(9)
    x = torch.randn(problem.dim_x, generator=draw, dtype=torch.float64)
    y = problem.lower_solution(x)
    lower, gradient = global_loss(problem, "lower", x, y), global_gradient_y(problem, "lower", x, y)
    assert float(gradient.norm()) < 1e-12 * (1 + float(y.norm()))
    best = problem.solution()
    assert float(problem.hypergradient(best).norm()) < 1e-11 * (1 + float(best.norm()))
    value = problem.value(best)
    assert abs(value - float(global_loss(problem, "upper", best, problem.lower_solution(best)))) < 1e-12 * abs(value)
    for _ in range(10):
        aside = torch.randn(problem.dim_y, generator=draw, dtype=torch.float64)
        assert float(global_loss(problem, "lower", x, y + 0.1 * aside)) > float(lower)
        aside = torch.randn(problem.dim_x, generator=draw, dtype=torch.float64)
        assert problem.value(best + 0.1 * aside) > value
    measures = problem.evaluate(best, problem.lower_solution(best))
    assert measures["distance"] < 1e-12
    assert measures["lower_distance"] < 1e-12
    assert measures["test_loss"] == value


def test_a_client_with_one_example_is_built_without_warnings() -> None:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        Quadratic(clients=2, examples=1)
    finally:
        torch.set_warn_always(before)

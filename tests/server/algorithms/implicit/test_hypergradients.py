"""Hypergradient estimates against dense solves: whole sums, and the mean over all sampled terms."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from fedbilevel import ClientData
from fedbilevel.data import federate
from fedbilevel.problems import HyperRepresentation, Quadratic
from tests.agreement import relative
from tests.dense_global import dense_hypergradient, global_gradient_y, global_loss, newton
from tests.problem_table import SHAPES, lower_point
from tests.reference import Dense
from tests.runs import directions, traced


@functools.cache
def digits(activation: Literal["relu", "tanh"], weights: str) -> HyperRepresentation:
    """Some of the digits on three unequal clients."""
    data = federate("digits", clients=12, parameters={"alpha": 0.5}, seed=5)
    some = np.array([0, 4, 7])
    three = ClientData(data.clients.lower.take(some), data.clients.upper.take(some), weights)
    return HyperRepresentation(replace(data, clients=three), [3], activation, l2=0.3, dtype=torch.float64)


@functools.cache
def digits_point(activation: Literal["relu", "tanh"], weights: str) -> tuple[Tensor, Tensor, Tensor, float, int]:
    """x, y*(x), the dense hypergradient, a Neumann step and a number of terms that suffice."""
    problem = digits(activation, weights)
    x, y = problem.initial(torch.Generator().manual_seed(3))
    y = newton(problem, x, y)
    h, H = dense_hypergradient(problem, x, y)
    eigenvalues = torch.linalg.eigvalsh(H)
    lam = float(1.9 / (eigenvalues[0] + eigenvalues[-1]))
    factor = float((1 - lam * eigenvalues).abs().max())
    return x, y, h, lam, int(np.ceil(np.log(1e-10) / np.log(factor)))


SUMS: list[tuple[str, dict[str, Any]]] = [
    ("aggitd", {"accounting": "merged"}),
    ("aggitd", {"accounting": "paper", "local_steps": 2, "upper_local_steps": 0}),
    ("fednest", {"accounting": "merged", "lower_rounds": 1}),
    ("fednest", {"lower_rounds": 2, "local_steps": 3}),
    ("fednest-sgd", {"lower_rounds": 1}),
]


@pytest.mark.parametrize(("name", "options"), SUMS)
@pytest.mark.parametrize("parameters", SHAPES)
def test_sums_equal_the_dense_solve_on_quadratics(
    name: str, options: dict[str, Any], parameters: dict[str, Any]
) -> None:
    problem = Quadratic(**parameters, mu=0.3)
    x, y = lower_point(problem)
    terms = 36  # eigenvalues of I - lam H are at most 0.55
    options = {"lower_rounds": terms, "neumann_terms": terms, **options}
    result = traced(problem, name, 1, x0=x, y0=y, upper_step=0.1, lower_step=0.4, neumann_step=1.5, **options)
    expected = Dense.of(problem).hypergradient(x.numpy())
    assert relative(directions(result)[0], expected) < 1e-8
    assert relative(result.x, x.numpy() - 0.1 * expected) < 1e-8
    assert relative(result.y, y) < 1e-12


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
@pytest.mark.parametrize(("activation", "weights"), [("tanh", "size"), ("relu", "size"), ("tanh", "uniform")])
def test_sums_equal_the_dense_solve_on_digits(name: str, activation: str, weights: str) -> None:
    x, y, expected, lam, terms = digits_point(activation, weights)
    lower_rounds = terms if name == "aggitd" else 1
    options = {"lower_rounds": lower_rounds, "neumann_terms": terms, "lower_step": 0.1, "neumann_step": lam}
    result = traced(digits(activation, weights), name, 1, x0=x, y0=y, upper_step=0.0, accounting="merged", **options)
    assert relative(directions(result)[0], expected) < 1e-8


def test_the_dense_solve_is_the_slope_of_the_upper_loss_on_digits() -> None:
    """F(x) = f(x, y*(x)) by Newton's method, differences along random directions."""
    x, y, h, _, _ = digits_point("tanh", "uniform")
    problem = digits("tanh", "uniform")
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        u = torch.randn(x.shape, generator=draw, dtype=torch.float64)
        u = u / u.norm()
        ends = [global_loss(problem, "upper", x + s * u, newton(problem, x + s * u, y)) for s in (1e-4, -1e-4)]
        assert abs(float(ends[0] - ends[1]) / 2e-4 - float(h @ u)) < 1e-6 * float(h.norm())


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
@pytest.mark.parametrize("parameters", SHAPES[1:])
def test_sampled_estimates_average_to_the_dense_solve(name: str, parameters: dict[str, Any]) -> None:
    """Over all Q, or all N', with y and x at rest."""
    problem = Quadratic(**parameters, mu=0.6)
    x, y = lower_point(problem)
    terms = 16  # eigenvalues of I - lam H are at most 1/4
    o = {"lower_rounds": terms if name == "aggitd" else 1, "neumann_terms": terms, "indices": list(range(terms))}
    steps = {"upper_step": 0.0, "lower_step": 0.4, "neumann_step": 1.25}
    result = traced(problem, name, terms, x0=x, y0=y, estimator="sample", accounting="merged", **o, **steps)
    average = torch.stack(directions(result)).mean(0)
    assert relative(average, Dense.of(problem).hypergradient(x.numpy())) < 1e-8
    assert relative(directions(result)[0], average) > 1e-3


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_sampled_estimates_average_to_the_dense_solve_on_digits(name: str) -> None:
    """E over a few terms: the truncated Neumann sum of a dense Hessian."""
    x, y, full, lam, _ = digits_point("relu", "size")
    problem = digits("relu", "size")
    terms = 4
    o = {"lower_rounds": terms if name == "aggitd" else 1, "neumann_terms": terms, "indices": list(range(terms))}
    steps = {"upper_step": 0.0, "lower_step": 0.1, "neumann_step": lam}
    result = traced(problem, name, terms, x0=x, y0=y, estimator="sample", accounting="merged", **o, **steps)
    average = torch.stack(directions(result)).mean(0)
    H = hessian(lambda y: global_loss(problem, "lower", x, y), y)
    fy = global_gradient_y(problem, "upper", x, y)
    v = lam * sum(torch.linalg.matrix_power(torch.eye(len(y)) - lam * H, n) @ fy for n in range(terms))
    leaf = x.clone().requires_grad_()
    (fx,) = torch.autograd.grad(global_loss(problem, "upper", leaf, y), leaf)
    slope = global_gradient_y(problem, "lower", leaf, y.clone().requires_grad_(), create_graph=True) @ v
    (Jv,) = torch.autograd.grad(slope, leaf)
    assert relative(average, fx - Jv) < 1e-10
    assert relative(average, full) > 1e-5

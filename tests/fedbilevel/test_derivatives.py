"""Derivatives against finite differences and dense automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from fedbilevel import derivatives
from fedbilevel.problem import map_examples
from tests.differentiable import LEVELS, PROBLEMS, near, randn


def weighted(problem: Any, level: str, x: Tensor, y: Tensor, examples: Any, weights: Tensor) -> Tensor:
    """The weighted loss of some examples."""
    if hasattr(problem, "prepare"):
        examples = problem.prepare(x, examples)
    total: Tensor = (getattr(problem, level)(x, y, examples) * weights).sum()
    return total


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    return torch.stack(
        [(function(at + step * e) - function(at - step * e)) / (2 * step) for e in torch.eye(len(at)).double()]
    )


@pytest.mark.parametrize("name", sorted(PROBLEMS))
@pytest.mark.parametrize("level", LEVELS)
def test_derivatives_equal_dense_autodiff_and_finite_differences(name: str, level: derivatives.Level) -> None:
    problem = PROBLEMS[name]()
    x, y = problem.initial(torch.Generator().manual_seed(0))
    x, y, v = x + 0.3 * randn(len(x), seed=1), y + 0.3 * randn(len(y), seed=2), randn(len(y), seed=3)
    ragged = getattr(problem.clients, level)
    n = int(ragged.offsets[-1])
    weights = torch.rand(n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    examples = ragged.values
    prepared = derivatives.prepare(problem, x, examples)

    def at(x: Tensor, y: Tensor) -> Tensor:
        return weighted(problem, level, x, y, examples, weights)

    near(derivatives.losses(problem, level, x, y, prepared, weights), at(x, y), 1e-14)
    gradient_y = derivatives.gradient_y(problem, level, x, y, prepared, weights)
    gradient_x = derivatives.gradient_x(problem, level, x, y, examples, prepared, weights)
    near(gradient_y, differences(lambda y: at(x, y), y), 1e-7)
    if name != "closed":
        near(gradient_x, differences(lambda x: at(x, y), x), 1e-7)
    near(gradient_y, jacobian(lambda y: at(x, y), y), 1e-12)
    near(gradient_x, jacobian(lambda x: at(x, y), x), 1e-12)
    if level == "lower":
        H = hessian(lambda y: at(x, y), y)
        near(derivatives.hvp(problem, x, y, v, prepared, weights), H @ v, 1e-11)
        leaf = y.clone().requires_grad_()

        def slope(x: Tensor) -> Tensor:
            (g,) = torch.autograd.grad(at(x, leaf), leaf, create_graph=True)
            return g

        J = jacobian(slope, x).T
        assert J.shape == (len(x), len(y))
        near(derivatives.cross_vjp(problem, x, y, v, examples, prepared, weights), J @ v, 1e-11)
        of_one_graph = derivatives.lower_derivatives(problem, x, y, v, examples, weights)
        for found, expected in zip(of_one_graph, (slope(x), H @ v, J @ v), strict=True):
            near(found, expected.detach(), 1e-11)


@pytest.mark.parametrize("name", sorted(PROBLEMS))
@pytest.mark.parametrize("common", ["x", "y", "both", "neither"])
def test_rows_equal_one_call_per_row(name: str, common: str) -> None:
    """One loss per row, at a point of its own or at a common one."""
    problem, S, b = PROBLEMS[name](), 4, 3
    dx, dy = (len(each) for each in problem.initial(torch.Generator().manual_seed(0)))
    xs, ys, vs = 0.3 * randn(S, dx, seed=1), 0.3 * randn(S, dy, seed=2), randn(S, dy, seed=3)
    x = xs[0] if common in ("x", "both") else xs
    y = ys[0] if common in ("y", "both") else ys
    weights = torch.rand(S, b, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for level in LEVELS:
        ragged = getattr(problem.clients, level)
        index = torch.randint(int(ragged.offsets[-1]), (S, b), generator=torch.Generator().manual_seed(5))
        examples = map_examples(lambda tensor, index=index: tensor[index], ragged.values)
        flat = derivatives.prepare(problem, x, ragged.values) if x.ndim == 1 else None
        prepared = (
            derivatives.prepare(problem, x, examples)
            if flat is None
            else map_examples(lambda tensor, index=index: tensor[index], flat)
        )
        together = [
            derivatives.losses(problem, level, x, y, prepared, weights),
            derivatives.gradient_y(problem, level, x, y, prepared, weights),
            derivatives.gradient_x(problem, level, x, y, examples, prepared, weights),
        ]
        if level == "lower":
            together.append(derivatives.hvp(problem, x, y, vs, prepared, weights))
            together.append(derivatives.cross_vjp(problem, x, y, vs, examples, prepared, weights))
            together.extend(derivatives.lower_derivatives(problem, x, y, vs, examples, weights))
        for s in range(S):
            x_s, y_s = x if x.ndim == 1 else x[s], y if y.ndim == 1 else y[s]
            own = map_examples(lambda tensor, s=s: tensor[s], examples)
            ready = derivatives.prepare(problem, x_s, own)
            alone = [
                derivatives.losses(problem, level, x_s, y_s, ready, weights[s]),
                derivatives.gradient_y(problem, level, x_s, y_s, ready, weights[s]),
                derivatives.gradient_x(problem, level, x_s, y_s, own, ready, weights[s]),
            ]
            if level == "lower":
                alone.append(derivatives.hvp(problem, x_s, y_s, vs[s], ready, weights[s]))
                alone.append(derivatives.cross_vjp(problem, x_s, y_s, vs[s], own, ready, weights[s]))
                alone.extend(derivatives.lower_derivatives(problem, x_s, y_s, vs[s], own, weights[s]))
            for many, single in zip(together, alone, strict=True):
                near(many[s], single, 1e-11)

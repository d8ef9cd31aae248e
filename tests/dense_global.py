"""Dense solves on any problem with a global lower level, client by client: y*(x) by Newton, the hypergradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from fedbilevel import Problem
from fedbilevel.problem import map_examples


def global_loss(problem: Problem, level: str, x: Tensor, y: Tensor) -> Tensor:
    """sum_i p_i mean_e of the losses, client by client."""
    data = problem.clients
    ragged = getattr(data, level)
    total = torch.zeros((), dtype=torch.float64)
    for i, p in enumerate(data.weights):
        rows = slice(int(ragged.offsets[i]), int(ragged.offsets[i + 1]))
        examples = map_examples(lambda tensor, rows=rows: tensor[rows], ragged.values)
        if hasattr(problem, "prepare"):
            examples = problem.prepare(x, examples)
        total = total + float(p) * getattr(problem, level)(x, y, examples).mean()
    return total


def global_gradient_y(problem: Problem, level: str, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """The gradient of `global_loss` in y."""
    y = y if y.requires_grad else y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(global_loss(problem, level, x, y), y, create_graph=create_graph)
    return gradient


def newton(problem: Problem, x: Tensor, y: Tensor) -> Tensor:
    """y*(x) by Newton's method from y."""
    for _ in range(30):
        gradient = global_gradient_y(problem, "lower", x, y)
        if float(gradient.norm()) < 1e-13:  # rounding of its terms, which are of order 1
            return y
        H = hessian(lambda y: global_loss(problem, "lower", x, y), y)
        y = y - torch.linalg.solve(H, gradient)
    raise AssertionError(gradient.norm())


def dense_hypergradient(problem: Problem, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """agg(fx) - agg(J) [agg H]^-1 agg(fy), and agg H."""
    H = hessian(lambda y: global_loss(problem, "lower", x, y), y)
    start = y.clone().requires_grad_()
    J = jacobian(lambda x: global_gradient_y(problem, "lower", x, start, create_graph=True), x).T
    leaf = x.clone().requires_grad_()
    (fx,) = torch.autograd.grad(global_loss(problem, "upper", leaf, y), leaf, allow_unused=True)
    return fx - J @ torch.linalg.solve(H, global_gradient_y(problem, "upper", x, y)), H

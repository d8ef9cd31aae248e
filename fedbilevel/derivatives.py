"""First and second derivatives of the two losses: the one home of every gradient, HVP and cross product.

Each function takes the weight of every example. With weights [n] it differentiates one weighted loss at a common point;
with weights [S, n] there is one loss per row (x and y may then be [S, d], one point per row), all rows at once. Nothing
is ever larger than a gradient: second derivatives are products with a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from fedbilevel.problem import Examples, Problem, has_one_loss, loss_of

Level = Literal["lower", "upper"]
_TOGETHER = 64
"""Rows of a dense Hessian that are computed at one time."""


def prepare(problem: Problem, x: Tensor, examples: Examples) -> Examples:
    """What does not depend on y, for x [dx] and examples [n, ...], or for rows x [S, dx] and examples [S, n, ...]."""
    function = getattr(problem, "prepare", None)
    if function is None:
        return examples
    return function(x, examples) if x.ndim == 1 else vmap(function)(x, examples)


def linearise(problem: Problem, x: Tensor, y: Tensor, prepared: Examples) -> Examples:
    """What does not depend on a direction, at a common point (x [dx], y [dy])."""
    function = getattr(problem, "linearise", None)
    return prepared if function is None else function(x, y, prepared)


def _loss(problem: Problem, level: Level, x: Tensor, y: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
    return (loss_of(problem, level)(x, y, prepared) * weights).sum()


def _through_x(problem: Problem, level: Level, x: Tensor, y: Tensor, examples: Examples, weights: Tensor) -> Tensor:
    return _loss(problem, level, x, y, prepare(problem, x, examples), weights)


def _rows(function: Callable[..., Any], weights: Tensor, examples: Examples, *vectors: Tensor) -> Any:
    """Call function(*vectors, examples, weights), once or row by row as the weights say."""
    if weights.ndim == 1:
        return function(*vectors, examples, weights)
    dims = tuple(0 if vector.ndim == 2 else None for vector in vectors)
    return vmap(function, in_dims=(*dims, 0, 0))(*vectors, examples, weights)


def losses(problem: Problem, level: Level, x: Tensor, y: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
    """The weighted loss of the level, shape [] or [S]."""
    value: Tensor = _rows(lambda x, y, e, w: _loss(problem, level, x, y, e, w), weights, prepared, x, y)
    return value


def gradient_y(problem: Problem, level: Level, x: Tensor, y: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
    """`gy` (level "lower") or `fy` (level "upper"): the gradient in y, shape [dy] or [S, dy]."""
    negative = level == "lower" and has_one_loss(problem)
    closed = getattr(problem, "lower_gradient" if level == "lower" and not negative else "upper_gradient_y", None)
    if closed is not None:
        result: Tensor = closed(x, y, prepared, weights)
        return -result if negative else result

    def single(x: Tensor, y: Tensor, e: Examples, w: Tensor) -> Tensor:
        return torch.as_tensor(grad(lambda y: _loss(problem, level, x, y, e, w))(y))

    value: Tensor = _rows(single, weights, prepared, x, y)
    return value


def gradient_difference(
    problem: Problem, x: Tensor, y: Tensor, anchor: Tensor, prepared: Examples, weights: Tensor
) -> Tensor:
    """`gy(x, y) - gy(x, anchor)` on the same examples, shape [dy] or [S, dy]: the correction of an SVRG step."""
    closed = getattr(problem, "lower_gradient_difference", None)
    if closed is not None:
        result: Tensor = closed(x, y, anchor, prepared, weights)
        return result
    here = gradient_y(problem, "lower", x, y, prepared, weights)
    return here - gradient_y(problem, "lower", x, anchor, prepared, weights)


def hvp(problem: Problem, x: Tensor, y: Tensor, v: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
    """`H v` = (d2 g / dy2) v, shape [dy] or [S, dy]."""
    closed = getattr(problem, "lower_hvp", None)
    if closed is not None:
        result: Tensor = closed(x, y, v, prepared, weights)
        return result

    def single(x: Tensor, y: Tensor, v: Tensor, e: Examples, w: Tensor) -> Tensor:
        def slope(y: Tensor) -> Tensor:
            return torch.dot(grad(lambda y: _loss(problem, "lower", x, y, e, w))(y), v)

        return torch.as_tensor(grad(slope)(y))

    value: Tensor = _rows(single, weights, prepared, x, y, v)
    return value


def is_differentiated(problem: Problem) -> bool:
    """Whether all derivatives of the lower loss are automatic, so that they can share a graph: no closed form is there.

    >>> from fedbilevel.problems import Quadratic
    >>> is_differentiated(Quadratic(clients=1))
    True
    """
    return not any(hasattr(problem, name) for name in ("lower_gradient", "lower_hvp", "cross_vjp"))


def lower_derivatives(
    problem: Problem, x: Tensor, y: Tensor, v: Tensor, examples: Examples, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`gy`, `H v` and `J v` by one graph of a loss without closed forms, shapes [dy], [dy], [dx], or a row of each."""

    def single(x: Tensor, y: Tensor, v: Tensor, e: Examples, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with_pullback: Any = vjp(lambda x, y: grad(lambda y: _through_x(problem, "lower", x, y, e, w))(y), x, y)
        gy, pulled = with_pullback
        Jv, Hv = pulled(v)
        return gy, Hv, Jv

    values: tuple[Tensor, Tensor, Tensor] = _rows(single, weights, examples, x, y, v)
    return values


@dataclass(frozen=True)
class Expansion:
    """Of a lower loss at a point: the gradient `gy`, shape [dy] or [S, dy], and the product v -> `H v`."""

    gradient: Tensor
    product: Callable[[Tensor], Tensor]


def dense_hessian(problem: Problem, x: Tensor, y: Tensor, prepared: Examples, weights: Tensor) -> Tensor:
    """`H` at one common point, written down row by row, some together: [dy, dy], for dimensions that allow it."""
    rows: Tensor = vmap(lambda v: hvp(problem, x, y, v, prepared, weights), chunk_size=_TOGETHER)(
        torch.eye(len(y)).to(y)
    )
    return rows


def hessian(loss: Callable[[Tensor], Tensor], y: Tensor) -> Callable[[Tensor], Tensor]:
    """`v -> H v`, H the Hessian of `loss(y).sum()`, for many products at one point: the gradient's graph is kept."""
    point = y.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(point).sum()
        slope = torch.autograd.grad(value, point, create_graph=True)[0] if value.requires_grad else value

    def product(v: Tensor) -> Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(point)
        return torch.autograd.grad(slope, point, v, retain_graph=True)[0]

    return product


def gradient_x(
    problem: Problem, level: Level, x: Tensor, y: Tensor, examples: Examples, prepared: Examples, weights: Tensor
) -> Tensor:
    """`gx` or `fx`: the gradient in x with y held, through `prepare`, shape [dx] or [S, dx]."""
    negative = level == "lower" and has_one_loss(problem)
    closed = getattr(problem, "upper_gradient_x", None) if level == "upper" or negative else None
    if closed is not None and x.ndim == 1 and y.ndim == 1 and weights.ndim == 1:
        result: Tensor = closed(x, y, examples, prepared, weights)
        return -result if negative else result

    def single(x: Tensor, y: Tensor, e: Examples, w: Tensor) -> Tensor:
        return torch.as_tensor(grad(lambda x: _through_x(problem, level, x, y, e, w))(x))

    value: Tensor = _rows(single, weights, examples, x, y)
    return value


def cross_vjp(
    problem: Problem, x: Tensor, y: Tensor, v: Tensor, examples: Examples, prepared: Examples, weights: Tensor
) -> Tensor:
    """`J v` = d/dx <grad_y g(x, y), v> with v held constant, shape [dx] or [S, dx]."""
    closed = getattr(problem, "cross_vjp", None)
    if closed is not None and x.ndim == 1 and y.ndim == 1 and v.ndim == 1 and weights.ndim == 1:
        result: Tensor = closed(x, y, v, examples, prepared, weights)
        return result

    def single(x: Tensor, y: Tensor, v: Tensor, e: Examples, w: Tensor) -> Tensor:
        def slope(x: Tensor) -> Tensor:
            p = prepare(problem, x, e)
            return torch.dot(grad(lambda y: _loss(problem, "lower", x, y, p, w))(y), v)

        return torch.as_tensor(grad(slope)(x))

    value: Tensor = _rows(single, weights, examples, x, y, v)
    return value


def cross_vjp_sum(
    problem: Problem, x: Tensor, y: Tensor, v: Tensor, examples: Examples, prepared: Examples, weights: Tensor
) -> Tensor:
    """`sum_s J_s v_s` at a common x and y for rows v [S, dy] and weights [S, n], shape [dx]."""
    closed = getattr(problem, "cross_vjp_sum", None)
    if closed is not None:
        result: Tensor = closed(x, y, v, examples, prepared, weights)
        return result

    def slope(x: Tensor) -> Tensor:
        def row(v: Tensor, e: Examples, w: Tensor) -> Tensor:
            p = prepare(problem, x, e)
            return torch.dot(grad(lambda y: _loss(problem, "lower", x, y, p, w))(y), v)

        return torch.as_tensor(vmap(row)(v, examples, weights).sum())

    return torch.as_tensor(grad(slope)(x))

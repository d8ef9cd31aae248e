"""What a network says of the examples of B tasks at common parameters, and products with its Jacobians there.

J is a task's [m, d], m = n C outputs of its n examples, one after another; products with J and its transpose are
forward and reverse derivatives, and only `rows` writes J down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from fedbilevel.problem import Examples
from fedbilevel.tasks import TaskProblem

Outputs = Callable[[Tensor], Tensor]
"""From parameters [d] to all outputs of one set [m]."""


class Jacobian(Protocol):
    """The outputs `value` [B, m] of B tasks at a point, and their Jacobians."""

    @property
    def value(self) -> Tensor:
        """The outputs, [B, m]."""
        ...

    def rows(self) -> Tensor:
        """J [B, m, d]."""
        ...

    def pull(self, c: Tensor) -> Tensor:
        """`J' c` [B, d] for c [B, m]."""
        ...

    def push(self, v: Tensor) -> Tensor:
        """`J v` [B, m] for v [B, d]."""
        ...

    def curve(self, c: Tensor, v: Tensor) -> Tensor:
        """`d/dy sum_k <c_k, J(y) v_k>` [B, d] with c [B, k, m] and v [B, k, d] held."""
        ...


def jacobian(problem: TaskProblem, y: Tensor, examples: Examples, rows: int) -> Jacobian:
    """Of the tasks' examples [B, n, ...] at y [d], by the problem's closed form or by automatic differentiation.

    rows: how many rows of a task's J are computed at one time.
    """
    closed = getattr(problem, "outputs_jacobian", None)
    if closed is not None:
        result: Jacobian = closed(y, examples, rows)
        return result
    return Automatic(problem, y, examples, rows)


class Automatic:
    """By automatic differentiation, all tasks at once."""

    def __init__(self, problem: TaskProblem, y: Tensor, examples: Examples, rows: int) -> None:
        self._problem, self._y, self._examples, self._together = problem, y, examples, rows
        self.value: Tensor = vmap(lambda one: self._outputs(one)(y))(examples)

    def _outputs(self, examples: Examples) -> Outputs:
        return lambda y: self._problem.outputs(y, examples).flatten()

    def rows(self) -> Tensor:
        """So many at one time."""
        y = self._y
        eye = torch.eye(self.value.shape[1], dtype=y.dtype, device=y.device)

        def of(one: Examples) -> Tensor:
            back = vjp(self._outputs(one), y)[1]
            return torch.cat([vmap(lambda row: back(row)[0])(some) for some in eye.split(self._together)])

        return torch.as_tensor(vmap(of)(self._examples))

    def pull(self, c: Tensor) -> Tensor:
        """One reverse derivative."""
        return torch.as_tensor(vmap(lambda one, c: vjp(self._outputs(one), self._y)[1](c)[0])(self._examples, c))

    def push(self, v: Tensor) -> Tensor:
        """Two reverse derivatives: J' c is linear in c."""

        def of(one: Examples, v: Tensor) -> Tensor:
            found = vjp(self._outputs(one), self._y)
            return torch.as_tensor(vjp(lambda c: found[1](c)[0], torch.zeros_like(found[0]))[1](v)[0])

        return torch.as_tensor(vmap(of)(self._examples, v))

    def curve(self, c: Tensor, v: Tensor) -> Tensor:
        """The gradient of reverse derivatives, so many k at one time."""

        def of(one: Examples, c: Tensor, v: Tensor) -> Tensor:
            def value(y: Tensor) -> Tensor:
                back = vjp(self._outputs(one), y)[1]
                return torch.as_tensor(vmap(lambda c, v: torch.dot(back(c)[0], v))(c, v).sum())

            return torch.as_tensor(grad(value)(self._y))

        parts = zip(c.split(self._together, 1), v.split(self._together, 1), strict=True)
        return torch.stack([vmap(of)(self._examples, *part) for part in parts]).sum(0)

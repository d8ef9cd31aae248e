"""Operations that are linear in the clients' losses: gradients and matrix-free second derivatives at a common point."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.operations.registry import operation


@operation(lower=1)
def lower_gradient(cohort: Cohort, x: Tensor, y: Tensor) -> Tensor:
    """`gy_i(x, y)`."""
    return cohort.lower_gradient(x, y)


@operation(upper=1)
def upper_gradient_y(cohort: Cohort, x: Tensor, y: Tensor) -> Tensor:
    """`fy_i(x, y)`."""
    return cohort.upper_gradient_y(x, y)


@operation(upper=1, gives="x")
def upper_gradient_x(cohort: Cohort, x: Tensor, y: Tensor) -> Tensor:
    """`fx_i(x, y)`, the direct gradient."""
    return cohort.upper_gradient_x(x, y)


@operation(lower=2)
def hessian_product(cohort: Cohort, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    """`H_i d`."""
    return cohort.hvp(x, y, d)


@operation(lower=2, about="r")
def neumann_factor(cohort: Cohort, x: Tensor, y: Tensor, r: Tensor, *, neumann_step: float) -> Tensor:
    """`r - lam H_i r`: one factor of the Neumann series."""
    return r - neumann_step * cohort.hvp(x, y, r)


@operation(lower=2, upper=1, about="v")
def linear_system_step(cohort: Cohort, x: Tensor, y: Tensor, v: Tensor, *, neumann_step: float) -> Tensor:
    """`v - lam (H_i v - fy_i)`: one step towards v = H^-1 fy."""
    return v - neumann_step * (cohort.hvp(x, y, v) - cohort.upper_gradient_y(x, y))


@operation(lower=2, upper=1, gives="x")
def hypergradient(cohort: Cohort, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """`h_i = fx_i - J_i v` for the v = H^-1 fy of the server (or its estimate)."""
    return cohort.upper_gradient_x(x, y) - cohort.cross_vjp(x, y, v)


@operation(lower=1, upper=1)
def losses(cohort: Cohort, x: Tensor, y: Tensor) -> Tensor:
    """`(f_i, g_i)`, for evaluation: never counted as communication."""
    return torch.stack([cohort.losses("upper", x, y), cohort.losses("lower", x, y)], dim=-1)

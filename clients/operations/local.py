"""Operations in which each client walks a path of its own: local steps on y, on x, or on both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from clients.cohort import Cohort
from clients.held import Batch
from clients.operations.registry import operation
from fedbilevel.federation.systems import LocalSteps


def _corrected(steps: str) -> Callable[[Mapping[str, Any]], float]:
    """Two gradients per local step; a single step is along what was sent, and needs none."""
    return lambda options: 0.0 if options[steps] == 1 else 2.0


@operation(lower=_corrected("local_steps"), about="y", along=("gradient", "lower_step"), steps="local_steps")
def svrg_steps(
    cohort: Cohort, x: Tensor, y: Tensor, gradient: Tensor, *, lower_step: float, local_steps: LocalSteps
) -> Tensor:
    """FedSVRG, part B: `y_i -= beta (gy_i(x, y_i) - gy_i(x, y) + gbar)`, both on the same minibatch."""
    if local_steps == 1:
        return y - lower_step * gradient
    y_i = cohort.spread(y)
    for batch in cohort.batches(local_steps, y.dtype, "lower"):
        difference = cohort.lower_gradient_difference(x, y_i, y, batch)
        y_i = y_i - lower_step * batch.keep(difference + gradient)
    return y_i


@operation(lower=1, about="y", steps="local_steps")
def sgd_steps(cohort: Cohort, x: Tensor, y: Tensor, *, lower_step: float, local_steps: LocalSteps) -> Tensor:
    """FedSGD: `y_i -= beta gy_i(x, y_i)`."""
    y_i = cohort.spread(y)
    for batch in cohort.batches(local_steps, y.dtype, "lower"):
        y_i = y_i - lower_step * batch.keep(cohort.lower_gradient(x, y_i, batch))
    return y_i


@operation(
    upper=_corrected("upper_local_steps"),
    about="x",
    along=("hypergradient", "upper_step"),
    steps="upper_local_steps",
    epochs_of="upper",
    gives="x",
)
def outer_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    hypergradient: Tensor,
    *,
    upper_step: float,
    upper_local_steps: LocalSteps,
) -> Tensor:
    """FedOut: `x_i -= alpha (fx_i(x_i, y) - fx_i(x, y) + h)`, both on the same minibatch."""
    if upper_local_steps == 1:
        return cohort.beside_rows(x) - upper_step * cohort.beside_rows(hypergradient)
    x_i, x, hypergradient = cohort.spread_x(x), cohort.beside_rows(x), cohort.beside_rows(hypergradient)
    for batch in cohort.batches(upper_local_steps, x.dtype, "upper"):
        difference = cohort.upper_gradient_x(x_i, y, batch) - cohort.upper_gradient_x(x, y, batch)
        x_i = x_i - upper_step * batch.keep(difference + hypergradient)
    return x_i


@operation(upper=1, about="x", steps="upper_local_steps", epochs_of="upper", gives="x")
def direct_steps(cohort: Cohort, x: Tensor, y: Tensor, *, upper_step: float, upper_local_steps: LocalSteps) -> Tensor:
    """`x_i -= alpha fx_i(x_i, y)`: the direct gradient only."""
    x_i = cohort.spread_x(x)
    for batch in cohort.batches(upper_local_steps, x.dtype, "upper"):
        x_i = x_i - upper_step * batch.keep(cohort.upper_gradient_x(x_i, y, batch))
    return x_i


def _local_neumann(
    cohort: Cohort, x: Tensor, y: Tensor, batch: Batch, lam: float, terms: int, index: int | None
) -> Tensor:
    """`lam * sum_{n=0..N} (I - lam H_i)^n fy_i` on each client's own data, or `lam N (I - lam H_i)^N' fy_i`."""
    p = cohort.upper_gradient_y(x, y, batch)
    total = p
    for _ in range(terms if index is None else index):
        p = p - lam * cohort.hvp(x, y, p, batch)
        total = total + p
    return lam * total if index is None else lam * terms * p


def _local_neumann_passes(options: Mapping[str, Any]) -> float:
    index = options["index"]
    return 2.0 + 2.0 * int(options["neumann_terms"] if index is None else index)


@operation(
    lower=_local_neumann_passes,
    upper=2,
    about="x",
    steps="upper_local_steps",
    epochs_of="upper",
    linear_once=False,
    gives="x",
)
def local_hypergradient_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    *,
    upper_step: float,
    neumann_step: float,
    neumann_terms: int,
    index: int | None,
    upper_local_steps: LocalSteps,
) -> Tensor:
    """`x_i -= alpha (fx_i - J_i p_i)` with p_i from the client's own Hessian: biased where clients differ."""
    if upper_local_steps == 1:  # x_i = x for all: no client needs an x of its own
        batch = next(iter(cohort.batches(1, x.dtype, "upper", "lower")))
        p = _local_neumann(cohort, x, y, batch, neumann_step, neumann_terms, index)
        return x - upper_step * cohort.mean_hypergradient(x, y, p, batch)
    x_i = cohort.spread_x(x)
    for batch in cohort.batches(upper_local_steps, x.dtype, "upper", "lower"):
        p = _local_neumann(cohort, x_i, y, batch, neumann_step, neumann_terms, index)
        h = cohort.upper_gradient_x(x_i, y, batch) - cohort.cross_vjp(x_i, y, p, batch)
        x_i = x_i - upper_step * batch.keep(h)
    return x_i


@operation(lower=2, upper=2, about=("x", "y"), steps="local_steps", gives="x y")
def joint_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    *,
    upper_step: float,
    lower_step: float,
    lower_weight: float,
    local_steps: LocalSteps,
) -> tuple[Tensor, Tensor]:
    """Descent on `f_i + c g_i` in x and y at once."""
    x_i, y_i = cohort.spread_x(x), cohort.spread(y)
    for batch in cohort.batches(local_steps, y.dtype, "lower", "upper"):
        dx = cohort.upper_gradient_x(x_i, y_i, batch) + lower_weight * cohort.lower_gradient_x(x_i, y_i, batch)
        dy = cohort.upper_gradient_y(x_i, y_i, batch) + lower_weight * cohort.lower_gradient(x_i, y_i, batch)
        x_i, y_i = x_i - upper_step * batch.keep(dx), y_i - lower_step * batch.keep(dy)
    return x_i, y_i

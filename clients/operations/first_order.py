"""Operations of the first-order methods: differences of lower gradients instead of second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.operations.registry import operation
from fedbilevel.federation.systems import LocalSteps


@operation(lower=3, upper=2, gives="x y x y")
def bome_directions(cohort: Cohort, x: Tensor, y: Tensor, yh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fx_i, fy_i, qx_i = gx_i(x, y) - gx_i(x, yh), gy_i(x, y)`."""
    qx = cohort.lower_gradient_x(x, y) - cohort.lower_gradient_x(x, yh)
    return cohort.upper_gradient_x(x, y), cohort.upper_gradient_y(x, y), qx, cohort.lower_gradient(x, y)


@operation(lower=2, upper=1)
def penalty_gradients(cohort: Cohort, x: Tensor, y: Tensor, z: Tensor, *, penalty: float) -> tuple[Tensor, Tensor]:
    """`fy_i(x, y) + lam gy_i(x, y)` and `gy_i(x, z)`: the inner directions of F2SA."""
    dy = cohort.upper_gradient_y(x, y) + penalty * cohort.lower_gradient(x, y)
    return dy, cohort.lower_gradient(x, z)


@operation(lower=2, upper=1, gives="x")
def penalty_hypergradient(cohort: Cohort, x: Tensor, y: Tensor, z: Tensor, *, penalty: float) -> Tensor:
    """`fx_i(x, y) + lam (gx_i(x, y) - gx_i(x, z))`, the difference on one minibatch."""
    return cohort.upper_gradient_x(x, y) + penalty * (cohort.lower_gradient_x(x, y) - cohort.lower_gradient_x(x, z))


@operation(lower=4, upper=2, steps="local_steps", gives="x y y")
def penalty_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    *,
    penalty: float,
    upper_step: float,
    lower_step: float,
    auxiliary_step: float,
    local_steps: LocalSteps,
) -> tuple[Tensor, Tensor, Tensor]:
    """The directions of MemFBO, all three at the current local point, averaged over the tau_i local steps.

    `dx = fx + lam (gx(y) - gx(z))`, `dy = fy + lam gy(y)`, `dz = gy(z)`; up travel their sums over tau_i.
    """
    x_i, y_i, z_i = start = cohort.spread_x(x), cohort.spread(y), cohort.spread(z)
    qx, qy, qz = (torch.zeros_like(each) for each in start)
    tau: Tensor | float = 0.0
    for batch in cohort.batches(local_steps, y.dtype, "lower", "upper"):
        gx = cohort.lower_gradient_x(x_i, y_i, batch) - cohort.lower_gradient_x(x_i, z_i, batch)
        dx = batch.keep(cohort.upper_gradient_x(x_i, y_i, batch) + penalty * gx)
        dy = batch.keep(cohort.upper_gradient_y(x_i, y_i, batch) + penalty * cohort.lower_gradient(x_i, y_i, batch))
        dz = batch.keep(cohort.lower_gradient(x_i, z_i, batch))
        qx, qy, qz = qx + dx, qy + dy, qz + dz
        x_i, y_i, z_i = x_i - upper_step * dx, y_i - lower_step * dy, z_i - auxiliary_step * dz
        tau = tau + (1.0 if batch.active is None else batch.active)
    return qx / tau, qy / tau, qz / tau

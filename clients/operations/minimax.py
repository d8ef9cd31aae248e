"""Operations of minimax problems: the field of descent in x and ascent in y, and local steps along it.

At z = (x, y) a client has `F_i(z) = (fx_i, -fy_i)`, both parts on one minibatch: there is one loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clients.cohort import Cohort
from clients.held import Batch
from clients.operations.registry import operation
from fedbilevel.federation.systems import LocalSteps

Field = tuple[Tensor, Tensor]
COST = 2.0
"""What F costs: two gradients of the upper loss."""


def _field(cohort: Cohort, x: Tensor, y: Tensor, batch: Batch | None = None) -> Field:
    """`fx, -fy` on one minibatch."""
    return cohort.upper_gradient_x(x, y, batch), -cohort.upper_gradient_y(x, y, batch)


@operation(upper=COST, gives="x y")
def field(cohort: Cohort, x: Tensor, y: Tensor) -> Field:
    """`F_i(z)` at a common point."""
    return _field(cohort, x, y)


@operation(upper=COST, about=("x", "y"), steps="local_steps", epochs_of="upper", gives="x y")
def descent_ascent_steps(
    cohort: Cohort, x: Tensor, y: Tensor, *, upper_step: float, lower_step: float, local_steps: LocalSteps
) -> Field:
    """`z_i -= eta F_i(z_i)`, x and y at once."""
    x_i, y_i = cohort.spread_x(x), cohort.spread(y)
    for batch in cohort.batches(local_steps, y.dtype, "upper"):
        dx, dy = _field(cohort, x_i, y_i, batch)
        x_i, y_i = x_i - upper_step * batch.keep(dx), y_i - lower_step * batch.keep(dy)
    return x_i, y_i


def _tracked(options: Mapping[str, Any]) -> float:
    """Two fields per local step; a single step is along what was sent, and needs none."""
    return 0.0 if options["local_steps"] == 1 else 2.0 * COST


@operation(
    upper=_tracked,
    about=("x", "y"),
    along=(("dx", "upper_step"), ("dy", "lower_step")),
    steps="local_steps",
    epochs_of="upper",
    upper_reads=("x", "dx"),
    gives="x y",
)
def tracked_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    dx: Tensor,
    dy: Tensor,
    *,
    upper_step: float,
    lower_step: float,
    local_steps: LocalSteps,
) -> Field:
    """`z_i -= eta (F_i(z_i) - F_i(z) + Fbar)`, both on the same minibatch, `Fbar = (dx, dy)`."""
    if local_steps == 1:
        return cohort.beside_rows(x) - upper_step * cohort.beside_rows(dx), y - lower_step * dy
    x_i, y_i, x, dx = cohort.spread_x(x), cohort.spread(y), cohort.beside_rows(x), cohort.beside_rows(dx)
    for batch in cohort.batches(local_steps, y.dtype, "upper"):
        (here_x, here_y), (start_x, start_y) = _field(cohort, x_i, y_i, batch), _field(cohort, x, y, batch)
        x_i = x_i - upper_step * batch.keep(here_x - start_x + dx)
        y_i = y_i - lower_step * batch.keep(here_y - start_y + dy)
    return x_i, y_i

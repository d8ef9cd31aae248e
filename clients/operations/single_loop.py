"""Operations of the single-loop methods: the three directions of x, y and v at one point, and local steps along them.

At (x, y, v) a client has `dx = fx_i - J_i v`, `dy = gy_i` and `dv = H_i v - fy_i`; in a local step all three are taken
on the same minibatches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.cohort import Cohort
from clients.held import Batch
from clients.operations.registry import operation
from fedbilevel.federation.messages import Kept
from fedbilevel.federation.systems import LocalSteps

Directions = tuple[Tensor, Tensor, Tensor]
LOWER, UPPER = 5.0, 2.0
"""What the three directions cost: of the lower loss a gradient and two products, of the upper loss two gradients."""


def _directions(cohort: Cohort, x: Tensor, y: Tensor, v: Tensor, batch: Batch | None = None) -> Directions:
    """`dx, dy, dv` on one minibatch."""
    gy, Hv, Jv = cohort.lower_derivatives(x, y, v, batch)
    return cohort.upper_gradient_x(x, y, batch) - Jv, gy, Hv - cohort.upper_gradient_y(x, y, batch)


@operation(lower=LOWER, upper=UPPER, gives="x y y")
def single_loop_directions(cohort: Cohort, x: Tensor, y: Tensor, v: Tensor) -> Directions:
    """`dx, dy, dv` at a common point."""
    return _directions(cohort, x, y, v)


@operation(lower=LOWER + 2.0, upper=UPPER, gives="x y y y")
def probed_directions(cohort: Cohort, x: Tensor, y: Tensor, v: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """`dx, dy, dv` at a common point, and `H_i d` for a probe d [dy] of the lower level's curvature."""
    return (*_directions(cohort, x, y, v), cohort.hvp(x, y, d))


@operation(lower=3, upper=1, steps="local_steps")
def lower_level_steps(
    cohort: Cohort, x: Tensor, y: Tensor, v: Tensor, *, lower_step: float, local_steps: LocalSteps
) -> tuple[Tensor, Tensor]:
    """The sums of `dy` and `dv` along tau_i local steps `(y_i, v_i) -= beta (dy, dv)`, x held."""
    y_i, v_i = cohort.spread(y), cohort.spread(v)
    qy, qv = torch.zeros_like(y_i), torch.zeros_like(v_i)
    for batch in cohort.batches(local_steps, y.dtype, "lower", "upper"):
        dy = batch.keep(cohort.lower_gradient(x, y_i, batch))
        dv = batch.keep(cohort.hvp(x, y_i, v_i, batch) - cohort.upper_gradient_y(x, y_i, batch))
        y_i, v_i, qy, qv = y_i - lower_step * dy, v_i - lower_step * dv, qy + dy, qv + dv
    return qy, qv


def _common(options: Mapping[str, Any]) -> bool:
    """Whether the coefficients are those of all clients, so that one step is linear in the losses."""
    a = options["coefficients"]
    return a is None or not isinstance(a[0], list)


def _coefficients(cohort: Cohort, spec: Sequence[Any], step: int, like: Tensor) -> Tensor | float:
    """`a_i^k`: one number for all, or one per client [S, 1], 0 where a client has no such step."""
    if not isinstance(spec[0], list):
        return float(spec[step])
    own = [spec[client][step] if step < len(spec[client]) else 0.0 for client in cohort.held.clients]
    return torch.tensor(own, dtype=like.dtype, device=like.device)[:, None]


@operation(lower=LOWER, upper=UPPER, steps="local_steps", gives="x y y", linear_once=_common)
def single_loop_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    *,
    upper_step: float,
    lower_step: float,
    neumann_step: float,
    local_steps: LocalSteps,
    coefficients: Sequence[Any] | None,
    normalised: bool,
) -> Directions:
    """The sums `q = sum_k a_i^k d` of the directions along tau_i local steps (SimFBO); normalised: `q / |a_i|_1`."""
    x_i, y_i, v_i = start = cohort.spread_x(x), cohort.spread(y), cohort.spread(v)
    qx, qy, qv = (torch.zeros_like(each) for each in start)
    length: Tensor | float = 0.0
    for k, batch in enumerate(cohort.batches(local_steps, y.dtype, "lower", "upper")):
        a = 1.0 if coefficients is None else _coefficients(cohort, coefficients, k, y)
        dx, dy, dv = (batch.keep(a * d) for d in _directions(cohort, x_i, y_i, v_i, batch))
        qx, qy, qv = qx + dx, qy + dy, qv + dv
        x_i, y_i, v_i = x_i - upper_step * dx, y_i - lower_step * dy, v_i - neumann_step * dv
        length = length + (a if batch.active is None else a * batch.active)
    return (qx / length, qy / length, qv / length) if normalised else (qx, qy, qv)


@operation(lower=LOWER, upper=UPPER, steps="local_steps", about=("x", "y", "v"), gives="x y y")
def simultaneous_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    *,
    upper_step: float,
    lower_step: float,
    neumann_step: float,
    local_steps: LocalSteps,
) -> Directions:
    """`(x_i, y_i, v_i) -= (eta_x dx, eta_y dy, eta_v dv)`, tau_i times (FedBiO)."""
    x_i, y_i, v_i = cohort.spread_x(x), cohort.spread(y), cohort.spread(v)
    for batch in cohort.batches(local_steps, y.dtype, "lower", "upper"):
        dx, dy, dv = (batch.keep(d) for d in _directions(cohort, x_i, y_i, v_i, batch))
        x_i, y_i, v_i = x_i - upper_step * dx, y_i - lower_step * dy, v_i - neumann_step * dv
    return x_i, y_i, v_i


def _variance_reduced(
    cohort: Cohort,
    z: Sequence[Tensor],
    m: Sequence[Tensor] | None,
    steps: tuple[float, float, float],
    momentum_decay: float,
    local_steps: LocalSteps,
) -> tuple[Tensor, ...]:
    """`z_i -= eta m_i`, then `m_i = D(z_i; B) + (1 - c) (m_i - D(z_old; B))`, both on one minibatch, tau_i times."""
    for batch in cohort.batches(local_steps, z[1].dtype, "lower", "upper"):
        old = _directions(cohort, z[0], z[1], z[2], batch)
        m = old if m is None else m
        z = [each - step * batch.keep(d) for each, step, d in zip(z, steps, m, strict=True)]
        new = _directions(cohort, z[0], z[1], z[2], batch)
        after = [a + (1.0 - momentum_decay) * (d - b) for a, d, b in zip(new, m, old, strict=True)]
        m = [d + batch.keep(e - d) for d, e in zip(m, after, strict=True)]
    return (*z, *(m or ()))


def _twice(cost: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda options: 2.0 * cost  # at the new and at the old point


def _left(options: Mapping[str, Any], taus: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(1 - c)^tau`: what is left of m where no fresh direction comes in."""
    return np.asarray((1.0 - options["momentum_decay"]) ** taus, dtype=np.float64)


def _moved(options: Mapping[str, Any], taus: NDArray[np.float64]) -> NDArray[np.float64]:
    """`-eta_x sum_{k < tau} (1 - c)^k`: how far x goes there along m."""
    c = options["momentum_decay"]
    return -float(options["upper_step"]) * (taus if c == 0.0 else (1.0 - _left(options, taus)) / c)


@operation(
    lower=_twice(LOWER),
    upper=_twice(UPPER),
    steps="local_steps",
    about=("x", "y", "v", None, None, None),
    gives="x y y x y y",
    upper_reads=("x", "mx"),
    elsewhere=(("mx", _moved), None, None, ("mx", _left), None, None),
)
def variance_reduced_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    mx: Tensor,
    my: Tensor,
    mv: Tensor,
    *,
    upper_step: float,
    lower_step: float,
    neumann_step: float,
    momentum_decay: float,
    local_steps: LocalSteps,
) -> tuple[Tensor, ...]:
    """tau_i steps of (x, y, v) along the variance-reduced directions m (FedBiOAcc), and what has become of m."""
    z = (cohort.spread_x(x), cohort.spread(y), cohort.spread(v))
    m = (cohort.spread_x(mx), cohort.spread(my), cohort.spread(mv))
    return _variance_reduced(cohort, z, m, (upper_step, lower_step, neumann_step), momentum_decay, local_steps)


@operation(
    lower=_twice(LOWER),
    upper=_twice(UPPER),
    steps="local_steps",
    about=("x", "y", "v", None, None, None),
    gives="x y y x y y",
    linear_once=False,
)
def first_variance_reduced_steps(
    cohort: Cohort,
    x: Tensor,
    y: Tensor,
    v: Tensor,
    *,
    upper_step: float,
    lower_step: float,
    neumann_step: float,
    momentum_decay: float,
    local_steps: LocalSteps,
) -> tuple[Tensor, ...]:
    """The same where nobody has an m yet: `m_i = D(z; B)` to begin with."""
    z = (cohort.spread_x(x), cohort.spread(y), cohort.spread(v))
    return _variance_reduced(cohort, z, None, (upper_step, lower_step, neumann_step), momentum_decay, local_steps)


# ---- one step, and what clients keep ----


def _flat(cohort: Cohort, parts: Sequence[Tensor]) -> Tensor:
    """Rows of several vectors as one row per client."""
    return torch.cat([part.expand(len(cohort), -1) for part in parts], dim=1)


def _parts(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.split(rows, [part.shape[-1] for part in like], dim=1))


@operation(lower=LOWER, upper=UPPER, gives="x y y", keeps="kept")
def momentum_directions(
    cohort: Cohort, x: Tensor, y: Tensor, v: Tensor, *, momentum: float, kept: Kept
) -> tuple[Tensor, ...]:
    """`m_i = b m_i + (1 - b) d_i` of each direction, which the client keeps; `m_i = d_i` at first (BR-FedBi-M)."""
    d = _directions(cohort, cohort.beside_rows(x), y, v)
    now = _flat(cohort, d)
    if kept.known.any():
        known = torch.from_numpy(kept.known).to(now.device)[:, None]
        now = torch.where(known, momentum * kept.rows + (1.0 - momentum) * now, now)
    return (*_parts(now, d), now)


@operation(
    lower=lambda options: LOWER * (1 if options["full"] else 2),
    upper=lambda options: UPPER * (1 if options["full"] else 2),
    whole=lambda options: bool(options["full"]),
    gives="x y y",
    keeps="kept",
)
def page_directions(cohort: Cohort, x: Tensor, y: Tensor, v: Tensor, *, full: bool, kept: Kept) -> tuple[Tensor, ...]:
    """PAGE's estimates of the directions, which the client keeps beside the point z = (x, y, v) that they are of.

    `g_i = D(z)` on all examples where the server's coin says so (`full`) and for a client that is asked the first time;
    else `g_i += D(z; B) - D(z_old; B)` on one minibatch (BR-FedBi-P).
    """
    x = cohort.beside_rows(x)
    here = _flat(cohort, (x, y, v))
    width = here.shape[1]
    known = torch.from_numpy(kept.known).to(here.device)[:, None]
    parts: Sequence[Tensor] = (x, y, v)
    now = here
    if full or not kept.known.all():
        now = _flat(cohort, _directions(cohort, x, y, v, cohort.everything("lower", "upper", dtype=y.dtype)))
    if not full and kept.known.any():
        g, z = torch.split(kept.rows, [width, width], dim=1)
        x_old, y_old, v_old = _parts(z, parts)
        drawn = cohort.drawn("lower", "upper", dtype=y.dtype)
        new, old = _directions(cohort, x, y, v, drawn), _directions(cohort, x_old, y_old, v_old, drawn)
        now = torch.where(known, g + _flat(cohort, new) - _flat(cohort, old), now)
    return (*_parts(now, parts), torch.cat([now, here], dim=1))

"""Whether the steps of a fixed-step solver are short enough for the curvature that a gradient flow meets."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.tasks import TaskBatch
from fedbilevel.errors import RunFailed

STABLE = {"euler": 2.0, "midpoint": 2.0, "rk4": 2.785}
"""step * curvature up to which the solver's solution of dy/dt = -curvature * y decays."""
_PRODUCTS = 12


class UnstableFlow(RunFailed):
    """The steps of a solver are too long for the curvature that the flow meets."""


class Watch:
    """Refuses steps that make a flow unstable. Along a flow the loss falls: what it costs is one loss at each end.

    Only where |grad L| or the loss of a task grows, or is not finite, the curvature is estimated where that began; a
    slope that may grow (the loss is not convex) has to double before it is looked at again.

    refuse: otherwise `met` [B] notes the tasks whose loss has grown, which no exact flow does, and only numbers that
    are not finite are refused.
    """

    def __init__(self, tasks: TaskBatch, y: Tensor, h: float, solver: str, *, refuse: bool = True) -> None:
        self.tasks, self.h, self.solver, self.refuse = tasks, h, solver, refuse
        self.met = torch.zeros_like(y[:, 0])
        self._loss = tasks.losses("lower", y)
        self._allowed: Tensor | None = None
        self._y, self._g = y, y

    def slope(self, y: Tensor, g: Tensor) -> None:
        """Look at grad L = g at y, the next state. Raises UnstableFlow."""
        size = torch.linalg.vector_norm(g, dim=-1)
        if self._allowed is None:
            self._allowed = size * (1 + 1e-6)
        elif not bool((size <= self._allowed).all()):
            self._examine(~(size <= self._allowed), g)
            self._allowed = torch.maximum(self._allowed, 2 * size)
        self._y, self._g = y, g

    def end(self, y: Tensor) -> None:
        """Look at the loss at the last state. Raises UnstableFlow."""
        loss = self.tasks.losses("lower", y)
        grew = ~(loss <= self._loss + 1e-6 * self._loss.abs())
        self.met = torch.maximum(self.met, grew.to(self.met.dtype))
        if bool(grew.any()):
            self._examine(grew, y - self._y)

    def _examine(self, grew: Tensor, direction: Tensor) -> None:
        finite = torch.isfinite(direction).all(-1)
        if not self.refuse and bool(finite.all()):
            return
        start = torch.where(finite[:, None], direction, self._g)
        largest = float(curvature(self.tasks, self._y, start)[grew].max())
        refuse(self.h, self.solver, largest, finite=bool(finite.all()))


def refuse(h: float, solver: str, largest: float, *, finite: bool) -> None:
    """Raises UnstableFlow if steps h are too long for the curvature, or led out of the finite numbers."""
    bound = STABLE[solver] / largest if largest > 0 else float("inf")
    remedy = "take a smaller horizon or more ode_steps"
    about = f"the largest curvature of a support loss is about {largest:.3g}"
    if h > bound:
        raise UnstableFlow(
            f"step h = {h:.4g} of the {solver} flow is unstable: {about}, stable below {bound:.3g}; {remedy}"
        )
    if not finite:
        raise UnstableFlow(f"a step h = {h:.4g} of the {solver} flow leaves the finite numbers where {about}; {remedy}")


def curvature(tasks: TaskBatch, y: Tensor, start: Tensor) -> Tensor:
    """The largest eigenvalue of Hess L(y) of every task, [B], from below: a few power iterations.

    Where the eigenvalue of largest size is negative, they are repeated with the Hessian shifted by its size.
    """
    hessian = tasks.hessian(y)
    start = start / start.abs().amax(-1, keepdim=True).clamp_min(1e-30)  # its square may be beyond the numbers
    shift = torch.zeros_like(start[:, :1])
    value = shift[:, 0]
    for _ in range(2):
        v = start
        for _ in range(_PRODUCTS):
            v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(1e-30)
            product = hessian(v)
            value = (v * product).sum(-1)
            v = product + shift * v
        if bool((value >= 0).all()):
            break
        shift = torch.where(value < 0, value.abs(), 0.0)[:, None]
    return value

"""iMAML: parameters held near the shared ones by a proximal term; the implicit gradient needs no path of adaptation.

Also the inner solvers that every implicit method uses. They minimise J(z) = data(z) + penalty(z), where data is the
support loss and the penalty is a sum over coordinates whose proximal step has a closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clients.methods.method import Adapted, Method, Settings, method
from clients.solvers.conjugate_gradients import Product, Solution, solve
from clients.tasks import TaskBatch
from fedbilevel.derivatives import Level

MOMENTUM = 0.9
HALVINGS = 40


class Proximal:
    """`J(y) = L(y) + 1/2 sum_j precision_j (y_j - x_j)^2` of every task; precision [d], z = y [B, d]."""

    def __init__(self, tasks: TaskBatch, x: Tensor, precision: Tensor) -> None:
        self.tasks, self.x, self.precision = tasks, tasks.spread(x), precision

    def start(self) -> Tensor:
        """`x`."""
        return self.x

    def loss(self, level: Level, z: Tensor) -> Tensor:
        """`L` or `f` at z, [B]."""
        return self.tasks.losses(level, z)

    def slope(self, level: Level, z: Tensor) -> Tensor:
        """The gradient of `loss` in z."""
        return self.tasks.gradient(level, z)

    def hessian(self, z: Tensor) -> Product:
        """The products of the Hessian of the support loss at z with vectors as z."""
        return self.tasks.hessian(z)

    def penalty(self, z: Tensor) -> Tensor:
        """What J adds to the support loss, [B]."""
        return 0.5 * (self.precision * (z - self.x) ** 2).sum(-1)

    def pull(self, z: Tensor) -> Tensor:
        """The gradient of the penalty."""
        return self.precision * (z - self.x)

    def curvature(self, z: Tensor) -> Tensor:
        """The diagonal Hessian of the penalty, [d] or as z."""
        return self.precision

    def step(self, z: Tensor, length: float) -> Tensor:
        """The proximal step: argmin_w penalty(w) + |w - z|^2 / (2 length)."""
        return z + length * self.precision / (1 + length * self.precision) * (self.x - z)


def implicit(objective: Proximal, z: Tensor, rhs: Tensor, o: Settings) -> Solution:
    """`u = (Hess J(z))^-1 rhs`, in coordinates in which the penalty's Hessian is the identity.

    There the eigenvalues are at least 1 wherever the support loss is convex. Residuals are measured, and damping is
    added, in these coordinates: damping D makes the penalty's Hessian 1 + D times what it is.
    """
    scale, product = objective.curvature(z).rsqrt(), objective.hessian(z)
    found = solve(
        lambda v: v + scale * product(scale * v),
        scale * rhs,
        steps=o["cg_steps"],
        tolerance=o["cg_tolerance"],
        damping=o["damping"],
    )
    return Solution(scale * found.u, found.negative, found.added, found.skipped, found.residual)


def minimise(objective: Proximal, o: Settings) -> Tensor:
    """Return z after `local_steps` steps of the inner solver from the start, no history kept.

    "gd": proximal gradient steps, z = step(z - eta grad L(z)). For a quadratic penalty that is gradient descent on J
    with step 1 / (1/eta + precision): a step that L alone allows is safe whatever the precision. "momentum": the same,
    extrapolated with 0.9 (Nesterov; Beck & Teboulle, 2009). "newton": see `newton`; it does not use `lower_step`.
    """
    if o["inner_solver"] == "newton":
        return newton(objective, o)
    length, ahead = o["lower_step"], MOMENTUM if o["inner_solver"] == "momentum" else 0.0
    z = before = objective.start()
    for _ in range(o["local_steps"]):
        point = z + ahead * (z - before)
        before, z = z, objective.step(point - length * objective.slope("lower", point), length)
    return z


def newton(objective: Proximal, o: Settings) -> Tensor:
    """Newton's method by conjugate gradients, damped where J is not convex, each task with a step length of its own.

    A step is halved until J is defined (not NaN) and falls enough (Armijo), but for rounding errors of J; where no
    damping makes the Hessian positive, the step is along the gradient. A task for which no step is short enough stays.
    """
    z = objective.start()
    eps = torch.finfo(z.dtype).eps

    def value(z: Tensor) -> Tensor:
        return objective.loss("lower", z) + objective.penalty(z)

    for _ in range(o["local_steps"]):
        gradient = objective.slope("lower", z) + objective.pull(z)
        found = implicit(objective, z, gradient, o)
        u = torch.where(found.skipped[:, None], gradient / objective.curvature(z), found.u)
        along, here = (gradient * u).sum(-1), value(z)
        moved, left, length = z, along > 0, torch.ones_like(along)
        for _ in range(HALVINGS):
            if not bool(left.any()):
                break
            trial = z - length[:, None] * u
            enough = left & (value(trial) <= here - 1e-4 * length * along + 10 * eps * here.abs())
            moved, left, length = torch.where(enough[:, None], trial, moved), left & ~enough, length / 2
        z = moved
    return z


def reports(found: Solution) -> tuple[Tensor, Tensor]:
    """`negative_curvature` and `cg_residual` of every task."""
    return found.negative.to(found.u.dtype), found.residual


def support_passes(o: Settings) -> float:
    """Support passes of a meta-gradient when no solve stops early: a solve takes cg_steps + 1 products of 2 passes.

    Solving again with damping is not in it: whether it happens depends on the data.
    """
    solved: float = 2.0 * (o["cg_steps"] + 1)
    step = 1.0 + (solved if o["inner_solver"] == "newton" else 0.0)
    return solved + float(o["local_steps"]) * step


@method("imaml")
class ImplicitMaml(Method):
    """`y ~ argmin L(y) + lam/2 |y - x|^2`; memory independent of the number of inner steps.

    Reported: `negative_curvature`, 1 for a task whose Hess L + lam was met to be indefinite, and `cg_residual`, the
    relative residual of its linear system. A task whose system no damping repairs contributes zero (residual 1).
    """

    reports = ("negative_curvature", "cg_residual")

    @staticmethod
    def _objective(tasks: TaskBatch, x: Tensor, o: Settings) -> Proximal:
        return Proximal(tasks, x, torch.full_like(x, o["proximal"]))

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """`y`, by the inner solver."""
        return Adapted(minimise(self._objective(tasks, x, o), o))

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`(I + Hess L(y) / lam)^-1 grad f(y)` at the y that the inner solver reached, minimal or not."""
        objective = self._objective(tasks, x, o)
        y = minimise(objective, o)
        found = implicit(objective, y, objective.slope("upper", y), o)
        return objective.precision * found.u, reports(found)

    def passes(self, o: Settings) -> tuple[float, float]:
        """Inner gradients and Hessian products (`support_passes`); one query gradient."""
        return support_passes(o), 1.0

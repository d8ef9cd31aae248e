"""A-MAML: the meta-gradient by the adjoint of the gradient flow (Li et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.methods.method import Adapted, Method, Settings, method
from clients.solvers.flow import STAGES, Path, flow, grid_steps, horizon, solve
from clients.tasks import TaskBatch


@method("a-maml")
class AdjointMaml(Method):
    """da/dt = Hess L(y(t)) a from a(T) = grad f(y(T)) back to a(0): Hessian products along the path, no graph.

    `adjoint`: "stored" keeps the states (and stages) of the forward grid; "backward" runs y backwards beside a, which
    needs no memory but amplifies every error by exp(curvature * T).

    Reports the share of tasks whose support loss grew along the flow, which steps too long for its curvature make; it
    is not zero only with `unstable` = "report", since "refuse" ends the run.
    """

    reports = ("unstable",)

    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """y(T)."""
        return Adapted(flow(tasks, x, o))

    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """a(0)."""
        path = Path()
        if o["adjoint"] == "backward":
            gradient = _backward(tasks, flow(tasks, x, o), o)
        else:
            a = tasks.gradient("upper", flow(tasks, x, o, path))
            gradient = _sweep(tasks, path, a, o)
        return gradient, (torch.zeros_like(gradient[:, 0]) if path.unstable is None else path.unstable,)

    def passes(self, o: Settings) -> tuple[float, float]:
        """A gradient and a product per stage and step; dopri5 is counted as if it took `ode_steps` steps."""
        stages, steps = STAGES[o["solver"]], grid_steps(o)
        again = steps * stages if o["adjoint"] == "backward" else int(o["solver"] == "rk4")
        return float(3 * steps * stages + again), 1.0


def _sweep(tasks: TaskBatch, path: Path, a: Tensor, o: Settings) -> Tensor:
    """a(0) along the stored path. Euler and midpoint: the exact transpose of the forward steps."""
    if horizon(o) == 0.0:
        return a
    if o["solver"] == "dopri5":
        return solve(lambda t, a: tasks.hvp(path.at(float(t)), a), a, horizon(o), 0.0, o, 0)
    steps = grid_steps(o)
    h = horizon(o) / steps
    for k in reversed(range(steps)):
        if o["solver"] == "euler":
            a = a - h * path.products.pop()(a)
        elif o["solver"] == "midpoint":
            b = path.products.pop()(a)
            a = a - h * b + 0.5 * h * h * path.products.pop()(b)
        else:
            middle = path.middle(k)
            b1 = tasks.hvp(path.states[k + 1], a)
            b2 = tasks.hvp(middle, a - 0.5 * h * b1)
            b3 = tasks.hvp(middle, a - 0.5 * h * b2)
            b4 = tasks.hvp(path.states[k], a - h * b3)
            a = a - h / 6 * (b1 + 2 * b2 + 2 * b3 + b4)
    return a


def _backward(tasks: TaskBatch, end: Tensor, o: Settings) -> Tensor:
    """a(0) with y run backwards from y(T) in the same solve."""

    def rate(t: Tensor, state: Tensor) -> Tensor:
        y, a = state.unbind(1)
        return torch.stack([-tasks.gradient("lower", y), tasks.hvp(y, a)], 1)

    state = torch.stack([end, tasks.gradient("upper", end)], 1)
    return solve(rate, state, horizon(o), 0.0, o, grid_steps(o))[:, 1]

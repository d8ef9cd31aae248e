"""Gradient descent as a flow, dy/dt = -grad L(y) from y(0) = x to the horizon T, and the solvers that run it.

Euler, midpoint and the classical fourth-order rule are written out here, for the backward sweep goes through the very
states (and, of midpoint, stages) of the forward one. torchdiffeq runs what is adaptive and what keeps no path.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clients.solvers.stability import UnstableFlow, Watch
from clients.tasks import TaskBatch

STAGES = {"euler": 1, "midpoint": 2, "rk4": 4, "dopri5": 6}
"""Right sides of a step."""
MOST_STEPS = 100_000


def horizon(o: Mapping[str, Any]) -> float:
    """T: as it is given, or that of K gradient steps."""
    given = o.get("horizon")
    return float(o["local_steps"] * o["lower_step"] if given is None else given)


def grid_steps(o: Mapping[str, Any]) -> int:
    """The steps of a fixed-step solver: as given, or K."""
    given = o.get("ode_steps")
    return int(o["local_steps"] if given is None else given)


@dataclass
class Path:
    """States y [B, d] of a flow at increasing times and grad L there, between which the sweep back interpolates.

    products: of Euler and midpoint, instead of both, those with Hess L at every point where grad L was taken.
    unstable [B]: 1 for the tasks whose loss has grown along the flow; None where the solver chooses its steps.
    """

    times: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)
    products: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    unstable: Tensor | None = None

    def keep(self, time: float, y: Tensor, slope: Tensor | None = None) -> None:
        """Append."""
        self.times.append(time)
        self.states.append(y)
        if slope is not None:
            self.slopes.append(slope)

    def middle(self, k: int) -> Tensor:
        """The state halfway between the times k and k + 1: the cubic Hermite interpolant, exact up to O(h^4)."""
        return self.at(0.5 * (self.times[k] + self.times[k + 1]))

    def at(self, time: float) -> Tensor:
        """The state by cubic Hermite interpolation; dy/dt = -grad L."""
        k = min(max(bisect_right(self.times, time) - 1, 0), len(self.times) - 2)
        h = self.times[k + 1] - self.times[k]
        s = (time - self.times[k]) / h
        left = (1 + 2 * s) * (1 - s) ** 2 * self.states[k] - h * s * (1 - s) ** 2 * self.slopes[k]
        return left + s * s * (3 - 2 * s) * self.states[k + 1] + h * s * s * (1 - s) * self.slopes[k + 1]


def flow(tasks: TaskBatch, x: Tensor, o: Mapping[str, Any], path: Path | None = None) -> Tensor:
    """y(T) [B, d]; the path, if one is given, receives what the backward sweep needs.

    Raises UnstableFlow, with the stable step, if the steps are too long.
    """
    y, T, solver = tasks.spread(x), horizon(o), o["solver"]
    if T == 0.0:
        return y
    if solver == "dopri5":
        end = solve(lambda t, y: -tasks.gradient("lower", y), y, 0.0, T, o, 0, path)
        if path is not None:
            path.keep(T, end)
            path.slopes = [tasks.gradient("lower", y) for y in path.states]
        return end
    steps = grid_steps(o)
    h = T / steps
    watch = Watch(tasks, y, h, solver, refuse=o.get("unstable") != "report")

    def slope(y: Tensor) -> Tensor:
        if path is None or solver == "rk4":
            return tasks.gradient("lower", y)
        here = tasks.expansion(y)
        path.products.append(here.product)
        return here.gradient

    for k in range(steps):
        g = slope(y)
        watch.slope(y, g)
        if path is not None and solver == "rk4":
            path.keep(k * h, y, g)
        y = _step(slope, y, g, h, solver)
    if path is not None and solver == "rk4":
        g = slope(y)
        watch.slope(y, g)
        path.keep(T, y, g)
    watch.end(y)
    if path is not None:
        path.unstable = watch.met
    return y


def _step(slope: Callable[[Tensor], Tensor], y: Tensor, g: Tensor, h: float, solver: str) -> Tensor:
    if solver == "euler":
        return y - h * g
    if solver == "midpoint":
        return y - h * slope(y - 0.5 * h * g)
    g2 = slope(y - 0.5 * h * g)
    g3 = slope(y - 0.5 * h * g2)
    g4 = slope(y - h * g3)
    return y - h / 6 * (g + 2 * g2 + 2 * g3 + g4)


def solve(
    rate: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    start: float,
    end: float,
    o: Mapping[str, Any],
    steps: int,
    path: Path | None = None,
) -> Tensor:
    """The state [B, ...] at `end` of d state/dt = rate(t, state), by torchdiffeq; only the two ends are held.

    A fixed-step solver makes so many steps (its "rk4" is the 3/8 rule, of fourth order too). dopri5 chooses steps that
    all tasks share, such that the error of every entry stays below rtol and atol; the path, if given, receives
    the states from which it steps. Raises UnstableFlow if dopri5 finds no step.
    """
    if start == end:
        return state
    from torchdiffeq import odeint  # brings scipy, which takes every process of a run a third of a second

    times = torch.tensor([start, end], dtype=torch.float64, device=state.device)
    if o["solver"] != "dopri5":
        grid = torch.linspace(start, end, steps + 1, dtype=torch.float64, device=state.device)
        options: dict[str, Any] = {"grid_constructor": lambda f, y, t: grid}
        return torch.as_tensor(odeint(rate, state, times, method=o["solver"], options=options)[-1])

    def size(error: Tensor) -> Tensor:
        return error.abs().max()

    if path is not None:
        rate.callback_accept_step = lambda t, y, dt: path.keep(float(t), y)  # type: ignore[attr-defined]
    options = {"norm": size, "step_t": times[1:], "max_num_steps": MOST_STEPS}
    try:
        found = odeint(rate, state, times, rtol=o["rtol"], atol=o["atol"], method="dopri5", options=options)
    except AssertionError as error:
        raise UnstableFlow(
            f"dopri5 found no step that keeps to rtol and atol: {error}; take a smaller horizon"
        ) from error
    return torch.as_tensor(found[-1])

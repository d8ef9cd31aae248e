"""The upper level at the true lower solution: F(x), its gradient, and the error of the direction that moved x.

A method is judged by what its x is worth, whatever y it holds itself: the y of a penalty method leans towards f. This
is no communication, and is not counted.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.cohort import Cohort, Draw, Held
from fedbilevel.errors import RunFailed
from fedbilevel.problem import Problem
from fedbilevel.problems.inspection import convert
from fedbilevel.tasks import is_local

GRADIENT_TOLERANCE = 1e-8
"""y*(x) is found when the lower gradient has fallen to this part of what it is at the start of the run's y, or at 0."""
SHORTEST = 1e-13
"""Or when Newton's step is this short, relative to y."""
SYSTEM_TOLERANCE = 1e-10
"""v = H^-1 fy is found at this residual, relative to fy."""
NEWTON_STEPS = 100
PRODUCTS = 5_000
"""The most Hessian products of one solution; a lower level that takes more counts as one that does not converge."""
SMALL = 10_000_000
"""Up to this size (examples x dimensions) the solution is found without being asked for: tens of milliseconds each."""
SMALL_EVERY = 10
"""At so many evaluations once, for such a problem; at the last one too."""
_TIMED, _USUAL_PRODUCTS = 2_000, 60
"""Examples on which a solution's cost is measured, and the Hessian products that it takes as a rule."""

Product = Callable[[Tensor], Tensor]


class NoSolution(RunFailed):
    """The lower level has no solution here that could be found: it is not strongly convex, or too flat."""


@dataclass(frozen=True)
class Solution:
    """What x is worth: `value` = F(x) = f(x, y*(x)), gradient = grad F(x) [dx], y = y*(x), v = H^-1 fy; float64."""

    value: float
    gradient: Tensor
    y: Tensor
    v: Tensor


class Solver:
    """Solves the pooled lower problem of all clients, in float64: by the problem's closed forms, else by Newton-CG.

    y0: the start of the run's y; the lower gradient there, or at 0 where it is larger, is the scale of all. What it
    finds is a function of its arguments alone, so that a run that was interrupted finds the same again.
    """

    def __init__(self, problem: Problem, y0: Tensor) -> None:
        self.problem = convert(problem, torch.float64)
        self._y0 = y0.double()
        self._small = False
        self._held: Held | None = None
        self._products = 0

    def at(self, x: Tensor, y: Tensor, v: Tensor | None = None) -> Solution:
        """Return the solution at x [dx]; the search begins at y [dy], that for H^-1 fy at v (None: at 0).

        Raises NoSolution where H is not positive definite along a direction that it meets, or the lower gradient does
        not fall to GRADIENT_TOLERANCE.
        """
        x, y = x.double().cpu(), y.double().cpu()
        if has_closed_forms(self.problem):
            closed: Any = self.problem
            y = closed.lower_solution(x)
            return Solution(float(closed.value(x)), closed.hypergradient(x), y, torch.zeros_like(y))
        with torch.no_grad():
            return self._search(x, y, torch.zeros_like(y) if v is None else v.double().cpu())

    def _search(self, x: Tensor, y: Tensor, v: Tensor) -> Solution:
        if self._held is None:
            self._held = Held.of(self.problem, np.arange(len(self.problem.clients)))
        pooled = Cohort(self._held, Draw(0, 0, "solution"), pooled=True)
        x, y, v, y0 = (each.to(pooled.device) for each in (x, y, v, self._y0))
        self._products, self._small = 0, size(self.problem, x, y) <= SMALL
        at_start = (float(pooled.lower_gradient(x, point).norm()) for point in (y0, torch.zeros_like(y0)))
        y = self._minimise(pooled, x, y, max(filter(math.isfinite, at_start), default=0.0))
        tolerance = 1e-3 * SYSTEM_TOLERANCE if self._small else SYSTEM_TOLERANCE
        v = self._solve(lambda u: pooled.hvp(x, y, u), pooled.upper_gradient_y(x, y), tolerance, v)
        h = pooled.upper_gradient_x(x, y) - pooled.cross_vjp(x, y, v)
        return Solution(float(pooled.losses("upper", x, y)), h.cpu(), y.cpu(), v.cpu())

    def _minimise(self, pooled: Cohort, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """Newton's method with conjugate gradients; a step is halved until the lower loss falls enough (Armijo)."""
        g, loss = pooled.lower_gradient(x, y), float(pooled.losses("lower", x, y))
        for _ in range(NEWTON_STEPS):
            size = float(g.norm())
            if size <= GRADIENT_TOLERANCE * scale:
                return self._polished(pooled, x, y, g) if self._small else y
            if not math.isfinite(size) or not math.isfinite(loss):
                break
            forcing = max(min(0.1, size / scale), 1e-3 * GRADIENT_TOLERANCE * scale / size)
            d = self._solve(functools.partial(pooled.hvp, x, y), -g, forcing, torch.zeros_like(g))
            if float(d.norm()) <= SHORTEST * (1.0 + float(y.norm())):
                return y  # the gradient is rounding
            slope, t = float(g @ d), 1.0
            while True:
                moved = y + t * d
                there, gradient = float(pooled.losses("lower", x, moved)), pooled.lower_gradient(x, moved)
                # near the solution rounding hides what the loss still falls by, and the gradient tells
                if there <= loss + 1e-4 * t * slope or float(gradient.norm()) < 0.5 * size:
                    break
                t *= 0.5
                if t < 1e-10:
                    raise NoSolution("the lower loss does not fall along Newton's direction")
            y, g, loss = moved, gradient, there
        raise NoSolution(f"the lower gradient does not fall to {GRADIENT_TOLERANCE:g} of what it is at the start")

    def _polished(self, pooled: Cohort, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        """One more step, where it costs nothing: what differs in the last bits at the start differs so at the end."""
        d = self._solve(functools.partial(pooled.hvp, x, y), -g, 1e-6, torch.zeros_like(g))
        closer = float(pooled.lower_gradient(x, y + d).norm()) < float(g.norm())
        return y + d if closer else y

    def _solve(self, product: Product, b: Tensor, tolerance: float, u: Tensor) -> Tensor:
        """Conjugate gradients for `H u = b` from u, until the residual is `tolerance * |b|`."""
        r = b - product(u) if bool(u.any()) else b.clone()
        p, rr = r, float(r @ r)
        goal = tolerance**2 * float(b @ b)
        while rr > goal:
            Hp = product(p)
            curvature = float(p @ Hp)
            self._products += 1
            if not curvature > 0.0:
                raise NoSolution("the lower level is not strongly convex")
            if self._products > PRODUCTS:
                raise NoSolution(f"the lower level takes more than {PRODUCTS} Hessian products")
            step = rr / curvature
            u, r = u + step * p, r - step * Hp
            before, rr = rr, float(r @ r)
            p = r + (rr / before) * p
        return u


def has_closed_forms(problem: Problem) -> bool:
    """Whether the problem itself knows y*(x), F(x) and grad F(x): `lower_solution`, `value` and `hypergradient`."""
    return all(callable(getattr(problem, name, None)) for name in ("lower_solution", "value", "hypergradient"))


def size(problem: Problem, x: Tensor, y: Tensor) -> int:
    """What a solution costs, in examples of both levels times the dimensions of x and y."""
    examples = int(problem.clients.lower.sizes.sum() + problem.clients.upper.sizes.sum())
    return examples * (x.numel() + y.numel())


def every(asked: int | None, problem: Problem, x: Tensor, y: Tensor) -> int:
    """At every how many evaluations the solution is found; 0: never.

    Unless it is asked for: at each one where the problem has closed forms, at every SMALL_EVERY-th where its size is at
    most SMALL, else never; and never where the lower level is local, whose tasks have solutions of their own.
    """
    if is_local(problem):
        return 0
    if asked is not None:
        return asked
    if has_closed_forms(problem):
        return 1
    return SMALL_EVERY if size(problem, x, y) <= SMALL else 0


def seconds(problem: Problem, x: Tensor, y: Tensor) -> float:
    """About what an evaluation at the solution takes on this machine: its parts on a few clients' data, scaled up."""
    sizes = problem.clients.lower.sizes + problem.clients.upper.sizes
    some = np.arange(min(int(np.searchsorted(np.cumsum(sizes), _TIMED)) + 1, len(sizes)))
    part = copy.copy(problem)
    part.clients = problem.clients.only(0, len(some))
    pooled = Cohort(Held.of(convert(part, torch.float64), some), Draw(0, 0, "solution"), pooled=True)
    x, y = x.double(), y.double()
    with torch.no_grad():
        times = [time.perf_counter()]
        pooled.upper_gradient_x(x, y) - pooled.cross_vjp(x, y, y)
        times.append(time.perf_counter())
        pooled.hvp(x, y, y)
        times.append(time.perf_counter())
    point, product = times[1] - times[0], times[2] - times[1]
    return 2.0 * float(sizes.sum() / sizes[some].sum()) * (point + _USUAL_PRODUCTS * product)

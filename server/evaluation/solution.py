"""The upper level at the true lower solution: F(x), its gradient, and the error of the direction that moved x.

A method is judged by what its x is worth, whatever y it holds itself: the y of a penalty method leans towards f. This
is no communication, and is not counted.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.held import Draw, Held
from fedbilevel.problem import Problem
from fedbilevel.problems.inspection import convert
from fedbilevel.tasks import is_local
from server.evaluation.lower_level import LowerLevel, NoSolution, Sketch

GRADIENT_TOLERANCE = 1e-8
"""y*(x) is found when the lower gradient has fallen to this part of what it is at the start of the run's y, or at 0."""
SYSTEM_TOLERANCE = 1e-8
"""v = H^-1 fy is found at this residual, relative to fy."""
SINGLE_TOLERANCE = 1e-6
"""Both, where what is found is only held against a direction of a run in single precision."""
SMALL = 10_000_000
"""Up to this size (examples x dimensions) the solution is found without being asked for: tens of milliseconds each."""
SMALL_EVERY = 10
"""At so many evaluations once, for such a problem; at the last one too."""
_TIMED, _USUAL_PRODUCTS = 2_000, 60
"""Examples on which a solution's cost is measured, and the Hessian products that it takes as a rule."""


@dataclass(frozen=True)
class Solution:
    """What x is worth: `value` = F(x) = f(x, y*(x)), gradient = grad F(x) [dx], y = y*(x), v = H^-1 fy; float64.

    sketch: what helped to find it, and helps close by.
    """

    value: float
    gradient: Tensor
    y: Tensor
    v: Tensor
    sketch: Sketch | None = None


class Solver:
    """Solves the pooled lower problem of all clients, in float64: by the problem's closed forms, else by Newton-CG.

    y0: the start of the run's y; the lower gradient there, or at 0 where it is larger, is the scale of all. What it
    finds is a function of its arguments alone, so that a run that was interrupted finds the same again.

    Where the problem comes in single precision and is large, so do the Hessian products inside conjugate gradients;
    gradients and residuals, on which the tolerances stand, are of the problem in double precision.
    """

    def __init__(self, problem: Problem, y0: Tensor) -> None:
        self.problem, self._given = convert(problem, torch.float64), problem
        self._y0 = y0.double()
        self._held: dict[torch.dtype, Held] = {}

    def at(self, x: Tensor, y: Tensor, v: Tensor | None = None) -> Solution:
        """Return the solution at x [dx]; the search begins at y [dy], that for H^-1 fy at v (None: at 0).

        Raises NoSolution where H is not positive definite along a direction that it meets, the lower gradient does not
        fall to GRADIENT_TOLERANCE, or a closed form of y*(x) is not finite.
        """
        x, y = x.double().cpu(), y.double().cpu()
        if has_closed_forms(self.problem):
            closed: Any = self.problem
            y = closed.lower_solution(x)
            if not bool(torch.isfinite(y).all()):
                raise NoSolution("the lower level has no solution: lower_solution(x) is not finite")
            return Solution(float(closed.value(x)), closed.hypergradient(x), y, torch.zeros_like(y))
        small = size(self.problem, x, y) <= SMALL
        with torch.no_grad():
            level = LowerLevel(self._clients(torch.float64), self._single(x), x, self._y0, large=not small)
            y = level.minimiser(y, GRADIENT_TOLERANCE, polished=small)
            tolerance = 1e-3 * SYSTEM_TOLERANCE if small else SYSTEM_TOLERANCE
            v = level.adjoint(y, tolerance, torch.zeros_like(y) if v is None else v)
            value = float(level.pooled.losses("upper", level.x, y))
            return Solution(value, level.hypergradient(y, v).cpu(), y.cpu(), v.cpu(), level.sketch)

    def gradient(self, x: Tensor, beside: Solution) -> Tensor:
        """Return grad F at x [dx], float64, where a solution close by is known. Raises NoSolution as `at` does.

        Of a large problem in single precision it is found in single precision, as was the direction that it judges.
        """
        single = self._single(x)
        if single is None or has_closed_forms(self.problem):
            return self.at(x, beside.y, beside.v).gradient
        try:
            with torch.no_grad():
                level = LowerLevel(single, None, x.float(), self._y0, large=True, sketch=beside.sketch)
                y = level.minimiser(beside.y, SINGLE_TOLERANCE)
                return level.hypergradient(y, level.adjoint(y, SINGLE_TOLERANCE, beside.v)).double().cpu()
        except NoSolution:  # in single precision
            return self.at(x, beside.y, beside.v).gradient

    def _single(self, x: Tensor) -> Held | None:
        """All clients in single precision, where something is gained by that."""
        if self._given is self.problem or size(self.problem, x, self._y0) <= SMALL:
            return None
        return self._clients(torch.float32)

    def _clients(self, dtype: torch.dtype) -> Held:
        if dtype not in self._held:
            problem = self.problem if dtype == torch.float64 else self._given
            self._held[dtype] = Held.of(problem, np.arange(len(problem.clients)))
        return self._held[dtype]


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

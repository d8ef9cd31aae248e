"""Stochastic bilevel optimisation: the lower solution is a distribution, the hypergradient a covariance under it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clients.methods.langevin import TOGETHER, covariance
from clients.operations.sampling import lower_gradients, values_at_samples
from fedbilevel.errors import BadInput
from fedbilevel.federation.rounds import Federation
from fedbilevel.strict import MOST, Positive
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, TaskOptions, meta_algorithm


class Options(TaskOptions):
    """Options of `stochastic-bilevel`."""

    lower_step: Annotated[Positive, Field(description="eta: step of the Langevin chains")] = 0.1
    lower_rounds: Annotated[
        options.Count,
        Field(
            description="Langevin steps of an outer iteration, a round each, from where the last one's chains ended; "
            "with a local lower level steps from x on a task, for which a hundred and more are needed"
        ),
    ] = 5
    temperature: Annotated[Positive, Field(description="T: the lower solution is distributed as exp(-g/T)")] = 0.1
    samples: Annotated[int, Field(ge=2, le=MOST, description="S: chains, whose ends are the samples")] = 16
    proximal: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="lam_p: pull to x where the lower level is local")
    ] = 1.0

    def held(self, tasks: int, vector: float, support: float, query: float) -> float:
        """Points, gradients and noise of all chains, and what those that are together keep to be differentiated."""
        pairs = min(tasks * self.samples, max(tasks, int(8 * TOGETHER / vector)))
        return tasks * self.samples * 4 * vector + pairs * max(support, query)

    def held_to_judge(self, tasks: int, vector: float, support: float, query: float) -> float:
        """The same: an evaluation has chains too."""
        return self.held(tasks, vector, support, query)

    def hold_blocks(self) -> None:
        """Raises BadInput: what clients answer at the samples is of the whole x."""
        raise BadInput(
            "algorithm", "stochastic-bilevel", "a problem whose clients share x: here each has its own block"
        )


@dataclass(frozen=True)
class StochasticState(MetaState):
    """points: the ends of the S chains [S dy], of which y is the mean (None at the start, and on tasks)."""

    points: Tensor | None = None


@algorithm(
    "stochastic-bilevel",
    source="A Stochastic Approach to Bi-Level Optimization, 2024",
    options=Options,
    lower="any",
    confirmed="the lower solution as a distribution exp(-g/T), sampled by Langevin steps; first order",
    reading="h = E fx - Cov(f, gx)/T; chains on the server that go on; on tasks the proximal lower level",
)
def stochastic_bilevel(o: Options) -> Algorithm[StochasticState]:
    """Langevin samples of the lower level, h = E fx - Cov(f, gx)/T: first order; T+1 rounds, on tasks 1.

    As the temperature falls h tends to the hypergradient, with a variance that grows as 1/temperature and falls as 1/S.
    For quadratic g and f its mean is the hypergradient at every temperature, but for the step: the chains' covariance
    is T H^-1 (I - eta H/2)^-1. With a local lower level the clients run the chains (`clients/methods/langevin.py`).
    """
    S, eta, local = o.samples, o.lower_step, meta_algorithm("stochastic-bilevel", o)

    def step(state: StochasticState, fed: Federation) -> StochasticState:
        if fed.local:
            return replace(state, **vars(local.step(state, fed)))
        x, draw = state.x, fed.random("langevin")
        points = state.y.repeat(S) if state.points is None else state.points
        for _ in range(o.lower_rounds):
            # y_s -= eta agg gy(x, y_s) - sqrt(2 eta T) xi_s
            gy = fed.mean(lower_gradients, x=x, points=points, samples=S)
            xi = torch.from_numpy(draw.standard_normal(len(points))).to(points)
            points = points - eta * gy + math.sqrt(2 * eta * o.temperature) * xi
        # h = E agg fx - Cov(agg f, agg gx)/T
        f, fx, gx = fed.mean(values_at_samples, x=x, points=points, samples=S)
        h = fx - covariance(f, gx.view(S, -1)) / o.temperature
        y = points.view(S, -1).mean(0)
        return replace(state, x=x - o.upper_step * h, y=y, points=points, hypergradient=h)

    return Algorithm(StochasticState, step, lambda index: o.lower_rounds + 1, local.evaluate)

"""BOME: bilevel optimisation made easy, first order with a dynamic barrier; federated here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clients.operations.oracles import lower_gradient
from clients.operations.penalty import bome_directions
from fedbilevel.federation import Federation
from server import options
from server.algorithm import Algorithm, State, algorithm


class Options(options.Options):
    """Options of `bome`; steps on x and y in iteration k are divided by (1 + k)^step_decay."""

    upper_step: options.UpperStep = 0.1
    upper_level_lower_step: Annotated[options.Step, Field(description="xi_y: step size of y (xi of the y step)")] = 0.1
    lower_step: Annotated[options.Step, Field(description="beta: step size of yh, the lower-level iterate")] = 0.1
    lower_rounds: options.LowerRounds = 5
    barrier: Annotated[options.Step, Field(description="eta: how much of the constraint's descent is demanded")] = 0.5
    step_decay: Annotated[options.Step, Field(description="power of the decreasing steps; 0: constant, biased")] = 0.0


@dataclass(frozen=True)
class BomeState(State):
    """k: the number of iterations done, for decreasing steps."""

    k: int = 0


@algorithm(
    "bome", source="Liu, Ye, Wright, Stone & Liu, BOME! Bilevel Optimization Made Easy, NeurIPS 2022", options=Options
)
def bome(o: Options) -> Algorithm[BomeState]:
    """First order: value-function constraint with a dynamic barrier; T+1 rounds, bias O(step) at constant steps.

    The paper is not federated: gradients are aggregated before the multiplier is computed (our reading).
    """
    T = o.lower_rounds

    def init(x: Tensor, y: Tensor) -> BomeState:
        return BomeState(x, y)

    def step(state: BomeState, fed: Federation) -> BomeState:
        x, y = state.x, state.y
        decay = (1.0 + state.k) ** -o.step_decay
        # yh = y; T rounds: yh -= beta * agg(gy_i(x, yh))
        yh = y
        for _ in range(T):
            yh = yh - o.lower_step * fed.mean(lower_gradient, x=x, y=yh)
        # one round: fx, fy, qx = gx(x,y) - gx(x,yh), gy(x,y), aggregated before the multiplier
        fx, fy, qx, gy = fed.mean(bome_directions, x=x, y=y, yh=yh)
        # mult = max(eta*n2 - <fx,qx> - <fy,gy>, 0) / n2, n2 = |qx|^2 + |gy|^2
        n2 = float(qx @ qx + gy @ gy)
        mult = max(o.barrier * n2 - float(fx @ qx) - float(fy @ gy), 0.0) / n2 if n2 > 0 else 0.0
        h = fx + mult * qx
        x_next = x - decay * o.upper_step * h
        y_next = y - decay * o.upper_level_lower_step * (fy + mult * gy)
        return replace(state, x=x_next, y=y_next, hypergradient=h, k=state.k + 1)

    return Algorithm(init, step, lambda index: T + 1)

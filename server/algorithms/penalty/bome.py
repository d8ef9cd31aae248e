"""BOME: bilevel optimisation made easy, first order with a dynamic barrier; federated here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clients.operations.first_order import bome_directions
from clients.operations.oracles import lower_gradient
from fedbilevel.errors import BadInput
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import LocalSteps
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, meta_algorithm
from server.kit.penalty import ProximalOptions


class Options(ProximalOptions):
    """Options of `bome`; steps on x and y in iteration k are divided by (1 + k)^step_decay."""

    local_steps: Annotated[
        LocalSteps | None, Field(description="K, default 5: steps on the y of a task, where the lower level is local")
    ] = None
    upper_level_lower_step: Annotated[options.Step, Field(description="xi_y: step size of y (xi of the y step)")] = 0.1
    lower_step: Annotated[options.Step, Field(description="beta: step size of yh, the lower-level iterate")] = 0.1
    lower_rounds: options.LowerRounds = 5
    barrier: Annotated[options.Step, Field(description="eta: how much of the constraint's descent is demanded")] = 0.5
    step_decay: Annotated[options.Step, Field(description="power of the decreasing steps; 0: constant, biased")] = 0.0

    def hold_local(self) -> None:
        """Raises BadInput for decreasing steps too."""
        super().hold_local()
        if self.step_decay != 0:
            raise BadInput("options.step_decay", self.step_decay, "0 where the lower level is local")


@dataclass(frozen=True)
class BomeState(MetaState):
    """k: the number of iterations done, for decreasing steps."""

    k: int = 0


@algorithm(
    "bome",
    source="Liu, Ye, Wright, Stone & Liu, BOME! Bilevel Optimization Made Easy, NeurIPS 2022",
    options=Options,
    lower="any",
    confirmed="the multiplier",
    reading="federation: gradients are aggregated before the multiplier; on tasks one per task",
    biased="the direction of a dynamic barrier",
)
def bome(o: Options) -> Algorithm[BomeState]:
    """First order: value-function constraint with a dynamic barrier; T+1 rounds, bias O(step) at constant steps.

    The paper is not federated: gradients are aggregated before the multiplier is computed (our reading). With a local
    lower level every task has its own multiplier (`clients/methods/penalty.py`), and one round is enough.
    """
    T, local = o.lower_rounds, meta_algorithm("bome", o)

    def init(x: Tensor, y: Tensor) -> BomeState:
        return BomeState(x, y)

    def step(state: BomeState, fed: Federation) -> BomeState:
        if fed.local:
            return replace(state, **vars(local.step(state, fed)))
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

    return Algorithm(init, step, lambda index: T + 1, local.evaluate)

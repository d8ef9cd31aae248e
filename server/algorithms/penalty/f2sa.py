"""F2SA: the fully first-order penalty method, lower level and penalised lower level side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clients.operations.first_order import penalty_gradients, penalty_hypergradient
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm
from server.kit.penalty import PenaltyOptions


class Options(PenaltyOptions):
    """Options of `f2sa`."""

    lower_rounds: options.LowerRounds = 5
    penalty_growth: Annotated[options.Step, Field(description="dlam: what the penalty grows by per iteration")] = 0.0


@dataclass(frozen=True)
class F2SAState(State):
    """z: the minimiser of g alone (y minimises f + lam g); penalty: lam."""

    z: Tensor | None = None
    penalty: float = 0.0


@algorithm(
    "f2sa",
    source="Kwon, Kwon, Wright & Nowak, ICML 2023",
    options=Options,
    confirmed="the three steps; bias O(1/lam)",
    reading="federation",
)
def f2sa(o: Options) -> Algorithm[F2SAState]:
    """First order: penalty lam on g(x, y) - g(x, z); T+1 rounds, bias O(1/lam).

    The paper is not federated: each step uses aggregated gradients (our reading).
    """
    T = o.lower_rounds

    def init(x: Tensor, y: Tensor) -> F2SAState:
        return F2SAState(x, y, z=y, penalty=o.penalty)

    def step(state: F2SAState, fed: Federation) -> F2SAState:
        x, y, z, lam = state.x, state.y, state.z, state.penalty
        eta_y = o.penalised_step(lam)
        # T rounds: y -= eta_y * agg(fy_i(x,y) + lam*gy_i(x,y)), z -= eta_z * agg(gy_i(x,z))
        for _ in range(T):
            dy, dz = fed.mean(penalty_gradients, x=x, y=y, z=z, penalty=lam)
            y, z = y - eta_y * dy, z - o.lower_step * dz
        # one round: h = agg(fx_i(x,y) + lam*(gx_i(x,y) - gx_i(x,z)))
        h = fed.mean(penalty_hypergradient, x=x, y=y, z=z, penalty=lam)
        x_next = x - o.upper_step * h
        return replace(state, x=x_next, y=y, z=z, hypergradient=h, penalty=lam + o.penalty_growth)

    return Algorithm(init, step, lambda index: T + 1)

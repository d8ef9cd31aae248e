"""FedBiOAcc: FedBiO along variance-reduced directions, which are carried and averaged with the variables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clients.operations.single_loop import first_variance_reduced_steps, variance_reduced_steps
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm, displacement
from server.kit.single_loop import SingleLoopOptions, SingleLoopState


class Options(SingleLoopOptions):
    """Options of `fedbioacc`."""

    local_steps: options.LocalSteps = 1
    momentum_decay: Annotated[
        float, Field(ge=0, le=1, description="c: share of the fresh direction in every step; 1: no momentum")
    ] = 0.1


@dataclass(frozen=True)
class FedBiOAccState(SingleLoopState):
    """mx, my, mv: the directions of x, y and v, means over the clients; None before the first iteration."""

    mx: Tensor | None = None
    my: Tensor | None = None
    mv: Tensor | None = None


@algorithm(
    "fedbioacc",
    source="Li, Huang & Huang, Communication-Efficient Federated Bilevel Optimization, NeurIPS 2023",
    options=Options,
    confirmed="variance-reduced momentum, averaged with the variables",
    reading="the recursion, constant c; momenta live on the server between iterations",
)
def fedbioacc(o: Options) -> Algorithm[FedBiOAccState]:
    """FedBiO with momentum-based variance reduction (STORM) of all three directions; 1 round, six vectors each way."""

    def init(x: Tensor, y: Tensor) -> FedBiOAccState:
        return FedBiOAccState(x, y, v=0 * y)

    def step(state: FedBiOAccState, fed: Federation) -> FedBiOAccState:
        z = {"x": state.x, "y": state.y, "v": state.v}
        settings = {**o.steps, "momentum_decay": o.momentum_decay, "local_steps": o.local_steps}
        # tau_i times z_i -= eta m_i, m_i = D(z_i;B) + (1-c)(m_i - D(z_old;B));  z = agg(z_i), m = agg(m_i)
        if state.mx is None:
            answer = fed.mean(first_variance_reduced_steps, **z, **settings)
        else:
            answer = fed.mean(variance_reduced_steps, **z, mx=state.mx, my=state.my, mv=state.mv, **settings)
        x, (x_next, y_next, v_next, mx, my, mv) = state.x, answer
        h = state.mx  # along which a single step goes
        if h is None or o.local_steps != 1:
            h = displacement(x, x_next, o.upper_step, fed.mean_local_steps(o.local_steps))
        return replace(state, x=x_next, y=y_next, v=v_next, mx=mx, my=my, mv=mv, hypergradient=h)

    return Algorithm(init, step, lambda index: 1)

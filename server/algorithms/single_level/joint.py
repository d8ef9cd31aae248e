"""Joint training: FedAvg on (x, y) at once, as if the problem had one level. A baseline."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from clients.operations.local import joint_steps
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm, displacement


class Options(options.UpperOptions):
    """Options of `joint`."""

    lower_step: options.LowerStep = 0.1
    lower_weight: Annotated[options.Step, Field(description="c: weight of the lower loss beside the upper loss")] = 1.0
    local_steps: options.LocalSteps = 1


@algorithm(
    "joint",
    source="baseline; FedAvg: McMahan et al., AISTATS 2017",
    options=Options,
    confirmed="ignores the levels",
    biased="the levels' gradients in x together",
)
def joint(o: Options) -> Algorithm[State]:
    """Baseline: FedAvg on (x, y) for sum_i p_i (f_i + c g_i); 1 round, ignores the levels."""

    def step(state: State, fed: Federation) -> State:
        x, y = state.x, state.y
        # tau times (x_i, y_i) -= (alpha, beta) * grad(f_i + c*g_i)(x_i, y_i); (x, y) = agg(x_i, y_i)
        x_next, y_next = fed.mean(
            joint_steps,
            x=x,
            y=y,
            upper_step=o.upper_step,
            lower_step=o.lower_step,
            lower_weight=o.lower_weight,
            local_steps=o.local_steps,
        )
        h = displacement(x, x_next, o.upper_step, fed.mean_local_steps(o.local_steps))
        return replace(state, x=x_next, y=y_next, hypergradient=h)

    return Algorithm(State, step, lambda index: 1)

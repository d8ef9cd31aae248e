"""FedAvg, alternating: train y, then x, each by local SGD on its own loss. A baseline, biased by design."""

from __future__ import annotations

from dataclasses import replace

from clients.operations.local import direct_steps
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm, displacement
from server.kit.subroutines import fed_inn


class Options(options.UpperOptions):
    """Options of `fedavg-alternating`."""

    lower_step: options.LowerStep = 0.1
    lower_rounds: options.LowerRounds = 1
    local_steps: options.LocalSteps = 1
    upper_local_steps: options.UpperLocalSteps = 1


@algorithm(
    "fedavg-alternating",
    source="baseline; FedAvg: McMahan et al., AISTATS 2017",
    options=Options,
    confirmed="biased by design",
    biased="the direct gradient fx alone",
)
def fedavg_alternating(o: Options) -> Algorithm[State]:
    """Baseline: T FedSGD rounds on y, then one on x with the direct gradient fx only; T+1 rounds, biased by design."""
    T = o.lower_rounds

    def step(state: State, fed: Federation) -> State:
        x = state.x
        # T x FedSGD on y
        y = fed_inn(fed, x, state.y, "sgd", T, o.lower_step, o.local_steps, "paper")
        # tau times x_i -= alpha * fx_i(x_i, y); x = agg(x_i)
        x_next = fed.mean(direct_steps, x=x, y=y, upper_step=o.upper_step, upper_local_steps=o.upper_local_steps)
        h = displacement(x, x_next, o.upper_step, fed.mean_local_steps(o.upper_local_steps, "upper"))
        return replace(state, x=x_next, y=y, hypergradient=h)

    return Algorithm(State, step, lambda index: T + 1)

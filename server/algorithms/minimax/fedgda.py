"""FedGDA: simultaneous local descent-ascent steps, and their average."""

from __future__ import annotations

from dataclasses import replace

from clients.operations.minimax import descent_ascent_steps
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm, displacement
from server.kit.minimax import MinimaxOptions


class Options(MinimaxOptions):
    """Options of `fedgda`."""

    local_steps: options.LocalSteps = 1


@algorithm(
    "fedgda",
    source="local descent-ascent: Deng & Mahdavi, AISTATS 2021",
    options=Options,
    lower="minimax",
    confirmed="local steps on x and y at once, then averaging",
)
def fedgda(o: Options) -> Algorithm[State]:
    """Simultaneous descent-ascent, tau local steps, average; 1 round, and client drift when tau > 1."""

    def step(state: State, fed: Federation) -> State:
        x, y = state.x, state.y
        # tau times (x_i, y_i) -= (eta_x fx_i, -eta_y fy_i)(x_i, y_i); (x, y) = agg(x_i, y_i)
        x_next, y_next = fed.mean(descent_ascent_steps, x=x, y=y, **o.steps, local_steps=o.local_steps)
        h = displacement(x, x_next, o.upper_step, fed.mean_local_steps(o.local_steps))
        return replace(state, x=x_next, y=y_next, hypergradient=h)

    return Algorithm(State, step, lambda index: 1)

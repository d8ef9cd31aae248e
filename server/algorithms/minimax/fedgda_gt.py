"""FedGDA-GT: local descent-ascent steps with gradient tracking, which do not drift."""

from __future__ import annotations

from dataclasses import replace

from clients.operations.minimax import field, tracked_steps
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm
from server.kit.minimax import MinimaxOptions


class Options(MinimaxOptions):
    """Options of `fedgda-gt`."""

    local_steps: options.LocalSteps = 1


@algorithm(
    "fedgda-gt",
    source="FedGDA-GT: Sun & Wei, NeurIPS 2022",
    options=Options,
    lower="minimax",
    reading="the tracked local step",
)
def fedgda_gt(o: Options) -> Algorithm[State]:
    """Local descent-ascent with gradient tracking: its fixed point is the saddle point for every tau; 2 rounds.

    The form of the tracked step is our reading of the paper.
    """

    def step(state: State, fed: Federation) -> State:
        x, y = state.x, state.y
        # Fbar = agg F_i(z)
        dx, dy = fed.mean(field, x=x, y=y)
        # tau times z_i -= eta (F_i(z_i) - F_i(z) + Fbar); z = agg(z_i)
        x_next, y_next = fed.mean(tracked_steps, x=x, y=y, dx=dx, dy=dy, **o.steps, local_steps=o.local_steps)
        return replace(state, x=x_next, y=y_next, hypergradient=dx)

    return Algorithm(State, step, lambda index: 2)

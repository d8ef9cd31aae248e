"""Federated extragradient: a trial step, and the step from where it began along the field that it found."""

from __future__ import annotations

from dataclasses import replace

from clients.operations.minimax import field
from fedbilevel.federation.rounds import Federation
from server.kit.algorithm import Algorithm, State, algorithm
from server.kit.minimax import MinimaxOptions


class Options(MinimaxOptions):
    """Options of `fed-extragradient`."""


@algorithm(
    "fed-extragradient",
    source="extragradient: Korpelevich, 1976; federated here",
    options=Options,
    lower="minimax",
    confirmed="converges on bilinear games",
    biased="the field at the trial point, a step away",
)
def fed_extragradient(o: Options) -> Algorithm[State]:
    """Extragradient on the clients' mean field; 2 rounds, and no spiralling out on a bilinear game.

    The trial step of x is plain; `upper_optimiser` makes the second one.
    """

    def step(state: State, fed: Federation) -> State:
        x, y = state.x, state.y
        # z' = z - eta agg F_i(z)
        dx, dy = fed.mean(field, x=x, y=y)
        x_trial, y_trial = x - o.upper_step * dx, y - o.eta_y * dy
        # z -= eta agg F_i(z')
        dx, dy = fed.mean(field, x=x_trial, y=y_trial)
        return replace(state, x=x - o.upper_step * dx, y=y - o.eta_y * dy, hypergradient=dx)

    return Algorithm(State, step, lambda index: 2)

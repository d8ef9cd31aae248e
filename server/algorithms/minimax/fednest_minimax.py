"""FedNest for minimax problems: FedSVRG on y, then FedOut along the direct gradient, which is the hypergradient."""

from __future__ import annotations

from dataclasses import replace

from clients.operations.oracles import upper_gradient_x
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm
from server.kit.minimax import MinimaxOptions
from server.kit.subroutines import fed_inn, fed_inn_rounds, fed_out, fed_out_rounds


class Options(MinimaxOptions):
    """Options of `fednest-minimax`."""

    lower_rounds: options.LowerRounds = 1
    local_steps: options.LocalSteps = 1
    upper_local_steps: options.UpperLocalStepsOrServer = 1
    accounting: options.Accounting = "paper"


@algorithm(
    "fednest-minimax",
    source="Tarzanagh, Li, Thrampoulidis & Oymak, FedNest, ICML 2022, section 5",
    options=Options,
    lower="minimax",
    confirmed="FedSVRG on y, then FedOut along the direct gradient; rounds",
)
def fednest_minimax(o: Options) -> Algorithm[State]:
    """FedNest with g = -f: at y*(x) the implicit term vanishes; 2T+2 rounds (paper), T+1 (merged, one local step)."""
    T = o.lower_rounds

    def step(state: State, fed: Federation) -> State:
        x = state.x
        # T x FedSVRG on g = -f: y+ from y
        y = fed_inn(fed, x, state.y, "svrg", T, o.eta_y, o.local_steps, o.accounting)
        # h = agg(fx_i(x, y+)); FedOut(h; alpha, tau)
        h = fed.mean(upper_gradient_x, x=x, y=y)
        x_next = fed_out(fed, x, y, h, o.upper_step, o.upper_local_steps, o.accounting)
        return replace(state, x=x_next, y=y, hypergradient=h)

    def rounds(index: int | None) -> int:
        inner_rounds = fed_inn_rounds("svrg", T, o.local_steps, o.accounting)
        return inner_rounds + 1 + fed_out_rounds(o.upper_local_steps, o.accounting)

    return Algorithm(State, step, rounds)

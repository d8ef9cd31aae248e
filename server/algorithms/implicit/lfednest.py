"""LFedNest: every client estimates its own hypergradient; cheap in rounds, biased where clients differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from clients.operations.local import local_hypergradient_steps
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm, displacement, draw_index
from server.kit.subroutines import fed_inn, fed_inn_rounds

_SOURCE = "Tarzanagh, Li, Thrampoulidis & Oymak, FedNest, ICML 2022"


class Options(options.NestOptions):
    """Options of `lfednest` and `lfednest-svrg`."""

    upper_local_steps: options.UpperLocalSteps = 1


def _lfednest(o: Options, inner: Literal["svrg", "sgd"]) -> Algorithm[State]:
    T, N = o.lower_rounds, o.neumann_terms
    lam = o.lower_step if o.neumann_step is None else o.neumann_step

    def step(state: State, fed: Federation) -> State:
        x = state.x
        index = draw_index(fed, o.estimator, N, o.indices)
        y = fed_inn(fed, x, state.y, inner, T, o.lower_step, o.local_steps, o.accounting)
        # tau times from x_i = x: p_i = lam*sum_n (I - lam H_i)^n fy_i, x_i -= alpha*(fx_i - J_i p_i); x = agg(x_i)
        x_next = fed.mean(
            local_hypergradient_steps,
            x=x,
            y=y,
            upper_step=o.upper_step,
            neumann_step=lam,
            neumann_terms=N,
            index=index,
            upper_local_steps=o.upper_local_steps,
        )
        h = displacement(x, x_next, o.upper_step, fed.mean_local_steps(o.upper_local_steps, "upper"))
        return replace(state, x=x_next, y=y, hypergradient=h, index=index)

    def rounds(index: int | None) -> int:
        return fed_inn_rounds(inner, T, o.local_steps, o.accounting) + 1

    return Algorithm(State, step, rounds)


@algorithm(
    "lfednest",
    source=_SOURCE,
    options=Options,
    confirmed="rounds; the local estimate, biased unless clients agree",
    biased="clients' own Hessians, off by {bias:.1e} with all terms",
)
def lfednest(o: Options) -> Algorithm[State]:
    """FedNest with local hypergradients and local SGD: T+1 rounds, biased unless clients are identical.

    Confirmed by the paper; with FedSGD inside, local steps drift as well.
    """
    return _lfednest(o, "sgd")


@algorithm(
    "lfednest-svrg",
    source=_SOURCE,
    options=Options,
    confirmed="rounds",
    biased="clients' own Hessians, off by {bias:.1e} with all terms",
)
def lfednest_svrg(o: Options) -> Algorithm[State]:
    """LFedNest with FedSVRG on the lower level: 2T+1 rounds (T+1 merged); the x step stays local and biased."""
    return _lfednest(o, "svrg")

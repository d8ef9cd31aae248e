"""FedNest and FedNest-SGD: alternating FedInn, FedIHGP and FedOut (approximate implicit differentiation, AID)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from clients.operations.oracles import hypergradient
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm, draw_index
from server.kit.subroutines import fed_ihgp, fed_inn, fed_inn_rounds, fed_out, fed_out_rounds

_SOURCE = "Tarzanagh, Li, Thrampoulidis & Oymak, FedNest, ICML 2022"


class Options(options.NestOptions):
    """Options of `fednest` and `fednest-sgd`."""


def _fednest(o: Options, inner: Literal["svrg", "sgd"]) -> Algorithm[State]:
    T, N = o.lower_rounds, o.neumann_terms
    lam = o.lower_step if o.neumann_step is None else o.neumann_step

    def step(state: State, fed: Federation) -> State:
        x = state.x
        index = draw_index(fed, o.estimator, N, o.indices)
        # T x FedInn: y+ from y, carried over between outer iterations
        y = fed_inn(fed, x, state.y, inner, T, o.lower_step, o.local_steps, o.accounting)
        # FedIHGP: p, the estimate of [agg H_i]^-1 agg(fy_i) at y+
        p = fed_ihgp(fed, x, y, lam, N, index)
        # h_i = fx_i(x,y+) - J_i(x,y+) p
        h = fed.mean(hypergradient, x=x, y=y, v=p)
        # FedOut(h; alpha, tau)
        x_next = fed_out(fed, x, y, h, o.upper_step, o.upper_local_steps, o.accounting)
        return replace(state, x=x_next, y=y, hypergradient=h, index=index)

    def rounds(index: int | None) -> int:
        fed_ihgp_rounds = 1 + (N if index is None else index)
        inner_rounds = fed_inn_rounds(inner, T, o.local_steps, o.accounting)
        return inner_rounds + fed_ihgp_rounds + 1 + fed_out_rounds(o.upper_local_steps, o.accounting)

    return Algorithm(State, step, rounds)


@algorithm(
    "fednest",
    source=_SOURCE,
    options=Options,
    confirmed="rounds; the fixed Neumann sum",
    reading="the sampled N'",
)
def fednest(o: Options) -> Algorithm[State]:
    """AID with a global Neumann series; FedSVRG inside and a corrected x step.

    Rounds, confirmed: 2T+N+3 (paper), T+N+2 (merged, one local step); N' in place of N where it is drawn. The fixed sum
    is confirmed by the paper; the form of the sampled estimate is our reading.
    """
    return _fednest(o, "svrg")


@algorithm(
    "fednest-sgd",
    source=_SOURCE,
    options=Options,
    confirmed="rounds",
)
def fednest_sgd(o: Options) -> Algorithm[State]:
    """FedNest with plain local SGD on the lower level: T+N+3 rounds, and client drift when tau > 1."""
    return _fednest(o, "sgd")

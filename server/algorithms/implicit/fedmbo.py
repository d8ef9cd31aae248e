"""FedMBO: FedNest with a random number of Neumann factors, each from clients that are sampled for it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from clients.operations.oracles import hypergradient, neumann_factor, upper_gradient_y
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm, draw_index
from server.kit.subroutines import fed_inn, fed_inn_rounds, fed_out, fed_out_rounds


class Options(options.UpperOptions):
    """Options of `fedmbo`."""

    estimator: ClassVar[str] = "sample"
    lower_step: options.LowerStep = 0.1
    neumann_step: options.NeumannStep = None
    lower_rounds: options.LowerRounds = 1
    neumann_terms: Annotated[options.Count, Field(description="N: the random N' is uniform on 0, ..., N-1")] = 5
    local_steps: options.LocalSteps = 1
    upper_local_steps: options.UpperLocalStepsOrServer = 1
    indices: options.Indices = None
    accounting: options.Accounting = "paper"


@algorithm(
    "fedmbo",
    source="Huang, Zhang & Ji, Achieving Linear Speedup in Non-IID Federated Bilevel Learning, ICML 2023",
    options=Options,
    confirmed="independently sampled clients in every step of the hypergradient estimate",
    reading="the rest is FedNest's: N' drawn, FedSGD inside, FedOut on the iteration's own clients",
)
def fedmbo(o: Options) -> Algorithm[State]:
    """AID whose Neumann steps each sample clients anew: unbiased under partial participation; T+N'+3 rounds."""
    T, N = o.lower_rounds, o.neumann_terms
    lam = o.lower_step if o.neumann_step is None else o.neumann_step

    def estimate(fed: Federation, x: Tensor, y: Tensor, index: int) -> Tensor:
        # p = lam*N*agg(fy_i), then N' times p = agg(p - lam*H_i p), each over clients of its own
        fed.resample("gradient of the estimate")
        p: Tensor = lam * N * fed.mean(upper_gradient_y, x=x, y=y)
        for n in range(index):
            fed.resample(f"factor {n} of the estimate")
            p = fed.mean(neumann_factor, x=x, y=y, r=p, neumann_step=lam)
        return p

    def step(state: State, fed: Federation) -> State:
        x = state.x
        index = draw_index(fed, "sample", N, o.indices)
        assert index is not None
        y = fed_inn(fed, x, state.y, "sgd", T, o.lower_step, o.local_steps, o.accounting)
        p = estimate(fed, x, y, index)
        fed.resample()  # the iteration's own clients again
        # h_i = fx_i(x,y+) - J_i(x,y+) p
        h = fed.mean(hypergradient, x=x, y=y, v=p)
        x_next = fed_out(fed, x, y, h, o.upper_step, o.upper_local_steps, o.accounting)
        return replace(state, x=x_next, y=y, hypergradient=h, index=index)

    def rounds(index: int | None) -> int:
        inner = fed_inn_rounds("sgd", T, o.local_steps, o.accounting)
        return inner + 2 + (N if index is None else index) + fed_out_rounds(o.upper_local_steps, o.accounting)

    return Algorithm(State, step, rounds)

"""FBO-AggITD: the hypergradient is estimated in the same rounds in which the lower level is optimised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clients.operations.oracles import (
    hypergradient,
    linear_system_step,
    lower_gradient,
    neumann_factor,
    upper_gradient_y,
)
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm, draw_index
from server.kit.subroutines import fed_out, fed_out_rounds, svrg_finish, svrg_rounds


class Options(options.UpperOptions):
    """Options of `aggitd`. T of the lower level and N of the estimate are one number: `lower_rounds`."""

    aliases = (("lower_rounds", "neumann_terms"),)
    lower_step: options.LowerStep = 0.1
    neumann_step: options.NeumannStep = None
    lower_rounds: Annotated[
        options.Count | None, Field(description="N: rounds of lower level and estimate; default: 5")
    ] = None
    neumann_terms: Annotated[options.Count | None, Field(description="N, where lower_rounds is not given")] = None
    local_steps: options.LocalSteps = 1
    upper_local_steps: options.UpperLocalStepsOrServer = 1
    estimator: options.Estimator = "sum"
    indices: options.Indices = None
    warm_start: options.WarmStart = False
    accounting: options.Accounting = "paper"

    @property
    def N(self) -> int:  # noqa: N802 - the paper's symbol
        """N: `lower_rounds`, or `neumann_terms` where only that is given; 5 by default."""
        return self.lower_rounds or self.neumann_terms or 5


@dataclass(frozen=True)
class AggITDState(State):
    """v: the estimate of H^-1 fy; carried to the next iteration by a warm start only."""

    v: Tensor | None = None


@algorithm(
    "aggitd",
    source="Xiao & Ji, Communication-Efficient Federated Hypergradient Computation, ICML 2023",
    options=Options,
    confirmed="estimate and lower level share their rounds; ITD type",
    reading="the recursion; warm_start is ours",
)
def aggitd(o: Options) -> Algorithm[AggITDState]:
    """Aggregated iterative differentiation: hypergradient and lower level in the same rounds.

    That estimate and lower level share their rounds is confirmed by the paper; the recursion is our reading of it.
    Rounds: N * (1 merged | 2 paper) + 1, and one for the x step unless the server takes it.
    """
    N = o.N
    lam = o.lower_step if o.neumann_step is None else o.neumann_step

    def init(x: Tensor, y: Tensor) -> AggITDState:
        return AggITDState(x, y)

    def step(state: AggITDState, fed: Federation) -> AggITDState:
        x, y = state.x, state.y
        v = state.v if o.warm_start else None
        Q = draw_index(fed, o.estimator, N, o.indices)
        for n in range(N):
            # everything at the same y^n, before the y step
            if Q is None:
                if v is None:  # v = 0: the first step is lam * fy, and no zero vector travels
                    gradient, fy = fed.mean(lower_gradient, upper_gradient_y, x=x, y=y)
                    v = lam * fy
                else:  # v <- agg(v - lam*(H_i(x,y^n) v - fy_i(x,y^n)))
                    gradient, v = fed.mean(lower_gradient, linear_system_step, x=x, y=y, v=v, neumann_step=lam)
            elif n < Q:
                gradient = fed.mean(lower_gradient, x=x, y=y)
            elif n == Q:  # r = agg(fy_i(x,y^n)); v stands for lam*N*r
                gradient, fy = fed.mean(lower_gradient, upper_gradient_y, x=x, y=y)
                v = lam * N * fy
            else:  # r = agg(r - lam*H_i(x,y^n) r): N-1-Q factors in all
                gradient, v = fed.mean(lower_gradient, neumann_factor, x=x, y=y, r=v, neumann_step=lam)
            # y^{n+1} = one FedSVRG step from y^n
            y = svrg_finish(fed, x, y, gradient, o.lower_step, o.local_steps, o.accounting)
        # h_i = fx_i(x,y^N) - J_i(x,y^N) v
        h = fed.mean(hypergradient, x=x, y=y, v=v)
        x_next = fed_out(fed, x, y, h, o.upper_step, o.upper_local_steps, o.accounting)
        return replace(state, x=x_next, y=y, v=v, hypergradient=h, index=Q)

    def rounds(index: int | None) -> int:
        per_step = svrg_rounds(o.local_steps, o.accounting)
        return N * per_step + 1 + fed_out_rounds(o.upper_local_steps, o.accounting)

    return Algorithm(init, step, rounds)

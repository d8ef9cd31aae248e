"""Federated optimistic descent-ascent: extragradient's effect from one field per iteration and the last one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from clients.operations.minimax import field
from fedbilevel.federation.rounds import Federation
from server.kit.algorithm import Algorithm, State, algorithm
from server.kit.minimax import MinimaxOptions


class Options(MinimaxOptions):
    """Options of `fed-optimistic`."""


@dataclass(frozen=True)
class OptimisticState(State):
    """dx, dy: the field F_{k-1} of the last iteration; None before the first."""

    dx: Tensor | None = None
    dy: Tensor | None = None


@algorithm(
    "fed-optimistic",
    source="optimistic descent-ascent: Popov, 1980; Daskalakis et al., ICLR 2018; federated here",
    options=Options,
    lower="minimax",
    confirmed="converges on bilinear games",
)
def fed_optimistic(o: Options) -> Algorithm[OptimisticState]:
    """Optimistic descent-ascent on the clients' mean field; 1 round, and no spiralling out on a bilinear game.

    The first step is plain: F_{-1} = F_0. `upper_optimiser` steps along x's part of 2 F_k - F_{k-1}.
    """

    def step(state: OptimisticState, fed: Federation) -> OptimisticState:
        dx, dy = fed.mean(field, x=state.x, y=state.y)
        # z -= eta (2 F_k - F_{k-1})
        hx = dx if state.dx is None else 2 * dx - state.dx
        hy = dy if state.dy is None else 2 * dy - state.dy
        x, y = state.x - o.upper_step * hx, state.y - o.eta_y * hy
        return replace(state, x=x, y=y, hypergradient=hx, dx=dx, dy=dy)

    return Algorithm(OptimisticState, step, lambda index: 1)

"""OAdagrad: optimistic descent-ascent whose steps are divided by what the field has been, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clients.operations.minimax import field
from fedbilevel.federation.rounds import Federation
from fedbilevel.strict import Positive
from server.kit.algorithm import Algorithm, State, algorithm
from server.kit.minimax import FieldOptions


class Options(FieldOptions):
    """Options of `oadagrad`; it is an optimiser of both levels, and takes no other for x."""

    delta: Annotated[Positive, Field(description="delta: the least number that a coordinate is divided by")] = 1.0


@dataclass(frozen=True)
class OAdagradState(State):
    """x, y: z, where the field is taken; wx, wy: w, from where steps are made; sx, sy: sums of the field's squares."""

    wx: Tensor | None = None
    wy: Tensor | None = None
    sx: Tensor | None = None
    sy: Tensor | None = None


@algorithm(
    "oadagrad",
    source="Liu et al., Towards Better Understanding of Adaptive Gradient Algorithms in GANs, ICLR 2020",
    options=Options,
    lower="minimax",
    confirmed="optimistic steps with Adagrad's divisors",
    reading="the recursion; federated: the server divides the clients' mean field, on both levels",
)
def oadagrad(o: Options) -> Algorithm[OAdagradState]:
    """Optimistic Adagrad on the clients' mean field, x and y stepped by the server; 1 round.

    Its x and y are z_{k+1}, the point that the next field is taken at. The formulas are our reading of the paper.
    """

    def init(x: Tensor, y: Tensor) -> OAdagradState:
        return OAdagradState(x, y, sx=0 * x, sy=0 * y)

    def moved(z: Tensor, w: Tensor | None, F: Tensor, s: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        # D_k = delta + sqrt(sum_{j<=k} F(z_j)^2), per coordinate
        along = eta * F / (o.delta + torch.sqrt(s))
        # w_k = w_{k-1} - eta D_k^-1 F(z_k); w_0 = z_0
        w = z if w is None else w - along
        # z_{k+1} = w_k - eta D_k^-1 F(z_k)
        return w - along, w

    def step(state: OAdagradState, fed: Federation) -> OAdagradState:
        assert state.sx is not None
        assert state.sy is not None
        dx, dy = fed.mean(field, x=state.x, y=state.y)
        sx, sy = state.sx + dx * dx, state.sy + dy * dy
        x, wx = moved(state.x, state.wx, dx, sx, o.upper_step)
        y, wy = moved(state.y, state.wy, dy, sy, o.eta_y)
        return replace(state, x=x, y=y, hypergradient=dx, wx=wx, wy=wy, sx=sx, sy=sy)

    return Algorithm(init, step, lambda index: 1)

"""BR-FedBi: SimFBO's three directions in one step, each aggregated by itself; plain, with momenta, or by PAGE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from clients.operations.single_loop import momentum_directions, page_directions, single_loop_directions
from fedbilevel.federation.rounds import Federation
from server.kit.algorithm import Algorithm, algorithm
from server.kit.options import Decay
from server.kit.single_loop import RadiusOptions, SingleLoopState


class Options(RadiusOptions):
    """Options of `br-fedbi`."""

    variant: Annotated[
        Literal["plain", "momentum", "page"], Field(description="what clients send: directions, momenta, PAGE's")
    ] = "plain"
    momentum: Annotated[Decay, Field(description='decay of each client\'s momenta, variant = "momentum"')] = 0.9
    page_probability: Annotated[
        float, Field(gt=0, le=1, description='p: chance of full directions in an iteration, variant = "page"')
    ] = 0.1

    def kept_by_clients(self, dim_x: int, dim_y: int) -> int:
        """Its directions; by PAGE also the point that they are of."""
        return (dim_x + 2 * dim_y) * {"plain": 0, "momentum": 1, "page": 2}[self.variant]


@dataclass(frozen=True)
class BRFedBiState(SingleLoopState):
    """kept: what each client has kept, by its number: its momenta, or its estimates and the point they are of."""

    kept: Mapping[int, Tensor] = field(default_factory=dict)


@algorithm(
    "br-fedbi",
    source="BR-FedBi, ICLR 2026",
    options=Options,
    confirmed="SimFBO's three directions in one step, each aggregated by itself; momentum and PAGE variants",
    reading="the formulas of the variants",
)
def br_fedbi(o: Options) -> Algorithm[BRFedBiState]:
    """Single loop, made for robust aggregators: one step along three directions, momenta or PAGE estimates; 1 round."""

    def init(x: Tensor, y: Tensor) -> BRFedBiState:
        return BRFedBiState(x, y, v=0 * y)

    def directions(state: BRFedBiState, fed: Federation) -> tuple[Any, ...]:
        z = {"x": state.x, "y": state.y, "v": state.v}
        if o.variant == "momentum":  # m_i = b m_i + (1-b) d_i, kept by the client
            return tuple(fed.mean(momentum_directions, **z, momentum=o.momentum, kept=state.kept))
        if o.variant == "page":  # at first, and with probability p, all examples, else g_i += D(z;B) - D(z_old;B)
            full = not state.kept or float(fed.random("page").random()) < o.page_probability
            return tuple(fed.mean(page_directions, **z, full=full, kept=state.kept))
        return (*fed.mean(single_loop_directions, **z), state.kept)

    def step(state: BRFedBiState, fed: Federation) -> BRFedBiState:
        dx, dy, dv, kept = directions(state, fed)
        eta_x, eta_y, eta_v = o.steps.values()
        return replace(
            state,
            x=state.x - eta_x * dx,
            y=state.y - eta_y * dy,
            v=o.projected(state.v - eta_v * dv),
            hypergradient=dx,
            kept=kept,
        )

    return Algorithm(init, step, lambda index: 1)

"""MemFBO: a single-loop first-order method; y, z and x move together in one round."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from clients.operations.penalty import penalty_steps
from fedbilevel.federation import Federation
from server import options
from server.algorithm import Algorithm, State, algorithm
from server.penalty import PenaltyOptions


class Options(PenaltyOptions):
    """Options of `memfbo`."""

    local_steps: options.LocalSteps = 1


@dataclass(frozen=True)
class MemFBOState(State):
    """z: the minimiser of g alone; y minimises f + lam g, and lam*(z - y) tends to v = H^-1 fy."""

    z: Tensor | None = None


@algorithm("memfbo", source="MemFBO, AAAI 2025", options=Options)
def memfbo(o: Options) -> Algorithm[MemFBOState]:
    """First order, single loop: the three penalty steps in one round per iteration, bias O(1/lam).

    First order and single loop are confirmed by the paper's abstract; the formulas are our reading. Local steps are
    normalised as in ShroFBO: directions averaged over tau_i, steps multiplied by rho = sum_i p_i tau_i (over a sampled
    set: sum_S p_i tau_i / sum_S p_i, whatever the weighting).
    """
    eta_y = o.penalised_step(o.penalty)

    def init(x: Tensor, y: Tensor) -> MemFBOState:
        return MemFBOState(x, y, z=y)

    def step(state: MemFBOState, fed: Federation) -> MemFBOState:
        x, y, z = state.x, state.y, state.z
        # all at the old point: dx = fx + lam*(gx(y) - gx(z)), dy = fy + lam*gy(y), dz = gy(z)
        dx, dy, dz = fed.mean(
            penalty_steps,
            x=x,
            y=y,
            z=z,
            penalty=o.penalty,
            upper_step=o.upper_step,
            lower_step=eta_y,
            auxiliary_step=o.lower_step,
            local_steps=o.local_steps,
        )
        rho = fed.mean_local_steps(o.local_steps)
        x_next = x - rho * o.upper_step * dx
        return replace(state, x=x_next, y=y - rho * eta_y * dy, z=z - rho * o.lower_step * dz, hypergradient=dx)

    return Algorithm(init, step, lambda index: 1)

"""MemFBO: a single-loop first-order method; y, z and x move together in one round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from clients.operations.first_order import penalty_steps
from fedbilevel.federation.rounds import Federation
from server.kit.algorithm import Algorithm, algorithm
from server.kit.meta import MetaState, meta_algorithm
from server.kit.penalty import PenaltyOptions, ProximalOptions


class Options(ProximalOptions, PenaltyOptions):
    """Options of `memfbo`."""

    def settings(self) -> dict[str, Any]:
        """What the clients' method reads of these."""
        return super().settings() | {"penalised_lower_step": self.penalised_step(self.penalty)}


@dataclass(frozen=True)
class MemFBOState(MetaState):
    """z: the minimiser of g alone; y minimises f + lam g, and lam*(z - y) tends to v = H^-1 fy.

    Where the lower level is local, each task has a y and a z of its own, which start at x in every round.
    """

    z: Tensor | None = None


@algorithm(
    "memfbo",
    source="MemFBO, AAAI 2025",
    options=Options,
    lower="any",
    confirmed="first order, single loop",
    reading="the formulas; local steps normalised as in ShroFBO; on tasks the proximal lower level",
)
def memfbo(o: Options) -> Algorithm[MemFBOState]:
    """First order, single loop: the three penalty steps in one round per iteration, bias O(1/lam).

    First order and single loop are confirmed by the paper's abstract; the formulas are our reading. Local steps are
    normalised as in ShroFBO: directions averaged over tau_i, steps multiplied by rho = sum_i p_i tau_i (over a sampled
    set: sum_S p_i tau_i / sum_S p_i, whatever the weighting). With a local lower level the clients take the steps on y
    and z on every task (`clients/methods/penalty.py`), and dx travels up.
    """
    eta_y, tau, local = o.penalised_step(o.penalty), o.local_steps or 1, meta_algorithm("memfbo", o)

    def init(x: Tensor, y: Tensor) -> MemFBOState:
        return MemFBOState(x, y, z=y)

    def step(state: MemFBOState, fed: Federation) -> MemFBOState:
        if fed.local:
            return replace(state, **vars(local.step(state, fed)))
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
            local_steps=tau,
        )
        rho = fed.mean_local_steps(tau)
        x_next = x - rho * o.upper_step * dx
        return replace(state, x=x_next, y=y - rho * eta_y * dy, z=z - rho * o.lower_step * dz, hypergradient=dx)

    return Algorithm(init, step, lambda index: 1, local.evaluate)

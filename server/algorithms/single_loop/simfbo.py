"""SimFBO and ShroFBO: local steps on x, y and v at once, and a server that steps along their sums or their means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clients.operations.single_loop import single_loop_steps
from fedbilevel.errors import BadInput
from fedbilevel.federation.rounds import Federation
from fedbilevel.strict import Positive
from server.kit import options
from server.kit.algorithm import Algorithm, algorithm
from server.kit.options import Step
from server.kit.single_loop import RadiusOptions, SingleLoopState, single_loop_start

_SOURCE = "Yang, Xiao & Ji, SimFBO, NeurIPS 2023"
Coefficients = Annotated[list[Positive], Field(min_length=1)]


class Options(RadiusOptions):
    """Options of `simfbo` and `shrofbo`."""

    upper_server_step: Annotated[Step | None, Field(description="gam_x; default: the upper step")] = None
    lower_server_step: Annotated[Step | None, Field(description="gam_y; default: the lower step")] = None
    neumann_server_step: Annotated[Step | None, Field(description="gam_v; default: the step of v")] = None
    local_steps: options.LocalSteps = 1
    coefficients: Annotated[
        Annotated[Coefficients | list[Coefficients], Field(min_length=1)] | None,
        Field(description="a_i^k: of each local step, for all clients or a list per client; default: 1"),
    ] = None

    @property
    def server_steps(self) -> tuple[float, float, float]:
        """`gam_x, gam_y, gam_v`."""
        given = (self.upper_server_step, self.lower_server_step, self.neumann_server_step)
        x, y, v = (own if step is None else step for step, own in zip(given, self.steps.values(), strict=True))
        return x, y, v

    def hold_clients(self, taus: Mapping[str, NDArray[np.int64]]) -> None:
        """Raises BadInput for coefficients that are not as many as the local steps."""
        super().hold_clients(taus)
        a, tau = self.coefficients, taus["local_steps"]
        if a is None:
            return
        if not isinstance(a[0], list):
            if len(a) != tau.max():
                raise BadInput("options.coefficients", f"{len(a)} numbers", f"one per local step, {tau.max()}")
            return
        lengths = [len(own) if isinstance(own, list) else 0 for own in a]
        if len(a) != len(tau):
            raise BadInput("options.coefficients", f"{len(a)} lists", f"one list for each of the {len(tau)} clients")
        for client, (own, steps) in enumerate(zip(lengths, tau.tolist(), strict=True)):
            if own != steps:
                raise BadInput(f"options.coefficients[{client}]", f"{own} numbers", f"one per local step, {steps}")


def lengths(fed: Federation, o: Options) -> NDArray[np.float64]:
    """`|a_i|_1` of the sampled clients."""
    tau, a = fed.local_steps(o.local_steps), o.coefficients
    if a is None:
        return tau.astype(np.float64)
    own: list[Any] = [a[client] if isinstance(a[0], list) else a for client in fed.answered]
    return np.array([sum(each[:steps]) for each, steps in zip(own, tau, strict=True)], dtype=np.float64)


def _simfbo(o: Options, *, normalised: bool) -> Algorithm[SingleLoopState]:
    gam_x, gam_y, gam_v = o.server_steps

    def step(state: SingleLoopState, fed: Federation) -> SingleLoopState:
        x, y, v = state.x, state.y, state.v
        # client, tau_i times: q_* += a*d_*, (x_i, y_i, v_i) -= a*(eta_x dx, eta_y dy, eta_v dv)
        qx, qy, qv = fed.mean(
            single_loop_steps,
            x=x,
            y=y,
            v=v,
            **o.steps,
            local_steps=o.local_steps,
            coefficients=o.coefficients,
            normalised=normalised,
        )
        # ShroFBO: q is divided by |a_i|_1 on the client, each step multiplied by rho = sum_i p_i |a_i|_1
        length = fed.mean_over_sampled(lengths(fed, o))
        rho = length if normalised else 1.0
        # y -= gam_y agg(q_y);  v = Proj(v - gam_v agg(q_v));  x -= gam_x agg(q_x)
        return replace(
            state,
            x=x - rho * gam_x * qx,
            y=y - rho * gam_y * qy,
            v=o.projected(v - rho * gam_v * qv),
            hypergradient=qx if normalised else qx / length,
        )

    return Algorithm(single_loop_start, step, lambda index: 1)


@algorithm(
    "simfbo",
    source=_SOURCE,
    options=Options,
    confirmed="one round per iteration, x, y and v at once",
    reading="the formulas; with unequal local steps it solves the problem re-weighted by p_i tau_i",
)
def simfbo(o: Options) -> Algorithm[SingleLoopState]:
    """Single loop, second order: sums of local directions of x, y and v; 1 round."""
    return _simfbo(o, normalised=False)


@algorithm(
    "shrofbo",
    source=_SOURCE,
    options=Options,
    confirmed="one round per iteration; robust to unequal local steps",
    reading="the formulas",
)
def shrofbo(o: Options) -> Algorithm[SingleLoopState]:
    """SimFBO with directions normalised by each client's local steps: unequal ones do not bias it; 1 round."""
    return _simfbo(o, normalised=True)

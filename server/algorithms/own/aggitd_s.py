"""AggITD-S: one round per iteration, a travelling probe that sets the lower steps, and a spectral step on x."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clients.operations.oracles import hessian_product, hypergradient
from clients.operations.single_loop import lower_level_steps, probed_directions
from fedbilevel import randomness
from fedbilevel.federation.rounds import Federation
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm
from server.kit.options import Step

_DECAY = 0.98
"""How fast an estimate of L that was too large is forgotten."""
_FIRST = 3
"""The first iteration in which y and v move: until then |Hd| is far below L."""
_LEAST, _MOST = 0.25, 1.8
"""Between which the factor c of the lower step stays: 2 / L is where gradient descent stops converging."""


class Options(options.UpperOptions):
    """Options of `aggitd-s`, none of which has to be set: alpha = 10, rho = 0.2 and b1 = 0.9 are those of x."""

    automatic = frozenset({"lower_step"})
    upper_step: options.UpperStep = 10.0
    upper_optimiser: Annotated[
        Literal["spectral", "sgd", "momentum", "adam", "adamomentum", "yogi"],
        Field(description="how the server steps along the direction of x"),
    ] = "spectral"
    lower_step: Annotated[Step | None, Field(description="beta, of y and v; default: 1 / L by the probe")] = None
    lower_hedge: Annotated[
        Step, Field(description="r: beta = c / L, c grows by exp(r cos) of successive lower gradients; 0: c = 1")
    ] = 0.0
    local_steps: options.LocalSteps = 1


@dataclass(frozen=True)
class AggITDSState(State):
    """v: the estimate of H^-1 fy; probe: d, a unit vector [dy], None at first; k: how many iterations are done;
    curvature: L, the estimate of H's largest eigenvalue; hedge: c; descent: gy of the last iteration, for c.
    """

    v: Tensor | None = None
    probe: Tensor | None = None
    curvature: float = 0.0
    k: int = 0
    hedge: float = 1.0
    descent: Tensor | None = None


def _beta(o: Options, L: float, k: int, c: float) -> float:
    """The step of y and v in iteration k, from 1 on."""
    if o.lower_step is not None:
        return o.lower_step
    return c / L if k >= _FIRST and L > 0.0 else 0.0


def hedged(c: float, qy: Tensor, before: Tensor, r: float) -> float:
    """The factor c exp(r cos(qy, before)), within bounds: longer while gradients agree, shorter where they turn."""
    sizes = float(qy.norm()) * float(before.norm())
    return min(max(c * math.exp(r * float(qy @ before) / sizes), _LEAST), _MOST) if sizes > 0.0 else c


def unit(fed: Federation, like: Tensor) -> Tensor:
    """A random unit vector of the dimension of y, the same for every way in which a run is carried."""
    drawn = randomness.generator(fed.seed, randomness.SERVER, 0, "probe").standard_normal(len(like))
    d = like.new_tensor(drawn)
    return torch.as_tensor(d / d.norm())


@algorithm(
    "aggitd-s",
    source="ours; the step on x after Muon (Jordan et al., 2024) and FedMuon (ICLR 2026)",
    options=Options,
    reading="the message pattern is SimFBO's with one more vector each way; probe and step are ours",
)
def aggitd_s(o: Options) -> Algorithm[AggITDSState]:
    """Single loop with steps of its own: 1/L on y and v by a travelling probe, x by polar factors; 1 round."""

    def init(x: Tensor, y: Tensor) -> AggITDSState:
        return AggITDSState(x, y, v=0 * y)

    def step(state: AggITDSState, fed: Federation) -> AggITDSState:
        x, y, v = state.x, state.y, state.v
        d = unit(fed, y) if state.probe is None else state.probe
        if o.local_steps == 1:  # agg of h_i = fx_i - J_i v, gy_i, H_i v - fy_i and H_i d, all at (x, y, v)
            h, qy, qv, Hd = fed.mean(probed_directions, x=x, y=y, v=v, d=d)
        else:  # gy_i and H_i v - fy_i are summed along tau_i local steps of y and v, with the beta of the round before
            walk = {"lower_step": _beta(o, state.curvature, state.k, state.hedge), "local_steps": o.local_steps}
            h, Hd, (qy, qv) = fed.mean(hypergradient, hessian_product, lower_level_steps, x=x, y=y, v=v, d=d, **walk)
        # L = max(|Hd|, 0.98 L);  d = Hd / |Hd|: power iteration, one step a round
        size, k = float(Hd.norm()), state.k + 1
        L = max(size, _DECAY * state.curvature)
        # beta = 0 if k < 3 else c/L, where c = 1 unless it is hedged
        c = state.hedge
        if state.descent is not None and k > _FIRST:
            c = hedged(c, qy, state.descent, o.lower_hedge)
        beta = _beta(o, L, k, c)
        return replace(
            state,
            x=x - o.upper_step * h,
            y=y - beta * qy,
            v=v - beta * qv,
            hypergradient=h,
            probe=Hd / size if size > 0.0 else d,
            curvature=L,
            k=k,
            hedge=c,
            descent=qy if o.lower_hedge > 0.0 else None,
        )

    return Algorithm(init, step, lambda index: 1)

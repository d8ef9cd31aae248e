"""AggITD-AQ: Anderson mixing on the server, preconditioned by a quasi-Newton operator learnt from probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clients.operations.single_loop import probed_directions
from fedbilevel.federation.rounds import Federation
from fedbilevel.strict import Positive
from server.algorithms.own.aggitd_s import unit
from server.kit import options
from server.kit.algorithm import Algorithm, State, algorithm

History = tuple[Tensor, ...]
_AGAINST = 1e-3
"""A mixed step of x that goes along the direction by less than this share of the plain one is not taken."""


class Options(options.Options):
    """Options of `aggitd-aq`, none of which has to be set."""

    upper_step: Annotated[options.Step, Field(description="a: step size of x before mixing")] = 0.5
    memory: Annotated[options.Count, Field(description="m: earlier points that are mixed")] = 20
    regularisation: Annotated[Positive, Field(description="reg: of the mixing weights, columns of length 1")] = 0.01
    settling: Annotated[
        int, Field(ge=0, description="rounds in which half of m is mixed with ten times reg, as B is still learning")
    ] = 20
    probes: Annotated[options.Count, Field(description="mq: products with the Hessian that are remembered")] = 10
    cutoff: Annotated[
        float, Field(gt=0, lt=1, description="rc: share of the largest curvature among them that counts")
    ] = 0.1
    cap: Annotated[Positive, Field(description="cap: longest mixed step of x, in plain ones")] = 10.0

    def remarks(self, *, sampled: bool, minibatches: bool) -> list[str]:
        """That it is for deterministic problems, where this one is not."""
        noise = [text for text, is_so in (("sampled clients", sampled), ("minibatches", minibatches)) if is_so]
        return [f"mixing takes the noise of {' and '.join(noise)} for curvature and may diverge"] if noise else []


@dataclass(frozen=True)
class AggITDAQState(State):
    """v: the estimate of H^-1 fy; probe: d [dy]; curvature: Lh; k: how many iterations are done.

    points, residuals: z = (x, y, v) and q = (qx, qy, qv) of the last m + 1 rounds; directions, products: the last mq
    probes d and H d.
    """

    v: Tensor | None = None
    probe: Tensor | None = None
    curvature: float = 0.0
    k: int = 0
    points: History = ()
    residuals: History = ()
    directions: History = ()
    products: History = ()


def preconditioned(G: Tensor, S: Sequence[Tensor], Y: Sequence[Tensor], rc: float, b0: float) -> Tensor:
    """`B g` for every row g of G: a BFGS operator from all pairs (d, H d) at once, b0 elsewhere (symmetric).

    S'Y is symmetrised, its directions with less than rc of the largest curvature are left out; S and Y [dy] each.
    """
    if not S:
        return b0 * G
    s, t = torch.stack(list(S), 1), torch.stack(list(Y), 1)
    w, V = torch.linalg.eigh(0.5 * (s.mT @ t + t.mT @ s))
    if float(w[-1]) <= 0.0:
        return b0 * G
    kept = w > rc * w[-1]
    W = V[:, kept] / w[kept].sqrt()
    s, t = s @ W, t @ W
    along = G @ s  # S^'g
    rest = b0 * (G - along @ t.mT)  # t1
    return torch.as_tensor(along @ s.mT + rest - (rest @ t) @ s.mT)


def mixed(points: Tensor, F: Tensor, regularisation: float) -> Tensor:
    """Anderson's next point from points and fixed-point residuals [m, d], the latest last."""
    f = F[-1]
    if len(F) < 2:
        return points[-1] + f
    dF, dZ = F.diff(dim=0), points.diff(dim=0)
    size = dF.norm(dim=1, keepdim=True)
    held = size.squeeze(1) > 0
    dF, dZ = dF[held] / size[held], dZ[held] / size[held]
    A = dF @ dF.mT + regularisation * torch.eye(len(dF), dtype=F.dtype)
    return torch.as_tensor(points[-1] + f - torch.linalg.solve(A, dF @ f) @ (dZ + dF))


@algorithm(
    "aggitd-aq",
    source="ours; after Anderson (1965) and BFGS",
    options=Options,
    reading="ours: for full participation and full batches",
)
def aggitd_aq(o: Options) -> Algorithm[AggITDAQState]:
    """Single loop with server-side Anderson mixing and learnt curvature, for deterministic problems; 1 round."""

    def init(x: Tensor, y: Tensor) -> AggITDAQState:
        return AggITDAQState(x, y, v=0 * y)

    def step(state: AggITDAQState, fed: Federation) -> AggITDAQState:
        x, y, v = state.x, state.y, torch.as_tensor(state.v)
        d = unit(fed, y) if state.probe is None else state.probe
        # q = agg of (fx_i - J_i v, gy_i, H_i v - fy_i), t = agg of H_i d
        qx, qy, qv, t = fed.mean(probed_directions, x=x, y=y, v=v, d=d)
        S, Y, Lh, a = state.directions, state.products, state.curvature, o.upper_step
        if float(d @ t) > 0.0:
            S, Y = (*S, d)[-o.probes :], (*Y, t)[-o.probes :]
            Lh = max(Lh, float(t.norm()))
        b0 = 0.0 if Lh == 0.0 else 1.0 / (Lh if state.curvature > 0.0 else 3.0 * Lh)
        z, q = torch.cat([x, y, v]).double(), torch.cat([qx, qy, qv]).double()
        settled = state.k >= o.settling
        memory, reg = (o.memory, o.regularisation) if settled else (max(1, o.memory // 2), 10 * o.regularisation)
        points = (*state.points, z)[-(memory + 1) :]
        residuals = (*state.residuals, q)[-(memory + 1) :]
        # F_j = -(a qx_j, B qy_j, B qv_j) of all of them, by the B of now
        parts, m = [len(x), len(y), len(y)], len(residuals)
        of_x, of_y, of_v = torch.split(torch.stack(residuals), parts, dim=1)
        B = preconditioned(torch.cat([of_y, of_v]), [s.double() for s in S], [t.double() for t in Y], o.cutoff, b0)
        F = -torch.cat([a * of_x, B[:m], B[m:]], dim=1)
        new = mixed(torch.stack(points), F, reg)
        s, down = new[: len(x)] - z[: len(x)], q[: len(x)]
        length, longest = float(s.norm()), o.cap * a * float(down.norm())
        if float(s @ down) > -_AGAINST * a * float(down @ down):  # not downhill
            new = z + F[-1]
        elif length > longest:
            new = z + (new - z) * (longest / length)
        # the next probe goes where y went, or v, by turns
        way = torch.split(new - z, parts)[1 + state.k % 2].to(d.dtype)
        size = float(way.norm())
        x_next, y_next, v_next = (part.to(x.dtype, copy=True) for part in torch.split(new, parts))
        d = way / size if size > 0.0 else d
        known = replace(state, points=points, residuals=residuals, directions=S, products=Y, curvature=Lh)
        return replace(known, x=x_next, y=y_next, v=v_next, hypergradient=qx, probe=d, k=state.k + 1)

    return Algorithm(init, step, lambda index: 1)

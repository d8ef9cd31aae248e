"""The pieces that several algorithms share: FedInn (one lower-level step), FedIHGP, and FedOut (the x step)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clients.operations.local import outer_steps, sgd_steps, svrg_steps
from clients.operations.oracles import lower_gradient, neumann_factor, upper_gradient_y
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import LocalSteps

Accounting = Literal["paper", "merged"]


def in_place(local_steps: LocalSteps, accounting: Accounting) -> bool:
    """Whether the server takes the step itself: merged accounting, one local step."""
    return accounting == "merged" and local_steps == 1


def svrg_rounds(local_steps: LocalSteps, accounting: Accounting) -> int:
    """Rounds of one FedSVRG step."""
    return 1 if in_place(local_steps, accounting) else 2


def svrg_finish(
    fed: Federation,
    x: Tensor,
    y: Tensor,
    gradient: Tensor,
    step: float,
    local_steps: LocalSteps,
    accounting: Accounting,
) -> Tensor:
    """Finish a FedSVRG step from gbar = agg(gy_i(x, y)): part B, or the server's own step."""
    if in_place(local_steps, accounting):
        return y - step * gradient
    y_next: Tensor = fed.mean(svrg_steps, x=x, y=y, gradient=gradient, lower_step=step, local_steps=local_steps)
    return y_next


def fed_inn(
    fed: Federation,
    x: Tensor,
    y: Tensor,
    variant: Literal["svrg", "sgd"],
    T: int,
    step: float,
    local_steps: LocalSteps,
    accounting: Accounting,
) -> Tensor:
    """FedInn: T lower-level steps from y, each FedSVRG or FedSGD."""
    for _ in range(T):
        if variant == "sgd":
            y = fed.mean(sgd_steps, x=x, y=y, lower_step=step, local_steps=local_steps)
        else:
            gradient = fed.mean(lower_gradient, x=x, y=y)
            y = svrg_finish(fed, x, y, gradient, step, local_steps, accounting)
    return y


def fed_inn_rounds(variant: Literal["svrg", "sgd"], T: int, local_steps: LocalSteps, accounting: Accounting) -> int:
    """Rounds of FedInn."""
    return T if variant == "sgd" else T * svrg_rounds(local_steps, accounting)


def fed_ihgp(fed: Federation, x: Tensor, y: Tensor, lam: float, N: int, index: int | None) -> Tensor:
    """FedIHGP: p, the estimate of v = H^-1 fy, with the clients' Hessians averaged in every round.

    The sum (index None): p_0 = agg(fy_i), p_n = agg(p_{n-1} - lam H_i p_{n-1}), p = lam sum_{n=0..N} p_n; N+1 rounds.
    Sampled: p = lam N agg(fy_i), then N' times p = agg(p - lam H_i p); N'+1 rounds.
    """
    p = fed.mean(upper_gradient_y, x=x, y=y)
    if index is not None:
        p = lam * N * p
        for _ in range(index):
            p = fed.mean(neumann_factor, x=x, y=y, r=p, neumann_step=lam)
        return torch.as_tensor(p)
    total = p
    for _ in range(N):
        p = fed.mean(neumann_factor, x=x, y=y, r=p, neumann_step=lam)
        total = total + p
    return torch.as_tensor(lam * total)


def fed_out(
    fed: Federation,
    x: Tensor,
    y: Tensor,
    h: Tensor,
    step: float,
    local_steps: LocalSteps | Literal[0],
    accounting: Accounting,
) -> Tensor:
    """FedOut: the x step along h, local steps corrected by the direct gradient; 0 local steps: on the server."""
    if fed_out_rounds(local_steps, accounting) == 0:
        return x - step * h
    x_next: Tensor = fed.mean(outer_steps, x=x, y=y, hypergradient=h, upper_step=step, upper_local_steps=local_steps)
    return x_next


def fed_out_rounds(local_steps: LocalSteps | Literal[0], accounting: Accounting) -> int:
    """Rounds of FedOut."""
    return 0 if local_steps == 0 or in_place(local_steps, accounting) else 1

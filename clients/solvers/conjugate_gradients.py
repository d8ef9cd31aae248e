"""Conjugate gradients for many systems at once (Hestenes & Stiefel, 1952), and what is done where one is indefinite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DOUBLINGS = 10
"""How often an indefinite system is solved again: with damping, 2 damping, ..., 2^9 damping on its diagonal."""

Product = Callable[[Tensor], Tensor]
"""Rows v [B, d] to the products A_b v_b [B, d], every A_b symmetric."""


@dataclass(frozen=True)
class Solution:
    """u [B, d] with A_b u_b = rhs_b.

    negative [B], bool: the system met a direction p with p'Ap <= 0. added [B]: what was then added to its diagonal.
    skipped [B], bool: it met one with every damping too, and u_b is zero. residual [B]: |rhs - (A + added) u| / |rhs|,
    computed anew rather than carried along (0 where rhs is 0; 1 where the system is skipped).
    """

    u: Tensor
    negative: Tensor
    added: Tensor
    skipped: Tensor
    residual: Tensor


def norms(rows: Tensor) -> Tensor:
    """The Euclidean norm of every row, [B]."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return length


def conjugate_gradients(product: Product, rhs: Tensor, *, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the iterates u [B, d] after at most `steps` steps from 0, and the curvature each system stopped at [B].

    A system stops by itself once its residual is `tolerance` of its right-hand side (at least the rounding unit of the
    dtype), or where it meets negative curvature: p'Ap <= eps |p| |Ap|. The second result is then p'Ap / p'p, and
    infinite otherwise. A stopped system no longer moves; the loop ends with the last one.
    """
    eps = torch.finfo(rhs.dtype).eps
    u, r = torch.zeros_like(rhs), rhs
    rho = (r * r).sum(-1)
    target = max(tolerance, eps) ** 2 * rho
    lowest = torch.full_like(rho, torch.inf)
    active = ~(rho <= target)
    p = r
    for _ in range(steps):
        if not bool(active.any()):
            break
        q = product(p)
        curvature = (p * q).sum(-1)
        met = active & (curvature <= eps * norms(p) * norms(q))
        lowest = torch.where(met, curvature / (p * p).sum(-1), lowest)
        active = active & ~met
        alpha = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)[:, None]
        u, r = u + alpha * p, r - alpha * q
        new = (r * r).sum(-1)
        active = active & ~(new <= target)
        beta = torch.where(active, new / torch.where(active, rho, 1.0), 0.0)[:, None]
        p, rho = torch.where(active[:, None], r + beta * p, 0.0), new
    return u, lowest


def solve(product: Product, rhs: Tensor, *, steps: int, tolerance: float, damping: float) -> Solution:
    """Solve A_b u_b = rhs_b for positive definite A_b; never silently where one is not.

    A system that meets negative curvature is solved again from 0 with the least of damping, 2 damping, 4 damping, ...,
    `DOUBLINGS` levels in all, added to its diagonal with which it meets none; a level that the curvature met so far
    proves to be too low is passed over. A system that no level repairs is skipped, u_b = 0. Negative curvature is
    noticed in the directions that are taken: a system that converges without meeting any is solved as it stands.
    """
    size = norms(rhs)[:, None]
    rhs = rhs / torch.where(size == 0, 1.0, size)
    u, lowest = conjugate_gradients(product, rhs, steps=steps, tolerance=tolerance)
    negative = left = lowest < torch.inf
    added = torch.zeros_like(lowest)
    levels = damping * 2.0 ** torch.arange(DOUBLINGS, dtype=rhs.dtype, device=rhs.device)
    level = torch.full_like(lowest, -1, dtype=torch.long)
    while True:
        needed = torch.searchsorted(levels, torch.where(left, -lowest, 0.0), right=True)
        level = torch.where(left, torch.maximum(level + 1, needed), level)
        trying = left & (level < DOUBLINGS)
        if not bool(trying.any()):
            break
        extra = torch.where(trying, levels[level.clamp(0, DOUBLINGS - 1)], 0.0)

        def damped(v: Tensor, extra: Tensor = extra[:, None]) -> Tensor:
            return product(v) + extra * v

        again, met = conjugate_gradients(
            damped, torch.where(trying[:, None], rhs, 0.0), steps=steps, tolerance=tolerance
        )
        solved = trying & ~(met < torch.inf)
        u, added = torch.where(solved[:, None], again, u), torch.where(solved, extra, added)
        left, lowest = left & ~solved, torch.minimum(lowest, met - extra)
    u = torch.where(left[:, None], 0.0, u)
    residual = norms(rhs - product(u) - added[:, None] * u)
    return Solution(size * u, negative, added, left, residual)

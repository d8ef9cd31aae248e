"""Rules that move a centre: its next place is a combination of the vectors, weighed by how far from it they are."""

from __future__ import annotations

import torch
from torch import Tensor

from fedbilevel.robust.columns import blocks

NU, TOLERANCE, WEISZFELD_STEPS = 1e-6, 1e-10, 100
CLIPPING_STEPS = 3


def geometric_median(rows: Tensor) -> Tensor:
    r"""$\mathrm{argmin}_z \sum_i |u_i - z|$ of rows [n, d] by smoothed Weiszfeld, [d] float64.

    From the mean, $z \leftarrow \sum_i w_i u_i / \sum_i w_i$ with $w_i = 1 / \max(\nu, |u_i - z|)$, until
    $|\Delta z| \le 10^{-10} |z|$ or for 100 steps. RFA, Pillutla et al. (IEEE TSP 2022).

    A step takes an error towards f far vectors down to f / (n - f) of it: 100 steps leave much of a huge one where f is
    nearly n / 2.
    """
    n, d = rows.shape
    z, distances = _moved(rows, torch.full((n,), 1.0 / n, dtype=torch.float64), torch.zeros(d, dtype=torch.float64))
    for _ in range(WEISZFELD_STEPS):
        before = z
        w = 1.0 / distances.clamp(min=NU)
        z, distances = _moved(rows, w / w.sum(), before)
        if (z - before).norm() <= TOLERANCE * z.norm():
            break
    return z


def centred_clipping(rows: Tensor, radius: float, last: Tensor | None) -> Tensor:
    r"""Three steps $z \leftarrow z + \frac1n \sum_i (u_i - z) \min(1, r / |u_i - z|)$ of rows [n, d], [d] float64.

    From `last` [d], or 0. Karimireddy et al. (ICML 2021).
    """
    n, d = rows.shape
    z = torch.zeros(d, dtype=torch.float64) if last is None else last.double()
    z, distances = _moved(rows, torch.zeros(n, dtype=torch.float64), z)
    for _ in range(CLIPPING_STEPS):
        z, distances = _moved(rows, (radius / distances).clamp(max=1.0) / n, z)
    return z


def _moved(rows: Tensor, weights: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Where z goes, z + sum_i w_i (u_i - z), [d], and how far the rows [n, d] are from there, [n]: one pass over them.

    The weights are of sum 1 or less; what is missing to 1 is kept of z.
    """
    kept = 1.0 - weights.sum()
    moved = torch.empty_like(z)
    squares = torch.zeros(len(rows), dtype=torch.float64)
    for block in blocks(rows.shape[1], len(rows)):
        values = rows[:, block].double()
        moved[block] = weights @ values + kept * z[block]
        squares += (values - moved[block]).square_().sum(1)
    return moved, squares.sqrt()

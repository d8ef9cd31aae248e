"""Who is near whom: squared distances of all pairs, Krum's choice and the mean of the nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from fedbilevel.robust.columns import blocks

SAMPLED = 256
"""By so many columns the row is chosen about which the distances are taken."""

CANCELLING = 2.0**-8
"""A squared distance below this share of |a|^2 + |b|^2 is not taken from products: it would lose over eight bits."""


def squared_distances(rows: Tensor) -> Tensor:
    """|u_i - u_j|^2 of all pairs of rows [n, d]: [n, n] float64, symmetric.

    From the products about a row in the midst of the others, |a|^2 + |b|^2 - 2ab with a = u_i - u_c. What cancels there
    (vectors that nearly agree far from the others) is summed from the differences, and so are short vectors: all have
    the accuracy of a plain sum of squares. Vectors of up to 1e150; beyond, a distance is infinite.
    """
    n, d = rows.shape
    distances = torch.zeros(n, n, dtype=torch.float64)
    i, j = torch.triu_indices(n, n, 1)
    sample = rows[:, :: -(-d // SAMPLED)] if d else rows
    pairs = _from_differences(sample, i, j)
    distances[i, j] = distances[j, i] = pairs
    if sample.shape == rows.shape:
        return distances
    centre = int(distances.median(1).values.argmin())
    products = torch.zeros_like(distances)
    for block in blocks(d, n):
        values = rows[:, block].double()
        about = values - values[centre]
        products += about @ about.t()
    squares = products.diagonal()
    sizes = squares[i] + squares[j]
    pairs = sizes - 2.0 * products[i, j]
    again = ~(pairs > CANCELLING * sizes)  # NaN, of inf - inf, is to be among them
    pairs[again] = _from_differences(rows, i[again], j[again])
    distances[i, j] = distances[j, i] = pairs
    return distances


def _from_differences(rows: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|u_i - u_j|^2 of the pairs (i, j), [pairs], as a sum of squares."""
    sums = torch.zeros(len(i), dtype=torch.float64)
    if len(i):
        for block in blocks(rows.shape[1], len(i)):
            values = rows[:, block].double()
            sums += (values[i] - values[j]).square_().sum(1)
    return sums


def krum_order(rows: Tensor, f: int) -> Tensor:
    """Krum's ranking of rows [n, d], the best first, [n]; of equal scores the lower index first.

    The score is the sum of the squared distances to the n - f - 2 nearest others. Blanchard et al. (NeurIPS 2017).
    """
    distances = squared_distances(rows)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.sort(dim=1).values[:, : len(rows) - f - 2]
    return nearest.sum(1).sort(stable=True).indices


def neighbourhoods(rows: Tensor, f: int) -> Tensor:
    """Whose mean takes the place of each row of [n, d]: the n - f nearest to it, itself one of them; [n, n] of 0 and 1.

    Of equal distances the lower index is nearer. Nearest-neighbour mixing, Allouah et al. (AISTATS 2023).
    """
    nearest = squared_distances(rows).sort(dim=1, stable=True).indices[:, : len(rows) - f]
    return torch.zeros(len(rows), len(rows)).scatter_(1, nearest, 1.0)


def buckets(n: int, size: int, order: Tensor | None) -> Tensor:
    """Who is in each bucket: consecutive ones in this order, what is left in the last; [ceil(n / size), n] of 0 and 1.

    Karimireddy et al. (ICLR 2022).
    """
    members = torch.zeros(-(-n // size), n)
    members[torch.arange(n) // size, torch.arange(n) if order is None else order] = 1.0
    return members

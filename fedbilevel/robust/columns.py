"""Blocks of columns: the clients' vectors [n, d] in pieces that stay in the cache, where d may be millions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

VALUES = 2**18
"""So many values a block holds: 2 MiB in float64."""


def blocks(columns: int, height: int) -> Iterator[slice]:
    """Slices of so many columns, each of about VALUES values where a column has `height`."""
    width = max(1, VALUES // height)
    return (slice(start, min(start + width, columns)) for start in range(0, columns, width))


def sorted_columns(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the columns of rows [n, d], float32 or float64 on the CPU: which, and their values in order [width, n].

    numpy sorts short contiguous runs with vector instructions, torch does not: of 100 vectors ten times as fast.
    """
    for block in blocks(rows.shape[1], len(rows)):
        values = rows[:, block].t().clone(memory_format=torch.contiguous_format)
        values.numpy().sort(axis=1)
        yield block, values


def means(rows: Tensor, members: Tensor) -> Tensor:
    """Means of some of the rows [n, d], in float64: of those whose entry in members [k, n] or [n] is 1 and not 0.

    [k, d] or [d].
    """
    members = members.double()
    sums = torch.empty(*members.shape[:-1], rows.shape[1], dtype=torch.float64)
    for block in blocks(rows.shape[1], len(rows)):
        sums[..., block] = members @ rows[:, block].double()
    return sums.div_(members.sum(-1, keepdim=True))

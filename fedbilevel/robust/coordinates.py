"""Rules that take every coordinate by itself, from its values in order."""

from __future__ import annotations

import torch
from torch import Tensor

from fedbilevel.robust.columns import means, sorted_columns


def median(rows: Tensor) -> Tensor:
    """The median of every column of rows [n, d], [d] float64; of an even n the mean of the two middle values."""
    return _middle(rows, (len(rows) - 1) // 2)


def trimmed_mean(rows: Tensor, f: int) -> Tensor:
    """The mean of every column of rows [n, d] without its f largest and f smallest values, [d] float64; 2f < n.

    Yin et al. (ICML 2018). What is left is summed, not the sum lessened by what is dropped: that may be huge.
    """
    return means(rows, torch.ones(len(rows))) if f == 0 else _middle(rows, f)


def _middle(rows: Tensor, dropped: int) -> Tensor:
    """The mean of every column between as many dropped at both ends."""
    means = torch.empty(rows.shape[1], dtype=torch.float64)
    for block, values in sorted_columns(rows):
        means[block] = values[:, dropped : len(rows) - dropped].mean(1, dtype=torch.float64)
    return means

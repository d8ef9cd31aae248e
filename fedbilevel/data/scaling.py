"""Factors of examples that make the clients' weighted means one mean over the examples of all clients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.problem import Ragged


def plain_mean(level: Ragged, weights: NDArray[np.float64], marked: Tensor | None = None) -> Tensor:
    """The factor s of every example [n], float64, with which sum_i p_i mean_j(s_ij loss_ij) is a mean over examples.

    That is the plain mean over the marked examples (default: all), whoever holds them and whatever p_i is: a client of
    n_i examples gives s = n_i / (p_i * number marked) to those that are marked, and 0 to the others.

    level: the examples of all clients; weights: p_i [m]; marked: [n], bool, at least one of them true.

    >>> level = Ragged(torch.zeros(3), np.array([0, 1, 3]))
    >>> plain_mean(level, np.array([0.5, 0.5]))
    tensor([0.6667, 1.3333, 1.3333], dtype=torch.float64)
    """
    own = torch.from_numpy(np.repeat(level.sizes / weights, level.sizes))
    kept = torch.ones_like(own) if marked is None else marked.to(own)
    return own * kept / kept.sum()

"""What the quadratic problems share: checks of their parameters, how they are drawn, and means over clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.errors import BadInput
from fedbilevel.problem import Ragged

Array = NDArray[np.float64]


def hold(counts: Mapping[str, int], sizes: Mapping[str, float], mu: float, L: float, seed: int) -> None:
    """Raises BadInput for a count below 1, a size below 0 or not finite, and mu, L or a seed out of range."""
    for key, value in counts.items():
        if value < 1:
            raise BadInput(f"problem.{key}", value, "an integer of at least 1")
    for key, number in sizes.items():
        if not (np.isfinite(number) and number >= 0):
            raise BadInput(f"problem.{key}", number, "a finite number of at least 0")
    if not (0 < mu <= L < np.inf):
        raise BadInput("problem.mu", mu, f"a number above 0 and at most L ({L})")
    if seed < 0:
        raise BadInput("problem.seed", seed, "an integer of at least 0")


def least_and_most(examples: int | Sequence[int]) -> tuple[int, int]:
    """Of the examples of a client, given as one number or [low, high]. Raises BadInput."""
    if not isinstance(examples, int) and len(examples) != 2:
        raise BadInput("problem.examples", list(examples), "an integer of at least 1, or [low, high]")
    low, high = (examples, examples) if isinstance(examples, int) else examples
    if not 1 <= low <= high:
        allowed = "an integer of at least 1, or [low, high] with 1 <= low <= high"
        raise BadInput("problem.examples", examples, allowed)
    return low, high


def means(level: Ragged, weights: Array, *names: str) -> list[Tensor]:
    """sum_i p_i mean_e of some arrays of the examples, in float64."""
    share = level.shares(weights)
    return [torch.tensordot(share, level.values[name].double().cpu(), dims=([0], [0])) for name in names]


def definite(
    draw: np.random.Generator,
    clients: int,
    dim: int,
    heterogeneity: float,
    mu: float,
    L: float,
    base: Array | None = None,
) -> Array:
    """Symmetric matrices with eigenvalues in [mu, L], [clients, dim, dim]; equal without heterogeneity.

    base: the eigenvectors [dim, dim] that every client's are turned away from, drawn unless given.
    """
    if base is None:
        base, _ = np.linalg.qr(draw.standard_normal((dim, dim)))
    turned, _ = np.linalg.qr(base + heterogeneity * draw.standard_normal((clients, dim, dim)))
    own = draw.random((clients, dim)) if heterogeneity else np.linspace(0, 1, dim)[None, :]
    return np.asarray((turned * (mu + (L - mu) * own)[:, None, :]) @ turned.transpose(0, 2, 1))

"""Random matrices of clients that are unlike each other, as the quadratic problems draw them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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

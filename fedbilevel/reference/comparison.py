"""How far an estimate is from a reference."""

from __future__ import annotations

import torch
from torch import Tensor


def relative(found: Tensor, reference: Tensor, *, zero: bool = False) -> float:
    """|found - reference| / |reference|, or |found| / |reference|; vectors or, for many tasks, their rows at once.

    >>> relative(torch.tensor([3.0, 5.0]).double(), torch.tensor([3.0, 4.0]).double())
    0.2
    """
    difference = found if zero else found - reference
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(reference))

"""Products of a few rows with many: a linear head on all examples at once, and its transpose.

torch gives such a product to one thread, and those of a batch to all of them; blocks that stay in the cache also pay in
double precision. Below LONG rows there is nothing to be gained.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK, LONG = 500, 8_000


def outputs(weight: Tensor, feature: Tensor) -> Tensor:
    """`weight @ feature.mT`, [..., a, n], of weight [..., a, w] and feature [..., n, w].

    >>> weight, feature = torch.ones(2, 3), torch.ones(9000, 3)
    >>> torch.equal(outputs(weight, feature), weight @ feature.mT)
    True
    """
    n = feature.shape[-2]
    if weight.ndim > 2 or feature.ndim > 2 or n < LONG:
        return weight @ feature.mT
    blocks = n // BLOCK
    head, tail = feature.split([blocks * BLOCK, n - blocks * BLOCK])
    many = torch.bmm(weight.expand(blocks, -1, -1), head.view(blocks, BLOCK, -1).mT)
    return torch.cat([many.transpose(0, 1).flatten(1), weight @ tail.mT], dim=1)


def inputs(cotangent: Tensor, feature: Tensor) -> Tensor:
    """`cotangent @ feature`, [..., a, w], of cotangent [..., a, n] and feature [..., n, w].

    >>> cotangent, feature = torch.ones(2, 9000), torch.ones(9000, 3)
    >>> torch.equal(inputs(cotangent, feature), cotangent @ feature)
    True
    """
    n = feature.shape[-2]
    if cotangent.ndim > 2 or feature.ndim > 2 or n < LONG:
        return cotangent @ feature
    blocks = n // BLOCK
    head, tail = feature.split([blocks * BLOCK, n - blocks * BLOCK])
    first, last = cotangent.split([blocks * BLOCK, n - blocks * BLOCK], dim=1)
    many = torch.bmm(first.unflatten(1, (blocks, BLOCK)).transpose(0, 1), head.view(blocks, BLOCK, -1))
    return torch.as_tensor(many.sum(0) + last @ tail)

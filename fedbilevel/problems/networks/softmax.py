"""A linear softmax classifier in closed form, over any leading dimensions: y [..., classes * (width + 1)].

y is the weight [classes, width], row by row, and the bias [classes]; features are [..., n, width], and logits,
probabilities and cotangents of logits [..., classes, n]: with the examples last, a softmax over few classes is
vectorised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedbilevel.problems.networks import thin


def parts(y: Tensor, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """The weight [..., classes, width] and the bias [..., classes]."""
    return y[..., : classes * width].unflatten(-1, (classes, width)), y[..., classes * width :]


def logits(y: Tensor, feature: Tensor, classes: int) -> Tensor:
    """The logits [..., classes, n]."""
    weight, bias = parts(y, feature.shape[-1], classes)
    return thin.outputs(weight, feature) + bias.unsqueeze(-1)


def gradient(cotangent: Tensor, feature: Tensor) -> Tensor:
    """The gradient in y, flat, from that of the logits."""
    return torch.cat([thin.inputs(cotangent, feature).flatten(-2), cotangent.sum(-1)], dim=-1)


def curved(p: Tensor, u: Tensor) -> Tensor:
    """(diag(p) - p p') u over the classes: the Hessian of the cross-entropy in the logits, times u."""
    pu = p * u
    return pu - p * pu.sum(-2, keepdim=True)


def onehot(label: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """The one-hot labels [..., n, classes]."""
    return (label.unsqueeze(-1) == torch.arange(classes, device=label.device)).to(dtype)

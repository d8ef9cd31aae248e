"""Cross-entropy of a convolutional network with a linear head, for B tasks at once: derivatives in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedbilevel.derivatives import Expansion
from fedbilevel.problems.networks import softmax
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.problems.networks.outputs import Jacobian, Outputs, together

Labelled = dict[str, Tensor]
"""Of each task: "input" [B, n, side, side] and "label" [B, n]."""


class Classifier:
    """The closed forms of a problem whose two losses are the cross-entropy of a network that normalises.

    Parameters y and directions v are [B, size], weights [B, n], or all of them without the B; x is not read.
    """

    def __init__(self, network: Convolutions) -> None:
        self.network = network

    def gradient(self, x: Tensor, y: Tensor, examples: Labelled, weights: Tensor) -> Tensor:
        """The gradient of the weighted loss."""
        found = torch.cat([part.gradient for part in self._parts(y, examples, weights)])
        return found if y.ndim == 2 else found[0]

    def hvp(self, x: Tensor, y: Tensor, v: Tensor, examples: Labelled, weights: Tensor) -> Tensor:
        """The product of its Hessian with v."""
        return self.expansion(x, y, examples, weights).product(v)

    def expansion(self, x: Tensor, y: Tensor, examples: Labelled, weights: Tensor) -> Expansion:
        """The gradient, and products with the Hessian that go on from what the gradient has computed."""
        parts = list(self._parts(y, examples, weights))

        def product(v: Tensor) -> Tensor:
            rows = v.view(-1, v.shape[-1]).split([len(part.gradient) for part in parts])
            return torch.cat([part.product(some) for part, some in zip(parts, rows, strict=True)]).view_as(v)

        return Expansion(torch.cat([part.gradient for part in parts]).view_as(y), product)

    def jacobian(self, y: Tensor, examples: Labelled, rows: int) -> Jacobian:
        """The logits of tasks at common parameters y [size], and products with their Jacobians."""
        return Jacobian(self.network, y, examples["input"], rows)

    def _parts(self, y: Tensor, examples: Labelled, weights: Tensor) -> Iterator[Expansion]:
        """Some tasks after others."""
        n = weights.shape[-1]
        size = together(n)
        inputs, label = examples["input"], examples["label"]
        if y.ndim == 1:
            y, inputs, label, weights = y.unsqueeze(0), inputs.unsqueeze(0), label.unsqueeze(0), weights.unsqueeze(0)
        some = zip(y.split(size), inputs.split(size), label.split(size), weights.split(size), strict=True)
        return (self._expansion(*part) for part in some)

    def _expansion(self, y: Tensor, inputs: Tensor, label: Tensor, weights: Tensor) -> Expansion:
        passed = Outputs(self.network, y, inputs)
        p = torch.softmax(passed.logits, -2)
        each = weights.unsqueeze(-2)
        found, back = passed.pull((p - softmax.onehot(label, self.network.outputs, p.dtype).mT) * each)

        def product(v: Tensor) -> Tensor:
            du, forth = passed.push(v)
            return passed.curve(back, forth, softmax.curved(p, du) * each)

        return Expansion(found, product)

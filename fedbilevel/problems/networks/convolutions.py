"""Blocks of a convolution and a pooling mean as a network, a gather and a matrix product each."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, pad

from fedbilevel.problem import Part
from fedbilevel.problems.networks.blocks import EPSILON, Weights
from fedbilevel.problems.networks.layers import Layered


class Convolutions(Layered):
    """Blocks of a 3x3 convolution with stride 2 and padding 1, normalisation and ReLU; the mean over what is left.

    The network of Finn, Abbeel & Levine (2017) for Omniglot. The normalisation is over the examples given (transductive
    on a query set) and the positions, with a scale and a shift per filter; or there is none, and a bias in its place.

    A convolution is a gather of 3x3 patches and a matrix product: with parameters per task that is one batched product
    for all tasks. A native convolution would be a grouped one, whose second derivative takes a CPU longer. `Classifier`
    has the derivatives of many tasks in closed form; what is differentiated here is automatic's, to any order.

    shape: of an image, (side, side) or (side, side, channels), where inputs come flat; default: as they come.
    native: take torch's convolution all the same (without normalisation), which with common parameters is faster.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        outputs: int,
        blocks: int = 4,
        *,
        normalise: bool = True,
        shape: tuple[int, ...] | None = None,
        native: bool = False,
    ) -> None:
        body: list[tuple[int, ...]] = []
        for block in range(blocks):
            body.append((9 * (channels if block == 0 else filters), filters))
            body += [(filters,)] * (2 if normalise else 1)
        super().__init__(body, filters, outputs)
        self.normalise, self.shape, self.native = normalise, shape, native

    @property
    def parts_of_body(self) -> list[Part]:
        """The blocks' kernels [9 inputs, filters], and each one's scale and shift, or its bias."""
        kinds = ("weight", "scale", "shift") if self.normalise else ("weight", "bias")
        named = (divmod(k, len(kinds)) for k in range(len(self.shapes) - 2))
        return [
            Part(f"{block}.{kinds[kind]}", shape, outputs_last=kind == 0)
            for (block, kind), shape in zip(named, self.shapes[:-2], strict=True)
        ]

    def initial(self, generator: torch.Generator) -> Tensor:
        """Weights normal of variance 2 / fan in (1 / fan in in the head), scales one, shifts and biases zero."""
        parts = []
        for k, shape in enumerate(self.shapes):
            draw = torch.randn(math.prod(shape), generator=generator, dtype=torch.float64)
            if len(shape) == 2:
                head = k == len(self.shapes) - 2
                parts.append(draw * math.sqrt(1.0 / shape[1] if head else 2.0 / shape[0]))
            else:
                parts.append(torch.full_like(draw, float(self.normalise and k % 3 == 1 and k < len(self.shapes) - 2)))
        return torch.cat(parts)

    def images(self, inputs: Tensor, leading: int = 1) -> Tensor:
        """Inputs [n, side, side] or [n, side, side, channels], or flat ones of a known shape, with their channels.

        leading: how many dimensions come before those of an image.
        """
        h = inputs if self.shape is None else inputs.reshape(*inputs.shape[:leading], *self.shape)
        return h.unsqueeze(-1) if h.ndim == leading + 2 else h

    def blocks(self, y: Tensor) -> list[Weights]:
        """The parameters y [B, size] of every block of a network that normalises."""
        cut = torch.split(y[:, : self.body], self._sizes[:-2], 1)
        return [
            Weights(kernel.view(len(y), *shape), scale.unsqueeze(1), shift.unsqueeze(1))
            for kernel, scale, shift, shape in zip(cut[::3], cut[1::3], cut[2::3], self.shapes[:-2:3], strict=True)
        ]

    def _body(self, parts: list[Tensor], inputs: Tensor) -> Tensor:
        h = self.images(inputs)
        if self.native:
            return self._natively(parts, h.movedim(-1, 1))
        step = 3 if self.normalise else 2
        for k in range(0, len(parts), step):
            h = _patches(h) @ parts[k]
            h = self._normal(h) * parts[k + 1] + parts[k + 2] if self.normalise else h + parts[k + 1]
            h = torch.relu(h)
        return h.mean((1, 2))

    def _natively(self, parts: list[Tensor], h: Tensor) -> Tensor:
        """The blocks, on inputs [n, channels, side, side]."""
        for weight, bias in zip(parts[::2], parts[1::2], strict=True):
            kernel = weight.unflatten(0, (3, 3, -1)).permute(3, 2, 0, 1)
            h = torch.relu(conv2d(h, kernel, bias, stride=2, padding=1))
        return h.mean((2, 3))

    def _normal(self, h: Tensor) -> Tensor:
        h = h - h.mean((0, 1, 2))
        return h * (h.square().mean((0, 1, 2)) + EPSILON).rsqrt()


def _patches(h: Tensor) -> Tensor:
    """The 3x3 patches of h [n, side, side, c] in steps of 2, zeros around: [n, ceil(side/2), ceil(side/2), 9 c]."""
    n, side, _, channels = h.shape
    out = (side + 1) // 2
    flat = pad(h, (0, 0, 1, 1, 1, 1)).flatten(1, 2)
    return flat[:, torch.as_tensor(_index(side), device=h.device)].reshape(n, out, out, 9 * channels)


@cache
def _index(side: int) -> NDArray[np.int64]:
    """Where the patches' pixels are in a padded image that is flattened; no tensor, which a transform could own."""
    start, offset = 2 * np.arange((side + 1) // 2), np.arange(3)
    row, column = start[:, None, None, None] + offset[:, None], start[:, None, None] + offset
    return np.asarray((row * (side + 2) + column).ravel(), dtype=np.int64)

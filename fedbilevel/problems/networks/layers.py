"""Networks as functions of one flat vector of parameters.

Everything works under `torch.func.vmap` with parameters [B, size] of B tasks, to any order of derivative. No network
keeps running statistics: what it says of an example depends on its parameters and on the examples beside it alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, pad

Activation = Literal["relu", "tanh"]


class Network(ABC):
    """A network of `size` parameters; its representation is `width` wide and reads the first `body` of them alone."""

    size: int
    body: int
    width: int
    outputs: int

    @abstractmethod
    def __call__(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The outputs [n, outputs] of the network with parameters y [size] for inputs [n, ...]."""

    @abstractmethod
    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The representation [n, width] of inputs [n, ...], from y [size] or its first [body]."""

    @abstractmethod
    def initial(self, generator: torch.Generator) -> Tensor:
        """A random start [size], float64."""


class Layered(Network):
    """A representation and a linear head, whose weight [outputs, width] and bias [outputs] are the last parameters."""

    def __init__(self, body: Sequence[tuple[int, ...]], width: int, outputs: int) -> None:
        self.shapes = [*body, (outputs, width), (outputs,)]
        self.width, self.outputs = width, outputs
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self.size, self.body = sum(self._sizes), sum(self._sizes[:-2])

    def _cut(self, y: Tensor, layers: int) -> list[Tensor]:
        shapes, sizes = self.shapes[:layers], self._sizes[:layers]
        return [part.view(shape) for part, shape in zip(torch.split(y, sizes), shapes, strict=True)] if sizes else []

    def parts(self, y: Tensor) -> list[Tensor]:
        """The parameters y [size] layer by layer."""
        return self._cut(y, len(self.shapes))

    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The representation [n, width] of inputs [n, ...], from y [size] or its first [body]."""
        return self._body(self._cut(y[: self.body], len(self.shapes) - 2), inputs)

    def __call__(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The outputs [n, outputs] for inputs [n, ...]."""
        *body, weight, bias = self.parts(y)
        return linear(self._body(body, inputs), weight, bias)

    @abstractmethod
    def _body(self, parts: list[Tensor], inputs: Tensor) -> Tensor: ...


class Perceptron(Layered):
    """Fully connected layers of the given widths (the first is the number of inputs) and a linear head."""

    def __init__(self, widths: Sequence[int], outputs: int, activation: Activation = "relu") -> None:
        body: list[tuple[int, ...]] = []
        for fan_in, width in pairwise(widths):
            body += [(width, fan_in), (width,)]
        super().__init__(body, widths[-1], outputs)
        self._activation = torch.relu if activation == "relu" else torch.tanh

    def initial(self, generator: torch.Generator) -> Tensor:
        """Weights and biases uniform in +-1/sqrt(fan in), as in torch.nn.Linear."""
        parts = []
        for (width, fan_in), _ in zip(self.shapes[::2], self.shapes[1::2], strict=True):
            draw = torch.rand((fan_in + 1) * width, generator=generator, dtype=torch.float64)
            parts.append((2 * draw - 1) * fan_in**-0.5)
        return torch.cat(parts)

    def _body(self, parts: list[Tensor], inputs: Tensor) -> Tensor:
        h = inputs.flatten(1)
        for weight, bias in zip(parts[::2], parts[1::2], strict=True):
            h = self._activation(linear(h, weight, bias))
        return h


class Convolutions(Layered):
    """Blocks of a 3x3 convolution with stride 2 and padding 1, normalisation and ReLU; the mean over what is left.

    The network of Finn, Abbeel & Levine (2017) for Omniglot. The normalisation is over the examples given (transductive
    on a query set) and the positions, with a scale and a shift per filter; or there is none, and a bias in its place.

    A convolution is a gather of 3x3 patches and a matrix product: with parameters per task that is one batched product
    for all tasks. A native convolution would be a grouped one, whose second derivative takes a CPU longer.

    shape: of an image, (side, side) or (side, side, channels), where inputs come flat; default: as they come.
    """

    EPSILON = 1e-5

    def __init__(
        self,
        channels: int,
        filters: int,
        outputs: int,
        blocks: int = 4,
        *,
        normalise: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        body: list[tuple[int, ...]] = []
        for block in range(blocks):
            body.append((9 * (channels if block == 0 else filters), filters))
            body += [(filters,)] * (2 if normalise else 1)
        super().__init__(body, filters, outputs)
        self.normalise, self.shape = normalise, shape

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

    def _body(self, parts: list[Tensor], inputs: Tensor) -> Tensor:
        """The blocks, on inputs [n, side, side] or [n, side, side, channels], or flat ones of a known shape."""
        h = inputs if self.shape is None else inputs.reshape(len(inputs), *self.shape)
        h = h.unsqueeze(-1) if h.ndim == 3 else h
        step = 3 if self.normalise else 2
        for k in range(0, len(parts), step):
            h = _patches(h) @ parts[k]
            h = self._normal(h) * parts[k + 1] + parts[k + 2] if self.normalise else h + parts[k + 1]
            h = torch.relu(h)
        return h.mean((1, 2))

    def _normal(self, h: Tensor) -> Tensor:
        h = h - h.mean((0, 1, 2))
        return h * (h.square().mean((0, 1, 2)) + self.EPSILON).rsqrt()


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

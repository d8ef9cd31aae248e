"""Networks as functions of one flat vector of parameters.

Everything works under `torch.func.vmap` with parameters [B, size] of B tasks, to any order of derivative. No network
keeps running statistics: what it says of an example depends on its parameters and on the examples beside it alone.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn.functional import linear

from fedbilevel.problem import Part

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

    @property
    def parts_of_body(self) -> list[Part]:
        """The first [body] parameters, part by part."""
        return [Part("", (self.body,))]

    together: int = 2_000
    """Examples whose intermediate results are held at one time, where there is a choice."""

    def pullback(self, y: Tensor, inputs: Tensor, feature: Tensor, cotangent: Tensor) -> Tensor:
        """The gradient in y, [size] or [body] as y is, of <features(y, inputs), cotangent> with cotangent [n, width].

        feature: the features of all inputs, where a closed form starts from them.
        """
        parts = zip(inputs.split(self.together), cotangent.split(self.together), strict=True)
        pulled = [vjp(lambda y, some=some: self.features(y, some), y)[1](part)[0] for some, part in parts]
        return torch.stack(pulled).sum(0)


class Layered(Network):
    """A representation and a linear head, whose weight [outputs, width] and bias [outputs] are the last parameters."""

    def __init__(self, body: Sequence[tuple[int, ...]], width: int, outputs: int) -> None:
        self.shapes = [*body, (outputs, width), (outputs,)]
        self.width, self.outputs = width, outputs
        self._sizes = [math.prod(shape) for shape in self.shapes]
        self.size, self.body = sum(self._sizes), sum(self._sizes[:-2])

    @property
    def parts_of_body(self) -> list[Part]:
        """Weights `k.weight` [outputs, inputs] and biases `k.bias` [outputs] of the body's layers."""
        named = enumerate(self.shapes[:-2])
        return [Part(f"{k // 2}.{'weight' if len(shape) > 1 else 'bias'}", shape) for k, shape in named]

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

    together = sys.maxsize

    def __init__(self, widths: Sequence[int], outputs: int, activation: Activation = "relu") -> None:
        body: list[tuple[int, ...]] = []
        for fan_in, width in pairwise(widths):
            body += [(width, fan_in), (width,)]
        super().__init__(body, widths[-1], outputs)
        self._activation = activation

    def initial(self, generator: torch.Generator) -> Tensor:
        """Weights and biases uniform in +-1/sqrt(fan in), as in torch.nn.Linear."""
        parts = []
        for (width, fan_in), _ in zip(self.shapes[::2], self.shapes[1::2], strict=True):
            draw = torch.rand((fan_in + 1) * width, generator=generator, dtype=torch.float64)
            parts.append((2 * draw - 1) * fan_in**-0.5)
        return torch.cat(parts)

    def _activations(self, parts: list[Tensor], inputs: Tensor) -> list[Tensor]:
        """The inputs and what every layer makes of them, [n, width] each; the last is the representation."""
        outputs = [inputs.flatten(1)]
        for weight, bias in zip(parts[::2], parts[1::2], strict=True):
            z = linear(outputs[-1], weight, bias)
            outputs.append(torch.relu(z) if self._activation == "relu" else torch.tanh(z))
        return outputs

    def _body(self, parts: list[Tensor], inputs: Tensor) -> Tensor:
        return self._activations(parts, inputs)[-1]

    def _slope(self, cotangent: Tensor, output: Tensor) -> Tensor:
        """The cotangent times the derivative of the activation, in one pass over both."""
        if self._activation == "relu":
            return torch.ops.aten.threshold_backward(cotangent, output, 0.0)  # type: ignore[no-any-return]
        return torch.ops.aten.tanh_backward(cotangent, output)  # type: ignore[no-any-return]

    def pullback(self, y: Tensor, inputs: Tensor, feature: Tensor, cotangent: Tensor) -> Tensor:
        """The same in closed form; one hidden layer is not run again."""
        parts = self._cut(y[: self.body], len(self.shapes) - 2)
        outputs = [inputs.flatten(1), feature] if len(parts) == 2 else self._activations(parts, inputs)
        pulled: list[Tensor] = []
        for k in reversed(range(len(parts) // 2)):
            delta = self._slope(cotangent, outputs[k + 1])
            pulled = [(delta.mT @ outputs[k]).flatten(), delta.sum(0), *pulled]
            if k:
                cotangent = delta @ parts[2 * k]
        return torch.cat([*pulled, y.new_zeros(len(y) - self.body)])

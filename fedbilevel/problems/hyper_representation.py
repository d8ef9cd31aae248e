"""Hyper-representation learning: x is the representation of a multilayer perceptron, y an L2-regularised linear head.

The lower loss is the regularised cross-entropy of the head on a client's training part, the upper loss the
cross-entropy on its validation part (the task of FedNest, section 4; after Franceschi et al., ICML 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedbilevel.data import FederatedData
from fedbilevel.errors import BadInput
from fedbilevel.memory import require

Prepared = dict[str, Tensor]


class HyperRepresentation:
    """Cross-entropy of a linear head on learned features, over any federated classification data.

    Parameters
    ----------
    data
        The clients' examples and the server's test set.
    hidden
        Widths of the hidden layers; the last one is the representation. 784-200-10 is `hidden=[200]` on MNIST.
    activation
        "relu" or "tanh".
    l2
        Weight of |y|^2 / 2 in every lower loss: the strong convexity mu of the lower level.
    dtype
        Of examples and vectors.

    The gradient in y, the Hessian-vector product and both x derivatives have closed forms on the cached features.
    """

    def __init__(
        self,
        data: FederatedData,
        hidden: Sequence[int] = (200,),
        activation: Literal["relu", "tanh"] = "relu",
        l2: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(hidden) == 0 or min(hidden) < 1:
            raise BadInput("problem.hidden", list(hidden), "a list of at least one width of at least 1")
        if activation not in ("relu", "tanh"):
            raise BadInput("problem.activation", activation, '"relu" or "tanh"')
        if not 0 <= l2 < float("inf"):
            raise BadInput("problem.l2", l2, "a finite number of at least 0")
        self.activation, self.l2, self.classes = activation, l2, data.classes
        self.widths = [data.features, *hidden]
        weights = sum(a * b for a, b in pairwise([*self.widths, self.classes]))
        require(12.0 * 8 * weights, "problem.hidden", "narrower layers")
        self.clients = data.clients.to(dtype)
        self.test_input = torch.as_tensor(data.x_test, dtype=dtype).flatten(1)
        self.test_label = torch.as_tensor(data.y_test)

    # ---- the network ----

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Layers uniform in +-1/sqrt(fan in) as in torch.nn.Linear; a zero head."""
        parts = []
        for fan_in, width in pairwise(self.widths):
            bound = fan_in**-0.5
            draw = torch.rand((fan_in + 1) * width, generator=generator, dtype=torch.float64)
            parts.append((2 * draw - 1) * bound)
        head = torch.zeros(self.classes * (self.widths[-1] + 1), dtype=self.test_input.dtype)
        return torch.cat(parts).to(self.test_input.dtype), head

    def _layers(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return weight [width, fan in] and bias [width] of each layer."""
        layers, start = [], 0
        for fan_in, width in pairwise(self.widths):
            end = start + fan_in * width
            layers.append((x[start:end].view(width, fan_in), x[end : end + width]))
            start = end + width
        return layers

    def _activations(self, x: Tensor, inputs: Tensor) -> list[Tensor]:
        """Return the output of every layer, [n, width] each; the last is the representation."""
        outputs = []
        for weight, bias in self._layers(x):
            z = torch.nn.functional.linear(inputs, weight, bias)
            inputs = torch.relu(z) if self.activation == "relu" else torch.tanh(z)
            outputs.append(inputs)
        return outputs

    def _head(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight [..., classes, width] and bias [..., 1, classes]."""
        width = self.widths[-1]
        weight = y[..., : self.classes * width].unflatten(-1, (self.classes, width))
        return weight, y[..., self.classes * width :].unsqueeze(-2)

    def _logits(self, y: Tensor, feature: Tensor) -> Tensor:
        weight, bias = self._head(y)
        return feature @ weight.mT + bias

    # ---- the problem ----

    def prepare(self, x: Tensor, examples: Prepared) -> Prepared:
        """The representation of every example: it does not depend on y."""
        return {"feature": self._activations(x, examples["input"])[-1], "label": examples["label"]}

    def lower(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Cross-entropy plus l2/2 |y|^2."""
        return self.upper(x, y, examples) + 0.5 * self.l2 * (y @ y)

    def upper(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(self._logits(y, examples["feature"]), examples["label"], reduction="none")

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss and accuracy on the server's test set."""
        label = self.test_label.to(x.device)
        logits = self._logits(y, self._activations(x, self.test_input.to(x.device))[-1])
        return {
            "test_loss": float(cross_entropy(logits, label)),
            "test_accuracy": float((logits.argmax(-1) == label).double().mean()),
        }

    # ---- closed forms, over any leading dimensions ----

    def _residual(self, logits: Tensor, label: Tensor) -> Tensor:
        """Softmax - onehot, [..., n, classes]."""
        return torch.softmax(logits, -1) - torch.nn.functional.one_hot(label, self.classes)

    @staticmethod
    def _head_gradient(cotangent: Tensor, feature: Tensor) -> Tensor:
        """Flatten the head's gradient from that of the logits [..., n, classes]."""
        return torch.cat([(cotangent.mT @ feature).flatten(-2), cotangent.sum(-2)], dim=-1)

    def upper_gradient_y(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fy`."""
        residual = self._residual(self._logits(y, prepared["feature"]), prepared["label"])
        return self._head_gradient(residual * weights.unsqueeze(-1), prepared["feature"])

    def lower_gradient(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`gy`."""
        return self.upper_gradient_y(x, y, prepared, weights) + self.l2 * weights.sum(-1, keepdim=True) * y

    def lower_gradient_difference(
        self, x: Tensor, y: Tensor, anchor: Tensor, prepared: Prepared, weights: Tensor
    ) -> Tensor:
        """`gy(x, y) - gy(x, anchor)`: the labels cancel, and both heads go over the features together."""
        pair = torch.stack(torch.broadcast_tensors(y, anchor), dim=-2)
        weight, bias = self._head(pair)  # [..., 2, classes, width], [..., 2, 1, classes]
        logits = prepared["feature"] @ weight.flatten(-3, -2).mT + bias.flatten(-3)[..., None, :]
        p = torch.softmax(logits.unflatten(-1, (2, self.classes)), -1)
        moved = (p[..., 0, :] - p[..., 1, :]) * weights.unsqueeze(-1)
        return self._head_gradient(moved, prepared["feature"]) + self.l2 * weights.sum(-1, keepdim=True) * (y - anchor)

    @staticmethod
    def _softmax_hessian(p: Tensor, u: Tensor) -> Tensor:
        """(diag(p) - p p') u along the last dimension."""
        pu = p * u
        return pu - p * pu.sum(-1, keepdim=True)

    def lower_hvp(self, x: Tensor, y: Tensor, v: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`H v`."""
        feature = prepared["feature"]
        p = torch.softmax(self._logits(y, feature), -1)
        curved = self._softmax_hessian(p, self._logits(v, feature)) * weights.unsqueeze(-1)
        return self._head_gradient(curved, feature) + self.l2 * weights.sum(-1, keepdim=True) * v

    def _pullback(self, x: Tensor, inputs: Tensor, feature: Tensor, cotangent: Tensor) -> Tensor:
        """Gradient in x, flat, from the cotangent of the representation [n, width]."""
        layers = self._layers(x)
        outputs = [feature] if len(layers) == 1 else self._activations(x, inputs)
        parts: list[Tensor] = []
        for k in reversed(range(len(layers))):
            slope = (outputs[k] > 0).to(cotangent.dtype) if self.activation == "relu" else 1 - outputs[k] ** 2
            delta = cotangent * slope
            below = outputs[k - 1] if k else inputs
            parts = [(delta.mT @ below).flatten(), delta.sum(0), *parts]
            if k:
                cotangent = delta @ layers[k][0]
        return torch.cat(parts)

    def upper_gradient_x(self, x: Tensor, y: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fx` at one common point."""
        residual = self._residual(self._logits(y, prepared["feature"]), prepared["label"]) * weights[:, None]
        return self._pullback(x, examples["input"], prepared["feature"], residual @ self._head(y)[0])

    def cross_vjp(
        self, x: Tensor, y: Tensor, v: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor
    ) -> Tensor:
        """`J v` at one common point, summed over rows: d/dphi of r'(V phi + b_v) is W'(diag(p) - p p') u + V'r."""
        feature = prepared["feature"]
        p = torch.softmax(self._logits(y, feature), -1)
        residual = p - torch.nn.functional.one_hot(prepared["label"], self.classes)
        curved = self._softmax_hessian(p, self._logits(v, feature)) * weights.unsqueeze(-1)
        cotangent = curved @ self._head(y)[0] + (residual * weights.unsqueeze(-1)) @ self._head(v)[0]
        return self._pullback(x, *(each.flatten(0, -2) for each in (examples["input"], feature, cotangent)))

    cross_vjp_sum = cross_vjp

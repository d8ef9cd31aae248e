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
from fedbilevel.machine.memory import require
from fedbilevel.problems.networks import thin

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
        """Return weight [..., classes, width] and bias [..., classes, 1]."""
        width = self.widths[-1]
        weight = y[..., : self.classes * width].unflatten(-1, (self.classes, width))
        return weight, y[..., self.classes * width :].unsqueeze(-1)

    def _logits(self, y: Tensor, feature: Tensor) -> Tensor:
        """The logits [..., classes, n]: with the examples last, a softmax over few classes is vectorised."""
        weight, bias = self._head(y)
        return thin.outputs(weight, feature) + bias

    # ---- the problem ----

    def prepare(self, x: Tensor, examples: Prepared) -> Prepared:
        """The representation and the one-hot label [n, classes] of every example: they do not depend on y."""
        label = examples["label"]
        onehot = (label.unsqueeze(-1) == torch.arange(self.classes, device=label.device)).to(x.dtype)
        return {"feature": self._activations(x, examples["input"])[-1], "label": label, "onehot": onehot}

    def lower(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Cross-entropy plus l2/2 |y|^2."""
        return self.upper(x, y, examples) + 0.5 * self.l2 * (y @ y)

    def upper(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(self._logits(y, examples["feature"]).mT, examples["label"], reduction="none")

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss and accuracy on the server's test set."""
        label = self.test_label.to(x.device)
        logits = self._logits(y, self._activations(x, self.test_input.to(x.device))[-1]).mT
        return {
            "test_loss": float(cross_entropy(logits, label)),
            "test_accuracy": float((logits.argmax(-1) == label).double().mean()),
        }

    # ---- closed forms, over any leading dimensions; probabilities and cotangents of logits are [..., classes, n] ----

    def _residual(self, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """Weighted probabilities - onehot."""
        return (self._probabilities(y, prepared) - prepared["onehot"].mT) * weights.unsqueeze(-2)

    @staticmethod
    def _head_gradient(cotangent: Tensor, feature: Tensor) -> Tensor:
        """Flatten the head's gradient from that of the logits."""
        return torch.cat([thin.inputs(cotangent, feature).flatten(-2), cotangent.sum(-1)], dim=-1)

    def linearise(self, x: Tensor, y: Tensor, prepared: Prepared) -> Prepared:
        """The probabilities of every example, [n, classes], beside what depends on x alone."""
        return {**prepared, "p": torch.softmax(self._logits(y, prepared["feature"]), -2).mT.contiguous()}

    def _probabilities(self, y: Tensor, prepared: Prepared) -> Tensor:
        return prepared["p"].mT if "p" in prepared else torch.softmax(self._logits(y, prepared["feature"]), -2)

    def upper_gradient_y(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fy`."""
        return self._head_gradient(self._residual(y, prepared, weights), prepared["feature"])

    def lower_gradient(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`gy`."""
        return self.upper_gradient_y(x, y, prepared, weights) + self.l2 * weights.sum(-1, keepdim=True) * y

    def lower_gradient_difference(
        self, x: Tensor, y: Tensor, anchor: Tensor, prepared: Prepared, weights: Tensor
    ) -> Tensor:
        """`gy(x, y) - gy(x, anchor)`, prepared linearised at the anchor: the labels cancel."""
        p = torch.softmax(self._logits(y, prepared["feature"]), -2)
        moved = (p - self._probabilities(anchor, prepared)) * weights.unsqueeze(-2)
        return self._head_gradient(moved, prepared["feature"]) + self.l2 * weights.sum(-1, keepdim=True) * (y - anchor)

    @staticmethod
    def _softmax_hessian(p: Tensor, u: Tensor) -> Tensor:
        """(diag(p) - p p') u over the classes."""
        pu = p * u
        return pu - p * pu.sum(-2, keepdim=True)

    def lower_hvp(self, x: Tensor, y: Tensor, v: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`H v`."""
        feature = prepared["feature"]
        p = self._probabilities(y, prepared)
        curved = self._softmax_hessian(p, self._logits(v, feature)) * weights.unsqueeze(-2)
        return self._head_gradient(curved, feature) + self.l2 * weights.sum(-1, keepdim=True) * v

    def _slope(self, cotangent: Tensor, output: Tensor) -> Tensor:
        """The cotangent times the derivative of the activation, in one pass over both."""
        if self.activation == "relu":
            return torch.ops.aten.threshold_backward(cotangent, output, 0.0)  # type: ignore[no-any-return]
        return torch.ops.aten.tanh_backward(cotangent, output)  # type: ignore[no-any-return]

    def _pullback(self, x: Tensor, inputs: Tensor, feature: Tensor, cotangent: Tensor) -> Tensor:
        """Gradient in x, flat, from the cotangent of the representation [n, width]."""
        layers = self._layers(x)
        outputs = [feature] if len(layers) == 1 else self._activations(x, inputs)
        parts: list[Tensor] = []
        for k in reversed(range(len(layers))):
            delta = self._slope(cotangent, outputs[k])
            below = outputs[k - 1] if k else inputs
            parts = [(delta.mT @ below).flatten(), delta.sum(0), *parts]
            if k:
                cotangent = delta @ layers[k][0]
        return torch.cat(parts)

    def upper_gradient_x(self, x: Tensor, y: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fx` at one common point."""
        residual = self._residual(y, prepared, weights)
        return self._pullback(x, examples["input"], prepared["feature"], residual.mT @ self._head(y)[0])

    def cross_vjp(
        self, x: Tensor, y: Tensor, v: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor
    ) -> Tensor:
        """`J v` at one common point, summed over rows: d/dphi of r'(V phi + b_v) is W'(diag(p) - p p') u + V'r."""
        feature = prepared["feature"]
        p = self._probabilities(y, prepared)
        residual = self._residual(y, prepared, weights)
        curved = self._softmax_hessian(p, self._logits(v, feature)) * weights.unsqueeze(-2)
        cotangent = curved.mT @ self._head(y)[0] + residual.mT @ self._head(v)[0]
        return self._pullback(x, *(each.flatten(0, -2) for each in (examples["input"], feature, cotangent)))

    cross_vjp_sum = cross_vjp

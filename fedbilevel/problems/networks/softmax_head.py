"""A linear softmax head on given features: its cross-entropy, and that one's derivatives in closed form.

Over any leading dimensions; probabilities and cotangents of logits are [..., classes, n], features [..., n, width], and
y holds the weight [classes, width] and the bias [classes].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedbilevel.problems.networks import softmax

Prepared = dict[str, Tensor]
"""What the losses read: "feature", "label" and, for closed forms, "onehot" [n, classes]."""


class SoftmaxHead:
    """The two levels of a problem whose y is such a head: cross-entropy, and the same plus l2/2 |y|^2."""

    classes: int
    width: int
    l2: float

    def weight(self, y: Tensor) -> Tensor:
        """The weight [..., classes, width]."""
        return torch.as_tensor(y[..., : self.classes * self.width].unflatten(-1, (self.classes, self.width)))

    def logits(self, y: Tensor, feature: Tensor) -> Tensor:
        """The logits [..., classes, n]: with the examples last, a softmax over few classes is vectorised."""
        return softmax.logits(y, feature, self.classes)

    def lower(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Cross-entropy plus l2/2 |y|^2."""
        return self.upper(x, y, examples) + 0.5 * self.l2 * (y @ y)

    def upper(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(self.logits(y, examples["feature"]).mT, examples["label"], reduction="none")

    # ---- closed forms in y ----

    def _residual(self, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """Weighted probabilities - onehot."""
        return (self._probabilities(y, prepared) - prepared["onehot"].mT) * weights.unsqueeze(-2)

    def linearise(self, x: Tensor, y: Tensor, prepared: Prepared) -> Prepared:
        """The probabilities of every example, [n, classes], beside what depends on x alone."""
        return {**prepared, "p": torch.softmax(self.logits(y, prepared["feature"]), -2).mT.contiguous()}

    def _probabilities(self, y: Tensor, prepared: Prepared) -> Tensor:
        return prepared["p"].mT if "p" in prepared else torch.softmax(self.logits(y, prepared["feature"]), -2)

    def upper_gradient_y(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fy`."""
        return softmax.gradient(self._residual(y, prepared, weights), prepared["feature"])

    def lower_gradient(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`gy`."""
        return self.upper_gradient_y(x, y, prepared, weights) + self.l2 * weights.sum(-1, keepdim=True) * y

    def lower_gradient_difference(
        self, x: Tensor, y: Tensor, anchor: Tensor, prepared: Prepared, weights: Tensor
    ) -> Tensor:
        """`gy(x, y) - gy(x, anchor)`, prepared linearised at the anchor: the labels cancel."""
        p = torch.softmax(self.logits(y, prepared["feature"]), -2)
        moved = (p - self._probabilities(anchor, prepared)) * weights.unsqueeze(-2)
        return softmax.gradient(moved, prepared["feature"]) + self.l2 * weights.sum(-1, keepdim=True) * (y - anchor)

    def lower_hvp(self, x: Tensor, y: Tensor, v: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`H v`."""
        feature = prepared["feature"]
        p = self._probabilities(y, prepared)
        curved = softmax.curved(p, self.logits(v, feature)) * weights.unsqueeze(-2)
        return softmax.gradient(curved, feature) + self.l2 * weights.sum(-1, keepdim=True) * v

    # ---- cotangents of the features [..., n, width], from which those who know the features go on ----

    def upper_cotangent(self, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """The gradient of the upper loss in the features."""
        return self._residual(y, prepared, weights).mT @ self.weight(y)

    def cross_cotangent(self, y: Tensor, v: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """That of <gy, v>: d/dphi of r'(V phi + b_v) is W'(diag(p) - p p') u + V'r."""
        p = self._probabilities(y, prepared)
        residual = self._residual(y, prepared, weights)
        curved = softmax.curved(p, self.logits(v, prepared["feature"])) * weights.unsqueeze(-2)
        return curved.mT @ self.weight(y) + residual.mT @ self.weight(v)

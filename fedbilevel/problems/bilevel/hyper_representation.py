"""Hyper-representation learning: x is the representation of a network, y an L2-regularised linear head.

The lower loss is the regularised cross-entropy of the head on a client's training part, the upper loss the
cross-entropy on its validation part (the task of FedNest, section 4; after Franceschi et al., ICML 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedbilevel.data import FederatedData
from fedbilevel.errors import BadInput
from fedbilevel.measures import classification
from fedbilevel.problems.networks import find, softmax
from fedbilevel.problems.networks.layers import Activation
from fedbilevel.problems.networks.softmax_head import Prepared, SoftmaxHead


class HyperRepresentation(SoftmaxHead):
    """Cross-entropy of a linear head on learned features, over any federated classification data.

    Parameters
    ----------
    data
        The clients' examples and the server's test set.
    hidden
        Widths of the hidden layers of "mlp"; the last one is the representation. 784-200-10 is `hidden=[200]` on MNIST.
    activation
        Of "mlp": "relu" or "tanh".
    l2
        Weight of |y|^2 / 2 in every lower loss: the strong convexity mu of the lower level.
    dtype
        Of examples and vectors.
    network
        What the representation is: "mlp", "conv" on square images, or path/to/nets.py:net, a torch.nn.Module whose
        outputs, flattened, are the representation.
    filters, blocks
        Of "conv": filters of each block (the representation's width), and how many halve the image.

    The gradient in y, the Hessian-vector product and both x derivatives have closed forms on the cached features; the
    latter go on through the layers of "mlp" in closed form too, and through any other network by torch.func.vjp.
    """

    def __init__(
        self,
        data: FederatedData,
        hidden: Sequence[int] = (200,),
        activation: Activation = "relu",
        l2: float = 0.01,
        dtype: torch.dtype = torch.float32,
        network: str = "mlp",
        filters: int = 32,
        blocks: int = 2,
    ) -> None:
        if not 0 <= l2 < float("inf"):
            raise BadInput("problem.l2", l2, "a finite number of at least 0")
        self.network = find(
            network,
            data.shape,
            None,
            hidden=hidden,
            activation=activation,
            filters=filters,
            blocks=blocks,
        )
        self.l2, self.classes, self.width = l2, data.classes, self.network.width
        self.x_shapes = self.network.parts_of_body
        self.clients = data.clients.to(dtype)
        self.test_input = torch.as_tensor(data.x_test, dtype=dtype).flatten(1)
        self.test_label = torch.as_tensor(data.y_test)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The start of the network (layers of "mlp" uniform in +-1/sqrt(fan in) as in torch.nn.Linear); a zero head."""
        head = torch.zeros(self.classes * (self.width + 1), dtype=self.test_input.dtype)
        return self.network.initial(generator)[: self.network.body].to(self.test_input.dtype), head

    def _features(self, x: Tensor, inputs: Tensor) -> Tensor:
        """The representation of every example, [n, width]."""
        parts = [self.network.features(x, some) for some in inputs.split(self.network.together)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def prepare(self, x: Tensor, examples: Prepared) -> Prepared:
        """The representation and the one-hot label [n, classes] of every example: they do not depend on y."""
        label = examples["label"]
        onehot = softmax.onehot(label, self.classes, x.dtype)
        return {"feature": self._features(x, examples["input"]), "label": label, "onehot": onehot}

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss and accuracy on the server's test set."""
        label = self.test_label.to(x.device)
        logits = self.logits(y, self._features(x, self.test_input.to(x.device))).mT
        return classification(logits, label)

    # ---- closed forms in x, at one common point ----

    def upper_gradient_x(self, x: Tensor, y: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fx`."""
        cotangent = self.upper_cotangent(y, prepared, weights)
        return self.network.pullback(x, examples["input"], prepared["feature"], cotangent)

    def cross_vjp(
        self, x: Tensor, y: Tensor, v: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor
    ) -> Tensor:
        """`J v`, summed over rows."""
        parts = examples["input"], prepared["feature"], self.cross_cotangent(y, v, prepared, weights)
        return self.network.pullback(x, *(each.flatten(0, -2) for each in parts))

    cross_vjp_sum = cross_vjp

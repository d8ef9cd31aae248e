"""Loss tuning: x adjusts the logits of each class in the training loss, y is the network; data with a long tail.

The lower loss is the cross-entropy of D o logits + l on a long-tailed training set, the upper loss the plain
cross-entropy on a balanced validation set (FedNest's third figure; AutoBalance: Li et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedbilevel.data import FederatedData
from fedbilevel.data.long_tail import class_sizes, long_tailed
from fedbilevel.data.scaling import plain_mean
from fedbilevel.errors import BadInput
from fedbilevel.problem import Ragged
from fedbilevel.problems.networks import find

Examples = dict[str, Tensor]


class LossTuning:
    """Cross-entropy with learned adjustments of the logits, x = (log D [classes], l [classes]), of any network y.

    Parameters
    ----------
    data
        The clients' examples and the server's test set.
    imbalance, largest
        Class k keeps `largest * imbalance^(-k / (classes - 1))` lower examples, of those that all clients hold.
    upper_examples
        How many upper examples of every class are kept.
    adjustment
        The start of x: "none" is x = 0, plain cross-entropy; "log" is D = 1, l_k = log(n_k / n), the fixed logarithmic
        adjustment (Menon et al., ICLR 2021). An algorithm with `upper_step = 0` trains with just that.
    network, hidden, activation
        A name of `fedbilevel.problems.networks.find`, and the layers of "mlp".
    l2
        Weight of |y|^2 / 2 in every lower loss. With "linear" the lower level is strongly convex, else it is not.
    seed
        Draws which examples are kept.
    dtype
        Of examples and vectors.

    Both losses are means over the examples of all clients, whatever p_i is (`fedbilevel.data.scaling`): else a client
    of few examples of rare classes would count like one of many, and the tail would be shorter than `imbalance` says.
    """

    def __init__(
        self,
        data: FederatedData,
        imbalance: float = 100.0,
        largest: int = 1000,
        upper_examples: int = 100,
        adjustment: Literal["none", "log"] = "none",
        network: str = "mlp",
        hidden: Sequence[int] = (200,),
        activation: Literal["relu", "tanh"] = "relu",
        l2: float = 1e-4,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if adjustment not in ("none", "log"):
            raise BadInput("problem.adjustment", adjustment, '"none" or "log"')
        if not 0 <= l2 < float("inf"):
            raise BadInput("problem.l2", l2, "a finite number of at least 0")
        self.adjustment, self.l2, self.classes = adjustment, l2, data.classes
        self.class_sizes = class_sizes(data.classes, largest, imbalance)
        self.network = find(network, data.shape, data.classes, hidden=hidden, activation=activation)
        self.clients = long_tailed(data.clients, self.class_sizes, upper_examples, seed=seed)
        self.clients.lower, self.clients.upper = self.clients.each(self._scaled)
        self.clients = self.clients.to(dtype)
        self.test_input = torch.as_tensor(data.x_test, dtype=dtype).flatten(1)
        self.test_label = torch.as_tensor(data.y_test)

    def _scaled(self, level: Ragged) -> Ragged:
        return Ragged({**level.values, "scale": plain_mean(level, self.clients.weights)}, level.offsets)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """X as `adjustment` says; the network's random start."""
        log_prior = torch.from_numpy(self.class_sizes / self.class_sizes.sum()).log()
        offset = log_prior if self.adjustment == "log" else torch.zeros_like(log_prior)
        x = torch.cat([torch.zeros_like(offset), offset])
        return x.to(self.test_input), self.network.initial(generator).to(self.test_input)

    def lower(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy of D o logits + l, plus l2/2 |y|^2."""
        log_scale, offset = x.split(self.classes)
        logits = log_scale.exp() * self.network(y, examples["input"]) + offset
        return examples["scale"] * _cross_entropy(logits, examples["label"]) + 0.5 * self.l2 * (y @ y)

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy of the logits as they are."""
        return examples["scale"] * _cross_entropy(self.network(y, examples["input"]), examples["label"])

    def upper_gradient_x(self, x: Tensor, y: Tensor, examples: Examples, prepared: Examples, weights: Tensor) -> Tensor:
        """`fx` = 0: the upper loss is not adjusted."""
        return torch.zeros_like(x)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Means over the classes of the test set: loss and accuracy; and the accuracy on the rarer half of them."""
        label = self.test_label.to(x.device)
        logits = self.network(y, self.test_input.to(x.device)).double()
        counts = torch.bincount(label, minlength=self.classes).double()
        there = counts > 0

        def by_class(values: Tensor) -> Tensor:
            return torch.zeros_like(counts).index_add(0, label, values.double()) / counts

        right = by_class(logits.argmax(-1) == label)
        rare = there & (torch.arange(self.classes, device=label.device) >= self.classes // 2)
        return {
            "test_loss": float(by_class(_cross_entropy(logits, label))[there].mean()),
            "test_accuracy": float(right[there].mean()),
            "tail_accuracy": float(right[rare].mean()),
        }


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return torch.logsumexp(logits, -1) - logits.gather(-1, label.unsqueeze(-1)).squeeze(-1)

"""Data cleaning: x weighs the lower examples, of which some carry wrong labels; y is a classifier.

The lower loss is the weighted, regularised cross-entropy on a client's training part, the upper loss the cross-entropy
on its clean validation part (after Franceschi et al., ICML 2017; federated: FedBiO, MemFBO).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedbilevel.blocks import OWN
from fedbilevel.data import FederatedData
from fedbilevel.data.labels import most_of, shares_of, some, with_wrong_labels
from fedbilevel.errors import BadInput
from fedbilevel.measures import auroc, classification, f1
from fedbilevel.problem import ClientData, Ragged
from fedbilevel.problems.networks import find, softmax
from fedbilevel.problems.networks.layers import Activation, Network

Prepared = dict[str, Tensor]


def hyper_cleaning(
    data: FederatedData,
    noise: float | Sequence[float] = 0.5,
    cleaning: Literal["example", "client"] = "example",
    examples: int | Sequence[int] | None = None,
    network: str = "linear",
    hidden: Sequence[int] = (200,),
    activation: Activation = "relu",
    filters: int = 32,
    blocks: int = 2,
    l2: float = 1e-3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> HyperCleaning:
    """g_i = mean_j sigmoid(x_j) loss(y; a_j, b_j) + l2/2 |y|^2 over noisy labels b_j, f_i = mean loss on clean ones.

    Parameters
    ----------
    data
        The clients' examples and the server's test set.
    noise
        The share of each client's lower labels that are wrong, in [0, 1), rounded to whole examples: one number, or
        one per client. A wrong label is any other class, each as likely.
    cleaning
        "example": x_j for each lower example; "client": one x_i for all of a client's. They are the client's own block
        of x: no other client is sent it.
    examples
        At most so many lower examples of each client, drawn, or [lower, upper]; p_i stay those of the data.
    network
        "linear", "mlp", "conv" (on square images), or your own "path/to/nets.py:net".
    hidden, activation
        Of "mlp": widths of the hidden layers; "relu" or "tanh".
    filters, blocks
        Of "conv".
    l2
        Weight of |y|^2 / 2 in every lower loss.
    dtype
        Of examples and vectors.
    seed
        Which examples, which of them are wrong and how: drawn client by client.

    Raises BadInput for a parameter out of range.
    """
    net = find(network, data.shape, data.classes, hidden=hidden, activation=activation, filters=filters, blocks=blocks)
    kind = LinearCleaning if network == "linear" else HyperCleaning
    return kind(data, noise, cleaning, examples, net, l2, dtype, seed)


class HyperCleaning:
    """Data cleaning with any network, see `hyper_cleaning`; `wrong` [lower examples] marks the wrong labels."""

    def __init__(
        self,
        data: FederatedData,
        noise: float | Sequence[float],
        cleaning: Literal["example", "client"],
        examples: int | Sequence[int] | None,
        network: Network,
        l2: float,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        if cleaning not in ("example", "client"):
            raise BadInput("problem.cleaning", cleaning, '"example" or "client"')
        if not 0 <= l2 < float("inf"):
            raise BadInput("problem.l2", l2, "a finite number of at least 0")
        shares = shares_of(noise, len(data.clients), data.classes)
        given = data.clients.to(dtype)
        most = most_of(examples)
        lower, upper = some(given.lower, most[0], seed), some(given.upper, most[1], seed)
        label, self.wrong = with_wrong_labels(lower, shares, data.classes, seed)
        owner = lower.owners
        self._own = torch.from_numpy(np.arange(len(owner)) if cleaning == "example" else owner)
        noisy = Ragged({**lower.values, "label": label, OWN: self._own}, lower.offsets)
        blocks = lower.sizes if cleaning == "example" else np.ones(len(given), np.int64)
        self.clients = ClientData(noisy, upper, given.weights, blocks)
        self.network, self.l2, self.classes, self.dtype = network, l2, data.classes, dtype
        self.test_input = torch.as_tensor(data.x_test, dtype=dtype).flatten(1)
        self.test_label = torch.as_tensor(data.y_test)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every weight 1/2, at x = 0; the network's own start."""
        assert self.clients.blocks is not None
        x0 = torch.zeros(int(self.clients.blocks.offsets[-1]), dtype=self.dtype)
        return x0, self.network.initial(generator).to(self.dtype)

    def prepare(self, x: Tensor, examples: Prepared) -> Prepared:
        """The weight sigmoid(x_j) of every lower example, beside it."""
        return {**examples, "weight": torch.sigmoid(x[examples[OWN]])} if OWN in examples else examples

    def lower(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Weighted cross-entropy plus l2/2 |y|^2."""
        return examples["weight"] * self.upper(x, y, examples) + 0.5 * self.l2 * (y @ y)

    def upper(self, x: Tensor, y: Tensor, examples: Prepared) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(self.network(y, examples["input"]), examples["label"], reduction="none")

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss and accuracy on the server's test set; AUROC and F1 of small weights against wrong labels.

        F1 takes a label for wrong where sigmoid(x_j) < 1/2. Both are left out where no label is wrong.
        """
        label = self.test_label.to(x.device)
        outputs = self.network(y, self.test_input.to(x.device))
        measures = classification(outputs, label)
        if bool(self.wrong.any()):
            logit, wrong = x[self._own.to(x.device)], self.wrong.to(x.device)
            measures |= {"auroc": auroc(-logit, wrong), "f1": f1(logit < 0, wrong)}
        return measures


class LinearCleaning(HyperCleaning):
    """Data cleaning with a linear classifier: all derivatives but gx in closed form, nothing larger than the logits."""

    def prepare(self, x: Tensor, examples: Prepared) -> Prepared:
        """The weight of every lower example and the one-hot label [n, classes], beside it."""
        onehot = softmax.onehot(examples["label"], self.classes, x.dtype)
        return {**super().prepare(x, examples), "onehot": onehot}

    def linearise(self, x: Tensor, y: Tensor, prepared: Prepared) -> Prepared:
        """The probabilities of every example, [n, classes]."""
        return {**prepared, "p": self._probabilities(y, prepared).mT.contiguous()}

    def _probabilities(self, y: Tensor, prepared: Prepared) -> Tensor:
        """[..., classes, n]."""
        if "p" in prepared:
            return prepared["p"].mT
        return torch.softmax(softmax.logits(y, prepared["input"], self.classes), -2)

    def _residual(self, y: Tensor, prepared: Prepared) -> Tensor:
        """Probabilities - onehot: the gradient of the cross-entropy in the logits."""
        return self._probabilities(y, prepared) - prepared["onehot"].mT

    def upper_gradient_y(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fy`."""
        return softmax.gradient(self._residual(y, prepared) * weights.unsqueeze(-2), prepared["input"])

    def upper_gradient_x(self, x: Tensor, y: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor) -> Tensor:
        """`fx` = 0: the upper loss does not see the weights."""
        return torch.zeros_like(x)

    def lower_gradient(self, x: Tensor, y: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`gy`."""
        fit = self.upper_gradient_y(x, y, prepared, weights * prepared["weight"])
        return fit + self.l2 * weights.sum(-1, keepdim=True) * y

    def lower_hvp(self, x: Tensor, y: Tensor, v: Tensor, prepared: Prepared, weights: Tensor) -> Tensor:
        """`H v`."""
        p, u = self._probabilities(y, prepared), softmax.logits(v, prepared["input"], self.classes)
        fit = softmax.curved(p, u) * (weights * prepared["weight"]).unsqueeze(-2)
        return softmax.gradient(fit, prepared["input"]) + self.l2 * weights.sum(-1, keepdim=True) * v

    def cross_vjp(
        self, x: Tensor, y: Tensor, v: Tensor, examples: Prepared, prepared: Prepared, weights: Tensor
    ) -> Tensor:
        """`J v`, summed over rows: for each example sigmoid'(x_j) <grad_y loss_j, v>, where its weight stands in x."""
        slope = prepared["weight"] * (1 - prepared["weight"])
        along = (self._residual(y, prepared) * softmax.logits(v, prepared["input"], self.classes)).sum(-2)
        return torch.zeros_like(x).index_add(0, prepared[OWN].flatten(), (weights * slope * along).flatten())

    cross_vjp_sum = cross_vjp

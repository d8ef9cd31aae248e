"""Agnostic federated learning: x is a classifier, y holds the logits of the clients' weights.

After Mohri, Sivek & Suresh, ICML 2019: the classifier has to do well under every mixture of the clients. Their simplex
is parametrised by a softmax here, so that y is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedbilevel.data import FederatedData
from fedbilevel.errors import BadInput
from fedbilevel.measures import classification
from fedbilevel.problem import ClientData, Ragged, client_by_client
from fedbilevel.problems.networks import find
from fedbilevel.problems.networks.layers import Activation

Examples = dict[str, Tensor]


class FairClassification:
    r"""min_x max_y sum_i s_i L_i(x) - mu KL(s, uniform) - mu/2 (mean y)^2 with s = softmax(y).

    L_i is the mean cross-entropy of client i, and KL(s, uniform) = sum_i s_i log(m s_i) over m clients. The loss of a
    client is f_i = s_i / p_i L_i less the two terms in mu, so that sum_i p_i f_i is the line above for any weights p_i.

    For every mu > 0 there is one y*(x), and it is known: L / mu less its mean. (With -mu/2 |y|^2 there is one for sure
    only where mu is above half the range of the losses, which leaves the weights next to uniform.) F(x) is
    mu log mean_i exp(L_i / mu), between the mean of the losses and the worst one, near the worst for a small mu. In y
    the loss is strictly concave near y*(x), not everywhere. Its gradient and curvature in y_i go with s_i, about 1/m:
    a step in y is to be of the size of m; or much shorter where clients are sampled, since every draw pulls y towards
    the clients drawn.

    Parameters
    ----------
    data
        The clients' examples, of which both parts are used as one, and the server's test set.
    mu
        Strength of the regulariser, in units of the loss.
    network
        "linear", "mlp", "conv", or a user's (see `fedbilevel.problems.networks.named`).
    hidden, activation
        Of "mlp": widths of the hidden layers; "relu" or "tanh".
    filters, blocks
        Of "conv".
    dtype
        Of examples and vectors.
    """

    def __init__(
        self,
        data: FederatedData,
        mu: float = 0.1,
        network: str = "linear",
        hidden: Sequence[int] = (200,),
        activation: Activation = "relu",
        filters: int = 32,
        blocks: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 0 < mu < float("inf"):
            raise BadInput("problem.mu", mu, "a finite number above 0")
        self.mu = mu
        self.network = find(
            network,
            data.shape,
            data.classes,
            hidden=hidden,
            activation=activation,
            filters=filters,
            blocks=blocks,
        )
        self.clients = _joined(data.clients).to(dtype)
        self.test_input = torch.as_tensor(data.x_test, dtype=dtype).flatten(1)
        self.test_label = torch.as_tensor(data.y_test)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random start of the classifier; y0 = 0, equal weights."""
        x0 = self.network.initial(generator).to(self.test_input.dtype)
        return x0, torch.zeros(len(self.clients), dtype=x0.dtype)

    def prepare(self, x: Tensor, examples: Examples) -> Examples:
        """The cross-entropy of every example: it does not depend on y."""
        loss = cross_entropy(self.network(x, examples["input"]), examples["label"], reduction="none")
        return {"loss": loss, "client": examples["client"], "share": examples["share"]}

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """`s_i / p_i` times the cross-entropy, less the regulariser; i is the client of the example."""
        log_s = torch.log_softmax(y, -1)
        s = log_s.exp()
        divergence = s @ log_s + math.log(len(y))
        concave = self.mu * (divergence + 0.5 * y.mean().square())
        return s[examples["client"]] / examples["share"] * examples["loss"] - concave

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Loss and accuracy on the server's test set, and how fair x is over the clients' own examples.

        `worst_loss`, `worst_accuracy`: of the client that fares worst in it; `accuracy_spread`: the standard deviation
        of the clients' accuracies; `max_weight`: the largest s_i.
        """
        examples = self.clients.upper.values
        logits, label = self.network(x, self.test_input.to(x.device)), self.test_label.to(x.device)
        own = self.network(x, examples["input"])
        losses = self._client_means(cross_entropy(own, examples["label"], reduction="none"))
        accuracies = self._client_means(own.argmax(-1) == examples["label"])
        return {
            **classification(logits, label),
            "worst_loss": float(losses.max()),
            "worst_accuracy": float(accuracies.min()),
            "accuracy_spread": float(accuracies.std(correction=0)),
            "max_weight": float(torch.softmax(y, -1).max()),
        }

    def _client_means(self, values: Tensor) -> Tensor:
        """The mean of each client's values, float64, [clients]."""
        level = self.clients.upper
        total = torch.zeros(len(self.clients), dtype=torch.float64, device=values.device)
        total = total.index_add(0, level.values["client"], values.double())
        return total / torch.from_numpy(level.sizes).to(values.device)

    # ---- closed forms ----

    def _client_losses(self, x: Tensor) -> Tensor:
        """`L` at x, [clients], on the device of the examples."""
        return self._client_means(self.prepare(x.to(self.test_input), self.clients.upper.values)["loss"])

    def lower_solution(self, x: Tensor) -> Tensor:
        """`y*(x) = (L - mean L) / mu`, float64, shape [clients]."""
        losses = self._client_losses(x).cpu() / self.mu
        return losses - losses.mean()

    def value(self, x: Tensor) -> float:
        """`F(x) = mu log mean_i exp(L_i / mu)`."""
        losses = self._client_losses(x) / self.mu
        return self.mu * (float(torch.logsumexp(losses, -1)) - math.log(len(losses)))

    def hypergradient(self, x: Tensor) -> Tensor:
        """`grad F(x) = sum_i s_i grad L_i` at s = softmax(L / mu); float64, shape [dx]."""

        def value(x: Tensor) -> Tensor:
            return self.mu * torch.logsumexp(self._client_losses(x) / self.mu, -1)

        return torch.as_tensor(torch.func.grad(value)(x.double().cpu()))


def _joined(data: ClientData) -> ClientData:
    """The same clients with both parts of each as one, and with every example its client's number and weight p_i."""
    levels = (data.lower, data.upper)
    owner = np.concatenate([level.owners for level in levels])
    rows, offsets = client_by_client(owner, len(data))
    client = torch.from_numpy(owner)[rows]
    values = {key: torch.cat([level.values[key] for level in levels])[rows] for key in ("input", "label")}
    values |= {"client": client, "share": torch.from_numpy(data.weights)[client]}
    return ClientData.single(Ragged(values, offsets), data.weights)

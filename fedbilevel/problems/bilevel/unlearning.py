"""Unlearning: x is the model that the server serves; some training examples have to be forgotten, the others kept.

The lower level adapts x to what is retained, y*(x) = argmin retain loss + (mu/2) |y - x|^2; the upper loss asks of y to
have lost what is to be forgotten and to do well on validation data. So x moves along mu (H + mu)^-1 fy, H the Hessian
of the retain loss: in the geometry of what remains. Our reading of that idea; no paper's algorithm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedbilevel.data import FederatedData
from fedbilevel.data.forgetting import Forget, with_forgotten
from fedbilevel.data.scaling import plain_mean
from fedbilevel.errors import BadInput
from fedbilevel.measures import classification
from fedbilevel.problem import ClientData, Ragged
from fedbilevel.problems.networks import find

Examples = dict[str, Tensor]


class Unlearning:
    """Forget a class, some clients or a share of all examples, over any federated classification data.

    Parameters
    ----------
    data
        The clients' examples and the server's test set.
    forget_class, forget_clients, forget_share
        What is forgotten, one of the three: the lower examples of a class, those of clients (numbers from 0), or a
        share of each client's lower examples, drawn and rounded.
    mu
        Weight of |y - x|^2 / 2 in every lower loss.
    network, hidden, activation
        A name of `fedbilevel.problems.networks.find`, and the layers of "mlp".
    epochs
        x0 is trained on all lower examples, the forgotten too, for so many epochs of SGD (minibatches of 64, step 0.1,
        no momentum) on the server; 0: x0 is random.
    seed
        Draws what is forgotten by share, the start and the minibatches.
    dtype
        Of examples and vectors.

    The losses are means over examples, whatever p_i is (`fedbilevel.data.scaling`). Lower: cross-entropy of all that is
    retained; the lower examples to forget weigh 0. Upper: cross-entropy of all validation examples that are not of the
    forgotten class or clients (these weigh 0), less the mean over the forgotten lower examples of min(cross-entropy,
    log of the number of classes): an example that the model guesses is forgotten, and pushes no further. A client's
    upper examples are its validation part and, behind it, its lower examples to forget.

    Raises BadInput where nothing is forgotten, or nothing is left.
    """

    def __init__(
        self,
        data: FederatedData,
        forget_class: int | None = None,
        forget_clients: Sequence[int] | None = None,
        forget_share: float | None = None,
        mu: float = 1.0,
        network: str = "mlp",
        hidden: Sequence[int] = (200,),
        activation: Literal["relu", "tanh"] = "relu",
        epochs: int = 5,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 0 < mu < float("inf"):
            raise BadInput("problem.mu", mu, "a finite number above 0")
        if not 0 <= epochs <= 1000:
            raise BadInput("problem.epochs", epochs, "an integer from 0 to 1000")
        self.mu, self.epochs, self.seed, self.classes = mu, epochs, seed, data.classes
        self.network = find(network, data.shape, data.classes, hidden=hidden, activation=activation)
        chosen = Forget.of(forget_class, forget_clients, forget_share)
        forget, gone = chosen.marked(data.clients, data.classes, seed)
        lower, p = data.clients.lower, data.clients.weights
        trained = Ragged({**lower.values, "scale": plain_mean(lower, p, ~forget), "forget": forget}, lower.offsets)
        self.clients = ClientData(trained, with_forgotten(data.clients, forget, gone), p).to(dtype)
        self.test_input = torch.as_tensor(data.x_test, dtype=dtype).flatten(1)
        self.test_label = torch.as_tensor(data.y_test)
        if forget_class is not None:  # the measures of the test set are of the classes that remain
            kept = self.test_label != forget_class
            self.test_input, self.test_label = self.test_input[kept], self.test_label[kept]

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x0 = y0: the network trained on everything, or its random start; the problem's seed draws both."""
        start = self._everything if self.epochs else self._random()
        return start.clone(), start.clone()

    @functools.cached_property
    def _everything(self) -> Tensor:
        return self._trained(torch.ones_like(self.clients.lower.values["forget"]))

    @functools.cached_property
    def retrained(self) -> Tensor:
        """From the same start as long as x0 on the retained examples alone, [dx] (5 epochs where x0 is random)."""
        return self._trained(~self.clients.lower.values["forget"])

    def _random(self) -> Tensor:
        return self.network.initial(torch.Generator().manual_seed(self.seed)).to(self.test_input)

    def _trained(self, wanted: Tensor) -> Tensor:
        held = self.clients.lower.values
        rows, y = torch.nonzero(wanted)[:, 0], self._random()

        def loss(y: Tensor, some: Tensor) -> Tensor:
            return cross_entropy(self.network(y, held["input"][some]), held["label"][some])

        draw, gradient = torch.Generator().manual_seed(self.seed), torch.func.grad(loss)
        with torch.no_grad():
            for _ in range(self.epochs or 5):
                order = rows[torch.randperm(len(rows), generator=draw).to(rows.device)]
                for some in order.split(64):
                    y = y - 0.1 * gradient(y, some)
        return y

    def lower(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy of what is retained, plus mu/2 |y - x|^2."""
        return examples["scale"] * self._losses(y, examples) + 0.5 * self.mu * ((y - x) @ (y - x))

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy of validation examples; less that of those to forget, up to the loss of a guess."""
        losses = self._losses(y, examples)
        return examples["scale"] * torch.where(examples["forget"], -losses.clamp(max=math.log(self.classes)), losses)

    def _losses(self, y: Tensor, examples: Examples) -> Tensor:
        return cross_entropy(self.network(y, examples["input"]), examples["label"], reduction="none")

    def upper_gradient_x(self, x: Tensor, y: Tensor, examples: Examples, prepared: Examples, weights: Tensor) -> Tensor:
        """`fx` = 0."""
        return torch.zeros_like(x)

    def cross_vjp(
        self, x: Tensor, y: Tensor, v: Tensor, examples: Examples, prepared: Examples, weights: Tensor
    ) -> Tensor:
        """`J v` = -mu v, summed over rows."""
        return (-self.mu * weights.sum(-1, keepdim=True) * v).reshape(-1, v.shape[-1]).sum(0)

    cross_vjp_sum = cross_vjp

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Of x, the model served: loss and accuracy on the test set, accuracies on what is to be forgotten and what is
        retained, and |x - retrained|.
        """
        held = self.clients.lower.values
        right = (self.network(x, held["input"]).argmax(-1) == held["label"]).double()
        logits, label = self.network(x, self.test_input), self.test_label
        return {
            **classification(logits, label),
            "forget_accuracy": float(right[held["forget"]].mean()),
            "retain_accuracy": float(right[~held["forget"]].mean()),
            "retrained_distance": float((x - self.retrained.to(x)).norm()),
        }

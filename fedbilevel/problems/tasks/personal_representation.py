"""Personalisation: every client adapts a shared network to its own data, and is judged on its own held-out examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fedbilevel import randomness
from fedbilevel.data import FederatedData
from fedbilevel.data.own_tests import apart, chosen, lower_sizes, taken
from fedbilevel.errors import BadInput
from fedbilevel.problem import ClientData, Examples, Ragged
from fedbilevel.problems.networks import find
from fedbilevel.problems.networks.layers import Activation
from fedbilevel.tasks import OwnTests, Tasks


class PersonalRepresentation:
    """A task of a client: its own examples. y is a representation and a linear softmax head; cross-entropy.

    A client adapts y on `support` of its lower examples, and the adapted y is judged on `queries` of its upper ones,
    drawn anew for every task; where a client has fewer, all of them, over and over. Which of y moves is the method's:
    the head alone (`comln`, `r2d2`), as in FedRep, or all of it (`maml`, `imaml`), as in Per-FedAvg and, with a pull to
    x, in pFedMe and Ditto. A share `test` of each client's examples, of every class alike, is held out: there the
    adapted model of every client is judged, and those of `new_clients` that never take part before.

    The problem of Collins et al. (Exploiting Shared Representations, ICML 2021) and Fallah et al. (NeurIPS 2020).

    Parameters
    ----------
    data
        The clients' examples. The server's own test set is not used.
    hidden, activation
        Of "mlp": widths of the hidden layers, the last of which is the representation; "relu" or "tanh".
    l2
        Weight of |head|^2 / 2 in the lower loss; `comln` takes none.
    support, queries
        Examples of a task: of a client's lower ones, and of its upper ones.
    test
        Share of each client's examples on which its adapted model is judged.
    new_clients
        How many of the clients, the last ones, do not take part in training and adapt after it.
    dtype
        Of examples and vectors.
    network
        What the representation is: "mlp", "conv" on square images, or path/to/nets.py:net, as in hyper_representation.
    filters, blocks
        Of "conv": filters of each block (the representation's width), and how many halve the image.
    seed
        Of what is held out, and of the support sets of evaluations.

    Raises BadInput for numbers out of range, and for a client too small to be judged.
    """

    kind = "classification"

    def __init__(
        self,
        data: FederatedData,
        hidden: Sequence[int] = (64,),
        activation: Activation = "relu",
        l2: float = 0.0,
        support: int = 20,
        queries: int = 20,
        test: float = 0.25,
        new_clients: int = 0,
        dtype: torch.dtype = torch.float32,
        network: str = "mlp",
        filters: int = 32,
        blocks: int = 2,
        seed: int = 0,
    ) -> None:
        if not 0 <= l2 < float("inf"):
            raise BadInput("problem.l2", l2, "a finite number of at least 0")
        for key, value in (("support", support), ("queries", queries)):
            if value < 1:
                raise BadInput(f"problem.{key}", value, "an integer of at least 1")
        everybody = len(data.clients)
        if not 0 <= new_clients < everybody:
            allowed = f"an integer from 0 to {everybody - 1}, one less than data.clients"
            raise BadInput("problem.new_clients", new_clients, allowed)
        if not 0 < test < 1:
            raise BadInput("problem.test", test, "a number between 0 and 1")
        if seed < 0:
            raise BadInput("problem.seed", seed, "an integer of at least 0")
        self.network = find(
            network, data.shape, None, hidden=hidden, activation=activation, filters=filters, blocks=blocks
        )
        self.l2, self.classes, self.width, self.body = l2, data.classes, self.network.width, self.network.body
        self._seed = seed
        held = data.clients.to(dtype)
        pools, tests = apart(held, test, seed)
        train = np.arange(everybody - new_clients)
        self.clients = ClientData(pools.take(train), pools.take(train), held.weights[train])
        first = int(pools.offsets[len(train)])
        self._new = {key: t[first:].clone() for key, t in pools.values.items()}
        self._new_offsets = pools.offsets[len(train) :] - first
        self._test, self._test_offsets = tests.values, tests.offsets
        lower = lower_sizes(pools)
        self._most = int(lower.max()), int((pools.sizes - lower).max())
        self.task_sizes, self.draws = (support, queries), sum(self._most)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random start of the representation and a zero head; y0 = x0."""
        body = self.network.initial(generator)[: self.body].to(self._test["input"].dtype)
        x0 = torch.cat([body, body.new_zeros(self.classes * (self.width + 1))])
        return x0, x0.clone()

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        """Support sets of each client's lower examples, query sets of its upper ones."""
        lower = lower_sizes(held)
        starts, most = held.offsets[:-1], self._most[0]
        support = chosen(draws[..., :most], starts, lower, self.task_sizes[0])
        query = chosen(draws[..., most:], starts + lower, held.sizes - lower, self.task_sizes[1])
        return Tasks(taken(held.values, support), taken(held.values, query))

    def test_tasks(self, count: int) -> Tasks:
        """As many of every client, new ones last, as make `count` or more: a support set, and all its tests.

        The clients take turns. Where a client has fewer tests than another, they are repeated (see `tested`).

        Raises BadInput where the clients' own examples are elsewhere.
        """
        if len(self.clients.lower.values["label"]) == 0:
            allowed = "a problem whose models can be judged without the clients' own examples, on which these adapt"
            raise BadInput("problem.name", "personal_representation", allowed)
        sizes = np.diff(self._test_offsets)
        m, turns = len(sizes), -(-count // len(sizes))
        numbers = randomness.uniform(self._seed, np.arange(m), 0, "support sets to evaluate", turns * self._most[0])
        numbers = numbers.reshape(m, turns, -1)
        trained, sets = len(self.clients), []
        for held, own in (
            (self.clients.lower, numbers[:trained]),
            (Ragged(self._new, self._new_offsets), numbers[trained:]),
        ):
            rows = chosen(own, held.offsets[:-1], lower_sizes(held), self.task_sizes[0])
            sets.append(taken(held.values, rows, (len(own), turns)))
        support = {key: torch.cat([part[key] for part in sets]).transpose(0, 1).flatten(0, 1) for key in sets[0]}
        rows = self._test_offsets[:-1, None] + np.arange(sizes.max()) % sizes[:, None]
        return Tasks(support, taken(self._test, np.tile(rows, (turns, 1))))

    def tested(self, count: int) -> OwnTests:
        """Whose the tasks for testing are, which of their queries count, and who takes part in training."""
        sizes = np.diff(self._test_offsets)
        m, turns = len(sizes), -(-count // len(sizes))
        counted = torch.from_numpy(np.tile(np.arange(sizes.max()) < sizes[:, None], (turns, 1)))
        return OwnTests(torch.arange(m).repeat(turns), counted, torch.arange(m) < len(self.clients))

    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The representation [n, width] of inputs [n, features]."""
        return self.network.features(y[: self.body], inputs)

    def outputs(self, y: Tensor, examples: Examples) -> Tensor:
        """Logits [n, classes]."""
        head, bias = y[self.body :].split([self.classes * self.width, self.classes])
        return linear(self.features(y, examples["input"]), head.view(self.classes, self.width), bias)

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`L`: cross-entropy of each example plus l2/2 |head|^2, [n]."""
        return self.upper(x, y, examples) + 0.5 * self.l2 * y[self.body :].square().sum()

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`f`: cross-entropy."""
        return cross_entropy(self.outputs(y, examples), examples["label"], reduction="none")

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing without an adaptation."""
        return {}

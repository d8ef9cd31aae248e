"""Few-shot classification with a local lower level: clients adapt a network to N-way K-shot tasks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedbilevel.data.characters import load_characters
from fedbilevel.data.episodes import deal
from fedbilevel.data.labels import another_class
from fedbilevel.errors import BadInput
from fedbilevel.machine.memory import require
from fedbilevel.problem import ClientData, Examples, Ragged
from fedbilevel.problems.networks.classifier import Classifier
from fedbilevel.problems.networks.convolutions import Convolutions
from fedbilevel.problems.networks.layers import Activation, Network, Perceptron
from fedbilevel.tasks import Tasks


class FewShot:
    """A task: tell `ways` classes apart from `shots` images of each; cross-entropy on `queries` more images of each.

    Clients own alphabets, turned by quarter turns, so that clients differ; a task of a client has classes of its own.
    Tasks for testing have classes of alphabets that no client owns.

    Parameters
    ----------
    images
        "digits" (scikit-learn's; 6, 8 and 9 are held out), "omniglot", or the stem of an npz file in $FEDBILEVEL_DATA
        (see `fedbilevel.data.characters.load_characters`).
    clients
        How many share the characters.
    ways, shots, queries
        Classes of a task; images of each class in its support and in its query set.
    unseen
        Share of the alphabets that is held out for testing. The first are Japanese_(katakana), Sanskrit and Tagalog.
    mixed
        Whether the classes of a task for testing are drawn from all of these alphabets together, which is the usual
        protocol; otherwise from one of them, as those of a client are, which is harder.
    rotations
        How many of the turns by 0, 90, 180 and 270 degrees make classes of the clients' characters.
    test_turns
        By how many quarter turns the classes for testing are turned.
    noise
        The share of the labels of support sets that are wrong: each of them is so by this chance. Queries have theirs
        right.
    side
        Of the images, which shrink by averaging; default: their own.
    network
        "conv": four blocks of a 3x3 convolution with stride 2; "mlp": fully connected.
    filters, normalise
        Of "conv": filters of each block; whether blocks normalise over the images of a support or query set.
    hidden, activation
        Of "mlp": widths of the hidden layers; "relu" or "tanh".
    seed
        Of the tasks for testing.
    """

    kind = "classification"

    def __init__(
        self,
        images: str = "digits",
        clients: int = 8,
        ways: int = 3,
        shots: int = 1,
        queries: int = 5,
        unseen: float = 0.375,
        mixed: bool = True,
        rotations: int = 4,
        test_turns: int = 0,
        noise: float = 0.0,
        side: int | None = None,
        network: Literal["conv", "mlp"] = "conv",
        filters: int = 32,
        normalise: bool = True,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        seed: int = 0,
    ) -> None:
        least = {"clients": clients, "shots": shots, "queries": queries, "filters": filters}
        for key, value in least.items():
            if value < 1:
                raise BadInput(f"problem.{key}", value, "an integer of at least 1")
        if ways < 2:
            raise BadInput("problem.ways", ways, "an integer of at least 2")
        if not 0 < unseen < 1:
            raise BadInput("problem.unseen", unseen, "a number between 0 and 1")
        if not 1 <= rotations <= 4:
            raise BadInput("problem.rotations", rotations, "1, 2, 3 or 4 quarter turns")
        if not 0 <= test_turns <= 3:
            raise BadInput("problem.test_turns", test_turns, "0, 1, 2 or 3 quarter turns")
        if not 0 <= noise < 1:
            raise BadInput("problem.noise", noise, "a number of at least 0 and below 1")
        if len(hidden) == 0 or min(hidden) < 1:
            raise BadInput("problem.hidden", list(hidden), "a list of at least one width of at least 1")
        if seed < 0:
            raise BadInput("problem.seed", seed, "an integer of at least 0")
        pools, self._episodes = deal(
            load_characters(images),
            clients=clients,
            ways=ways,
            shots=shots,
            queries=queries,
            unseen=unseen,
            mixed=mixed,
            rotations=rotations,
            test_turns=test_turns,
            side=side,
        )
        self.classes, self._noise = ways, noise
        self.task_sizes = ways * shots, ways * queries
        # with noise, two more numbers for every label of a support set: whether it is wrong, and what it says then
        self.draws = self._episodes.draws + (2 * ways * shots if noise else 0)
        self.clients = ClientData(pools.clients, pools.clients)
        self._unseen_input, self._unseen_class = pools.unseen.values["input"], pools.unseen.values["class"]
        self._unseen_offsets, self._seed = pools.unseen.offsets, seed
        pixels = self._unseen_input.shape[1] ** 2
        self.network: Network = (
            Convolutions(1, filters, ways, normalise=normalise)
            if network == "conv"
            else Perceptron([pixels, *hidden], ways, activation)
        )
        require(12.0 * 8 * self.network.size, "problem.network", "a smaller network")
        own = type(self).lower is FewShot.lower and type(self).outputs is FewShot.outputs
        if own and isinstance(self.network, Convolutions) and normalise:
            closed = Classifier(self.network)
            self.lower_gradient = self.upper_gradient_y = closed.gradient
            self.lower_hvp, self.lower_expansion = closed.hvp, closed.expansion
            self.outputs_jacobian = closed.jacobian

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random start of the network; y0 = x0."""
        x0 = self.network.initial(generator).to(self._unseen_input.dtype)
        return x0, x0.clone()

    def _tasks(self, pool: Ragged, numbers: NDArray[np.float64]) -> Tasks:
        images = pool.values["input"]
        sets = []
        drawn = self._episodes.draw(pool, numbers[..., : self._episodes.draws])
        for rows, each in zip(drawn, (self._episodes.shots, self._episodes.queries), strict=True):
            index = torch.from_numpy(rows.ravel()).to(images.device)
            label = torch.arange(self.classes, device=images.device).repeat_interleave(each)
            found = images.index_select(0, index).view(*rows.shape, *images.shape[1:])
            sets.append({"input": found, "label": label.expand(rows.shape)})
        if self._noise:
            wrong, which = numbers[..., self._episodes.draws :].reshape(len(drawn[0]), 2, -1).swapaxes(0, 1)
            label = sets[0]["label"]
            other = another_class(label, torch.from_numpy(which).to(label.device), self.classes)
            sets[0]["label"] = torch.where(torch.from_numpy(wrong < self._noise).to(label.device), other, label)
        return Tasks(sets[0], sets[1])

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        """Tasks of each client's own classes."""
        return self._tasks(held, draws)

    def test_tasks(self, count: int) -> Tasks:
        """Tasks of the alphabets held out; if they are not mixed, of one alphabet after the other."""
        like = self.clients.lower.values["input"]
        values = {"input": self._unseen_input.to(like), "class": self._unseen_class}
        owners = len(self._unseen_offsets) - 1
        each = -(-count // owners)
        numbers = np.random.Generator(np.random.Philox(self._seed)).random((each, owners, self.draws))
        found = self._tasks(Ragged(values, self._unseen_offsets), numbers.swapaxes(0, 1))
        turn = torch.arange(count, device=like.device)
        index = (turn % owners) * each + turn // owners
        sets = [{key: t.index_select(0, index) for key, t in part.items()} for part in (found.support, found.query)]
        return Tasks(sets[0], sets[1])

    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The representation [n, width] of images [n, side, side]."""
        return self.network.features(y, inputs)

    def outputs(self, y: Tensor, examples: Examples) -> Tensor:
        """Logits [n, ways]."""
        return self.network(y, examples["input"])

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`L`: cross-entropy of each image, [n]."""
        return cross_entropy(self.outputs(y, examples), examples["label"], reduction="none")

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`f`: the same loss."""
        return self.lower(x, y, examples)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing without an adaptation."""
        return {}

"""Which of the clients' examples are used, and which labels are made wrong: drawn client by client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.errors import BadInput
from fedbilevel.problem import Ragged, map_examples


def shares_of(noise: float | Sequence[float], clients: int, classes: int) -> NDArray[np.float64]:
    """The share of wrong labels of each client, [m]. Raises BadInput for one outside of [0, 1)."""
    allowed = f"a number of at least 0 and below 1, or a list of {clients} of them, one per client"
    given = np.asarray(noise, dtype=np.float64)
    if given.shape not in ((), (clients,)) or not bool(np.all((given >= 0) & (given < 1))):
        raise BadInput("problem.noise", noise, allowed)
    if classes < 2 and bool(given.any()):
        raise BadInput("problem.noise", noise, "0 for data of a single class")
    return np.broadcast_to(given, (clients,))


def most_of(examples: int | Sequence[int] | None) -> list[int | None]:
    """The most examples of a client on each level, None for all. Raises BadInput for a number below 1."""
    if examples is None:
        return [None, None]
    most: list[int | None] = [examples, None] if isinstance(examples, int) else list(examples)
    if len(most) != 2 or any(each is not None and each < 1 for each in most):
        raise BadInput("problem.examples", examples, "an integer of at least 1, or two of them: [lower, upper]")
    return most


def some(level: Ragged, most: int | None, seed: int) -> Ragged:
    """At most so many examples of each client, drawn client by client, in their order."""
    if most is None or int(level.sizes.max()) <= most:
        return level
    order = randomness.permutations(seed, np.arange(len(level.sizes)), 0, "examples", level.sizes)[:, :most]
    inside = np.arange(order.shape[1]) < level.sizes[:, None]
    rows = torch.from_numpy(np.sort((level.offsets[:-1, None] + order)[inside]))
    kept = np.concatenate([[0], np.cumsum(inside.sum(1))]).astype(np.int64)
    return Ragged(map_examples(lambda tensor: tensor[rows], level.values), kept)


def with_wrong_labels(level: Ragged, shares: NDArray[np.float64], classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """The labels [n] of which each client's share is wrong, and which ones are, boolean [n]."""
    clients = np.arange(len(shares))
    order = randomness.permutations(seed, clients, 0, "wrong labels", level.sizes)
    chosen = np.arange(order.shape[1]) < np.rint(shares * level.sizes)[:, None]
    rows = torch.from_numpy((level.offsets[:-1, None] + order)[chosen])
    draws = randomness.uniform(seed, clients, 0, "wrong classes", order.shape[1])[chosen]
    label = level.values["label"].clone()
    label[rows] = another_class(label[rows], torch.from_numpy(draws), classes)
    wrong = torch.zeros(len(label), dtype=torch.bool)
    wrong[rows] = True
    return label, wrong


def another_class(label: Tensor, draws: Tensor, classes: int) -> Tensor:
    """Labels [...] that are wrong, each of the other classes alike, by uniform numbers [...] in [0, 1).

    >>> another_class(torch.tensor([0, 0, 2]), torch.tensor([0.1, 0.9, 0.1]), 3).tolist()
    [1, 2, 0]
    """
    return (label + 1 + (draws * (classes - 1)).long()) % classes

"""A long tail: of every class fewer examples than of the one before, on the lower level; as many of each on the upper.

The examples are drawn from those that the clients hold: who holds which classes stays as the partition made it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedbilevel import randomness
from fedbilevel.errors import BadInput
from fedbilevel.problem import ClientData, Ragged, map_examples


def class_sizes(classes: int, largest: int, imbalance: float) -> NDArray[np.int64]:
    """How many examples each class keeps, [classes]: `largest * imbalance^(-k / (classes - 1))` of class k, rounded.

    Raises BadInput, naming a key of the `[problem]` table, where a class would be left without any.

    >>> class_sizes(10, 1000, 100).tolist()
    [1000, 599, 359, 215, 129, 77, 46, 28, 17, 10]
    """
    if isinstance(largest, bool) or not 1 <= largest < 2**31:
        raise BadInput("problem.largest", largest, "an integer of at least 1")
    if not 1 <= imbalance < float("inf"):
        raise BadInput("problem.imbalance", imbalance, "a finite number of at least 1")
    sizes = np.rint(largest * float(imbalance) ** (-np.arange(classes) / max(classes - 1, 1))).astype(np.int64)
    if int(sizes[-1]) < 1:
        allowed = f"at most {2 * largest}, for of {largest} examples it would leave class {classes - 1} without any"
        raise BadInput("problem.imbalance", imbalance, allowed)
    return sizes


def long_tailed(
    clients: ClientData, sizes: NDArray[np.int64], upper_examples: int, *, seed: int, key: str = "problem.largest"
) -> ClientData:
    """The same clients with fewer examples: `sizes[k]` of class k on the lower level, `upper_examples` of each above.

    clients: examples are dicts with a `label`; seed: draws which examples are kept. Every client keeps at least one on
    either level, in place of one of a client that has more. p_i stay as they are.

    Raises BadInput (naming `key`, or `problem.upper_examples`) where the clients hold too few of a class, or where a
    client's classes are too rare for everybody to keep one.
    """
    balanced = np.full_like(sizes, upper_examples)
    if isinstance(upper_examples, bool) or upper_examples < 1:
        raise BadInput("problem.upper_examples", upper_examples, "an integer of at least 1, of every class")
    lower = _kept(clients.lower, sizes, seed, "lower", key)
    upper = _kept(clients.upper, balanced, seed, "upper", "problem.upper_examples")
    return ClientData(lower, upper, clients.weights)


def _kept(level: Ragged, sizes: NDArray[np.int64], seed: int, name: str, key: str) -> Ragged:
    label = level.values["label"].numpy(force=True)
    held = np.bincount(label, minlength=len(sizes))
    if (held < sizes).any():
        k = int(np.argmax(held < sizes))
        most = f"so few that class {k} needs at most {held[k]}, all that the clients hold of it on the {name} level"
        raise BadInput(key, int(sizes.max()), most)
    owner = level.owners
    order = randomness.generator(seed, randomness.SERVER, 0, f"long tail {name}").permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]  # class by class, shuffled within
    keep = np.zeros(len(label), dtype=bool)
    keep[order] = np.arange(len(label)) - (np.cumsum(held) - held)[label[order]] < sizes[label[order]]
    _spread(keep, label, owner, order, len(level.sizes), name, key, sizes)
    rows = torch.from_numpy(np.flatnonzero(keep))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=len(level.sizes)))]).astype(np.int64)
    return Ragged(map_examples(lambda t: t[rows.to(t.device)], level.values), offsets)


def _spread(
    keep: NDArray[np.bool_],
    label: NDArray[np.int64],
    owner: NDArray[np.int64],
    order: NDArray[np.int64],
    clients: int,
    name: str,
    key: str,
    sizes: NDArray[np.int64],
) -> None:
    """Give each client that keeps nothing one example, in place of one of the same class of who keeps most."""
    counts = np.bincount(owner[keep], minlength=clients)
    for client in np.flatnonzero(counts == 0):
        for own in order[owner[order] == client]:
            others = np.flatnonzero(keep & (label == label[own]) & (counts[owner] > 1))
            if len(others):
                other = others[np.argmax(counts[owner[others]])]
                keep[other], keep[own] = False, True
                counts[owner[other]] -= 1
                counts[client] = 1
                break
        else:
            own_classes = sorted(set(label[owner == client].tolist()))
            allowed = (
                f"more, or fewer clients: client {client} has only the classes {own_classes} on the {name} level, "
                "which are too rare for every client to keep an example"
            )
            raise BadInput(key, int(sizes.max()), allowed)

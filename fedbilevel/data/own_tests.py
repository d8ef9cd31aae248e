"""What each client keeps of its own examples to be judged on, and draws of the others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.errors import BadInput
from fedbilevel.problem import ClientData, Ragged, client_by_client


def own_tests(owners: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which examples [n] are held out: of each owner a share, rounded, and of each of its classes that share within 1.

    An owner's examples are shuffled and put in the order of their labels; there every (1/share)-th one is taken.

    >>> held = own_tests(np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([5, 5, 7, 7, 7, 7, 7, 7]), 0.5, seed=0)
    >>> int(held[:2].sum()), int(held[2:4].sum()), int(held[4:].sum())
    (1, 1, 2)
    """
    mixed = np.random.Generator(np.random.Philox(seed)).random(len(owners))
    order = np.lexsort((mixed, labels, owners))
    _, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
    place = np.arange(len(owners)) - np.repeat(starts, counts)
    held = np.empty(len(owners), bool)
    held[order] = np.floor((place + 1) * share + 0.5) > np.floor(place * share + 0.5)
    return held


def apart(clients: ClientData, share: float, seed: int) -> tuple[Ragged, Ragged]:
    """Every client's examples to learn from, the lower ones before the upper ones (`upper`: 1), and its tests."""
    levels = clients.lower, clients.upper
    owners = np.concatenate([level.owners for level in levels])
    values = {key: torch.cat([level.values[key] for level in levels]) for key in ("input", "label")}
    upper = np.repeat([0, 1], [len(level.owners) for level in levels])
    label = values["label"].numpy()
    tests = own_tests(2 * owners + upper, label, share, seed)
    for name, kept in (("lower", ~tests & (upper == 0)), ("upper", ~tests & (upper == 1)), ("test", tests)):
        counts = np.bincount(owners[kept], minlength=len(clients))
        if (poor := np.flatnonzero(counts == 0)).size:
            of = " and ".join(str(level.sizes[poor[0]]) for level in levels)
            allowed = f"a share that leaves each client {name} examples: client {poor[0]} has {of} on its two levels"
            raise BadInput("problem.test", share, allowed)

    def ragged(mask: NDArray[np.bool_]) -> Ragged:
        own = np.flatnonzero(mask)
        order, offsets = client_by_client(owners[own], len(clients))
        rows = torch.from_numpy(own)[order]
        return Ragged({**{key: t[rows] for key, t in values.items()}, "upper": torch.from_numpy(upper)[rows]}, offsets)

    return ragged(~tests), ragged(tests)


def lower_sizes(pools: Ragged) -> NDArray[np.int64]:
    """How many of each client's examples are lower ones."""
    upper = np.concatenate([[0], np.cumsum(pools.values["upper"].numpy(force=True))]).astype(np.int64)
    return pools.sizes - np.diff(upper[pools.offsets])


def chosen(
    numbers: NDArray[np.float64], starts: NDArray[np.int64], sizes: NDArray[np.int64], many: int
) -> NDArray[np.int64]:
    """Rows [S * T, many] of S clients in the order of uniform numbers [S, T, most]; after the last the first again."""
    possible = np.arange(numbers.shape[-1]) < sizes[:, None, None]
    order = np.argsort(np.where(possible, numbers, np.inf), axis=-1, kind="stable")
    places = np.broadcast_to(np.arange(many) % sizes[:, None, None], (*numbers.shape[:2], many))
    return (np.take_along_axis(order, places, -1) + starts[:, None, None]).reshape(-1, many)


def taken(
    values: dict[str, Tensor], rows: NDArray[np.int64], shape: tuple[int, ...] | None = None
) -> dict[str, Tensor]:
    """Inputs and labels of some rows [B, n], as [B, n, ...] or, B being of a shape, [*shape, n, ...]."""
    index = torch.from_numpy(rows.ravel()).to(values["label"].device)
    shape = (*(rows.shape[:1] if shape is None else shape), rows.shape[1])
    return {key: values[key].index_select(0, index).unflatten(0, shape) for key in ("input", "label")}

"""A data set whose training examples are spread over clients, each with a lower and an upper part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedbilevel.data.datasets import load
from fedbilevel.data.partitions import partition, split_levels
from fedbilevel.problem import ClientData, Ragged


@dataclass(frozen=True, eq=False)
class FederatedData:
    """What a problem over labelled data is built from.

    clients: per client `{"input": [n, features], "label": [n]}` on both levels; x_test [n, ...], y_test [n]: the
    server's held-out test set; classes, features: numbers of classes and of input features.
    """

    clients: ClientData
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    classes: int
    features: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example before it was flattened, such as (28, 28) or (32, 32, 3)."""
        return tuple(self.x_test.shape[1:])


def federate(
    name: str = "digits",
    *,
    clients: int = 20,
    partition_name: str = "dirichlet",
    parameters: Mapping[str, Any] | None = None,
    validation: float = 0.5,
    weights: str | Sequence[float] = "size",
    seed: int = 0,
) -> FederatedData:
    """Load a data set and spread it over clients.

    Parameters
    ----------
    name
        A data set of `fedbilevel.data.DATASETS`, or the stem of an npz file in $FEDBILEVEL_DATA.
    clients
        How many.
    partition_name, parameters
        A partition of `fedbilevel.data.PARTITIONS` and what it takes.
    validation
        The share of each client's examples that goes to the upper level.
    weights
        p_i: "size", "uniform", or one number per client.
    seed
        Draws the partition and the split into levels.

    Raises BadInput, naming the key of the `[data]` table.
    """
    data = load(name)
    parts = partition(
        data.y_train, name=partition_name, clients=clients, seed=seed, owners=data.owners, **dict(parameters or {})
    )
    levels = split_levels(parts, validation=validation, seed=seed)
    inputs = torch.from_numpy(data.x_train).flatten(1)
    labels = torch.from_numpy(data.y_train)

    def ragged(indices: list[NDArray[np.int64]]) -> Ragged:
        rows = torch.from_numpy(np.concatenate(indices))
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in indices])]).astype(np.int64)
        return Ragged({"input": inputs[rows], "label": labels[rows]}, offsets)

    held = ClientData(ragged(levels[0]), ragged(levels[1]), weights)
    return FederatedData(held, data.x_test, data.y_test, data.classes, int(inputs.shape[1]))

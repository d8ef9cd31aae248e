"""Where every client has a block of x to itself, one weight per example of its own: which entries are whose.

Such an x is one vector [dx], client after client. A client is sent its own block alone and answers for that alone; the
blocks of several clients, one after another in the order of the clients, are a vector too: `cut` takes it from x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.errors import BadInput

OWN = "own"
"""The name under which examples carry the place in x [n] (int64) of the entry of x that is theirs."""


@dataclass(frozen=True)
class Blocks:
    """Client i owns the entries offsets[i]..offsets[i+1]-1 of x.

    >>> blocks = Blocks.of([2, 1, 3])
    >>> x = torch.arange(6.0)
    >>> blocks.cut(x, np.array([0, 2]))
    tensor([0., 1., 3., 4., 5.])
    >>> blocks.fill(x, torch.tensor([7.0]), np.array([1]))
    tensor([0., 1., 7., 3., 4., 5.])
    """

    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, sizes: Sequence[int] | NDArray[np.int64]) -> Blocks:
        """The blocks of these sizes, one per client. Raises BadInput for a size below 1."""
        counts = np.asarray(sizes, dtype=np.int64)
        if counts.ndim != 1 or counts.size == 0 or int(counts.min()) < 1:
            raise BadInput("clients.blocks", sizes, "for each client the number of its own entries of x, at least 1")
        return cls(np.concatenate([[0], np.cumsum(counts)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many entries each client owns, [m]."""
        return np.diff(self.offsets)

    def of_clients(self, clients: NDArray[np.int64]) -> Blocks:
        """The blocks of these clients in a vector that holds them alone, one after another."""
        return Blocks(np.concatenate([[0], np.cumsum(self.sizes[clients])]))

    def places(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in x the entries of these clients are, client after client."""
        sizes = self.sizes[clients]
        starts = np.repeat(self.offsets[:-1][clients] - (np.cumsum(sizes) - sizes), sizes)
        return np.asarray(starts + np.arange(int(sizes.sum())), dtype=np.int64)

    def cut(self, x: Tensor, clients: NDArray[np.int64]) -> Tensor:
        """The blocks of these clients out of x [dx]; of all clients in order it is x itself."""
        if len(clients) == len(self) and bool((clients == np.arange(len(clients))).all()):
            return x
        return x[torch.from_numpy(self.places(clients)).to(x.device)]

    def fill(self, x: Tensor, part: Tensor, clients: NDArray[np.int64]) -> Tensor:
        """The same x [dx] with other blocks of these clients."""
        filled = x.clone()
        filled[torch.from_numpy(self.places(clients)).to(x.device)] = part
        return filled

    def repeated(self, values: NDArray[np.float64], clients: NDArray[np.int64]) -> Tensor:
        """One value per client, for each of its entries: [sum of the clients' sizes], float64."""
        return torch.from_numpy(np.repeat(np.asarray(values, dtype=np.float64), self.sizes[clients]))

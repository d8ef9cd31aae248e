"""Thin wires to the clients: what they receive of a vector, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedbilevel import randomness
from fedbilevel.conditions.compression import ChannelTable, compressed


@dataclass(frozen=True)
class Shadow:
    """What clients hold of the last vector of a name, and which of them do."""

    tensor: Tensor
    holders: NDArray[np.int64]


@dataclass(frozen=True)
class _Received:
    """What arrives of a vector, the bytes that it takes as a displacement, and who can make something of that."""

    name: str
    tensor: Tensor
    bytes: int
    before: NDArray[np.int64]


class Downlink:
    """Compresses what the server sends: the displacement from what clients hold of the last vector of that name.

    Every client ends with the same vector: one that missed the last displacement is sent it whole. float16 needs no
    displacements. `random_k` keeps its coordinates as they are: scaled, displacements from a copy that the coding
    itself has made would run away.
    """

    def __init__(self, table: ChannelTable, seed: int) -> None:
        self.table, self._seed = table, seed
        self.shadows: dict[str, Shadow] = {}
        self._received: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def forget(self) -> None:
        """An outer iteration begins: what is sent again is coded again, as it is by a run that goes on from here."""
        self._received.clear()

    def __call__(
        self, name: str, tensor: Tensor, clients: NDArray[np.int64], round: int
    ) -> tuple[Tensor, NDArray[np.int64] | None]:
        """What these clients receive, and the bytes that it takes to each of them (None: as usual)."""
        if self.table.downlink == "exact":
            return tensor, None
        known: _Received | None = self._received.get(tensor)
        if known is None:
            known = self._received[tensor] = self._code(name, tensor, round)
            self.shadows[name] = Shadow(known.tensor, clients)
        else:
            holders, shadow = clients, self.shadows.get(name)
            if shadow is not None and shadow.tensor is known.tensor:
                holders = np.union1d(shadow.holders, clients)
            elif known.name == name:  # another vector of that name was sent since: who knows what its holders hold
                known = self._received[tensor] = replace(known, before=np.arange(0))
            self.shadows[name] = Shadow(known.tensor, holders)
        whole = tensor.numel() * tensor.element_size()
        if self.table.downlink == "float16":
            return known.tensor, np.full(len(clients), known.bytes, np.int64)
        return known.tensor, np.where(np.isin(clients, known.before), known.bytes, whole).astype(np.int64)

    def _code(self, name: str, tensor: Tensor, round: int) -> _Received:
        wire = self.table.downlink
        size = self.table.bytes(wire, tensor.numel(), tensor.element_size())
        server = np.array([randomness.SERVER])

        def coded(vector: Tensor) -> Tensor:
            rows = compressed(vector[None], wire, self.table, self._seed, server, round, f"to {name}", scaled=False)
            return rows[0]

        if wire == "float16":
            return _Received(name, coded(tensor).to(tensor.dtype), size, np.arange(0))
        shadow = self.shadows.get(name)
        if shadow is None or shadow.tensor.shape != tensor.shape or shadow.tensor.dtype != tensor.dtype:
            return _Received(name, tensor, size, np.arange(0))
        here = shadow.tensor.double()
        return _Received(name, (here + coded(tensor.double() - here)).to(tensor.dtype), size, shadow.holders)

    def remembered(self) -> dict[str, tuple[Tensor, list[int]]]:
        """What a checkpoint needs to hold."""
        return {name: (shadow.tensor, shadow.holders.tolist()) for name, shadow in self.shadows.items()}

    def remember(self, held: dict[str, tuple[Tensor, list[int]]]) -> None:
        """Take up what a checkpoint holds."""
        self.shadows = {
            name: Shadow(tensor, np.array(holders, dtype=np.int64)) for name, (tensor, holders) in held.items()
        }

"""What travels: which vectors clients hold already, and what a round puts on the wire in each direction."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.blocks import Blocks
from fedbilevel.conditions.compression import ChannelTable, Wire
from fedbilevel.federation.messages import Operation


@dataclass(frozen=True)
class Traffic:
    """What one round sends in one direction: the vectors of all clients together, and the bytes of each client [S]."""

    vectors: int
    bytes: NDArray[np.float64]
    total_bytes: int


_Bytes = int | NDArray[np.int64]
"""The same number for every client, or one for each [S]."""


@dataclass
class _Sent:
    """A vector that was sent in this iteration: its token, whether it still lives, and which clients hold it."""

    token: int
    tensor: weakref.ref[Tensor]
    holders: NDArray[np.int64] | None = None


class Channel:
    """Between the server and its clients, who keep the vectors they were sent during one outer iteration.

    A vector (the same tensor object) travels to a client once between two calls of `forget`. blocks: where every client
    has a block of x to itself, which is all of x that travels to it and from it; table: how answers are compressed.
    """

    def __init__(self, blocks: Blocks | None = None, table: ChannelTable | None = None) -> None:
        self._blocks, self._table = blocks, table or ChannelTable()
        self._sent: dict[int, _Sent] = {}
        self._tokens = 0

    def forget(self) -> None:
        """An outer iteration begins: clients forget what they were sent."""
        self._sent.clear()

    def token(self, tensor: Tensor) -> int:
        """The number of this vector, unique within the run."""
        return self._entry(tensor).token

    def alive(self) -> frozenset[int]:
        """The numbers of the vectors that may still be asked for."""
        return frozenset(sent.token for sent in self._sent.values())

    def down(
        self,
        tensors: Iterable[tuple[Tensor, bool]],
        clients: NDArray[np.int64],
        sizes: Mapping[int, NDArray[np.int64]] | None = None,
    ) -> Traffic:
        """Send vectors to clients: only those that a client does not hold yet travel to it.

        tensors: each with whether it is of the dimension of x, of which a client may need its own block alone; sizes:
        by the id of a tensor the bytes that it takes to each client, where it is compressed.
        """
        vectors, total, per_client = 0, 0, np.zeros(len(clients))
        for tensor, of_x in {id(tensor): (tensor, of_x) for tensor, of_x in tensors}.values():
            sent = self._entry(tensor)
            if sent.holders is clients:
                continue
            size = None if sizes is None else sizes.get(id(tensor))
            bytes_ = self._bytes(tensor, of_x, clients) if size is None else size
            if sent.holders is None:
                vectors, sent.holders = vectors + len(clients), clients
            else:
                new = ~np.isin(clients, sent.holders)
                bytes_ = new * bytes_
                vectors, sent.holders = vectors + int(new.sum()), np.union1d(sent.holders, clients)
            per_client += bytes_
            total += _sum(bytes_, clients)
        return Traffic(vectors, per_client, total)

    def up(
        self, operations: Sequence[Operation], means: Sequence[tuple[Tensor, ...]], clients: NDArray[np.int64]
    ) -> Traffic:
        """What clients answer: each the outputs of the operations, of the means' shapes; reports are free."""
        vectors = 0
        per_client: _Bytes = 0
        for operation, results in zip(operations, means, strict=True):
            outputs = results[: len(results) - operation.report]
            for k, output in enumerate(outputs):
                own = k < len(operation.gives) and operation.gives[k]
                per_client = per_client + self._bytes(output, own, clients, self._table.uplink)
            vectors += len(clients) * len(outputs)
        return Traffic(vectors, np.zeros(len(clients)) + per_client, _sum(per_client, clients))

    def _bytes(self, tensor: Tensor, of_x: bool, clients: NDArray[np.int64], wire: Wire = "exact") -> _Bytes:
        """What this vector is to each client: whole, or its own block."""
        if of_x and self._blocks is not None:
            return self._blocks.sizes[clients] * tensor.element_size()
        return self._table.bytes(wire, tensor.numel(), tensor.element_size())

    def _entry(self, tensor: Tensor) -> _Sent:
        """What is known of this vector. When the algorithm drops it, it can never be sent again and is forgotten."""
        key = id(tensor)
        if key not in self._sent:
            gone = weakref.ref(tensor, lambda _, key=key, sent=self._sent: sent.pop(key, None))  # type: ignore[misc]  # bound now
            self._sent[key] = _Sent(self._tokens, gone)
            self._tokens += 1
        return self._sent[key]


def _sum(bytes_: _Bytes, clients: NDArray[np.int64]) -> int:
    """Of all these clients."""
    return bytes_ * len(clients) if isinstance(bytes_, int) else int(bytes_.sum())

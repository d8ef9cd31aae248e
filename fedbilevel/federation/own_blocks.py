"""A client's own block of x: what is cut out for the sampled clients, and how their answers become whole again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedbilevel.blocks import Blocks
from fedbilevel.federation.aggregation import Aggregation, per_output
from fedbilevel.federation.messages import Operation, Options


class OwnBlocks:
    """Cuts vectors of the dimension of x into the blocks of the clients that are asked."""

    def __init__(self, blocks: Blocks, aggregation: Aggregation) -> None:
        self.blocks, self._aggregation = blocks, aggregation
        self._cuts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def cut(self, x: Tensor, clients: NDArray[np.int64]) -> Tensor:
        """The blocks of these clients, the same tensor object for as long as the same are asked of the same x."""
        found = self._cuts.get(x)
        if found is None or not np.array_equal(found[0], clients):
            found = self._cuts[x] = (clients, self.blocks.cut(x, clients))
        part: Tensor = found[1]
        return part

    def uncut(
        self,
        operation: Operation,
        outputs: tuple[Tensor, ...],
        sent: Mapping[str, Tensor],
        options: Options,
        clients: NDArray[np.int64],
    ) -> tuple[Tensor, ...]:
        """The outputs with those of the dimension of x whole.

        In the blocks of clients that did not answer stands what the answers of those that did hold there: the start of
        an iterate, and what the operation says of a vector elsewhere.
        """
        if not any(operation.gives):
            return outputs
        about, elsewhere = (per_output(each, len(outputs)) for each in (operation.about, operation.elsewhere))
        whole = []
        for output, start, rest, of_x in zip(outputs, about, elsewhere, operation.gives, strict=True):
            if not of_x:
                whole.append(output)
                continue
            base = sent[start] if start is not None else output.new_zeros(int(self.blocks.offsets[-1]))
            if rest is not None:
                vector, factor = rest
                held = self._aggregation.elsewhere(operation, factor, options, clients)
                base = base + float(held.sum()) * sent[vector]
            whole.append(self.blocks.fill(base, output, clients))
        return tuple(whole)

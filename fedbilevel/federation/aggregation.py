"""Aggregation: from the workers' sums to one vector per output; the one weighted mean of sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.federation.messages import Elsewhere, Operation, Reply
from fedbilevel.federation.participation import Population
from fedbilevel.federation.systems import BatchSize

Weighting = Literal["normalised", "unbiased"]


def weighted_mean(
    replies: Sequence[Reply], *, normalise: bool, joined: Sequence[tuple[bool, ...]] | None = None
) -> list[tuple[Tensor, ...]]:
    """Add the workers' float64 sums in client order; normalise: divided by the sum of p_i.

    joined: per operation and output whether the sums are of blocks, each worker's of its own clients: one after another
    they are the whole.
    """
    total = sum(reply.weight for reply in replies)
    scale = 1.0 / total if normalise else 1.0
    columns = zip(*(reply.sums for reply in replies), strict=True)

    def sum_of(parts: tuple[Tensor, ...], join: bool) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if join else torch.stack(parts).sum(0)

    return [
        tuple(
            sum_of(parts, joined is not None and position < len(joined[k]) and joined[k][position]) * scale
            for position, parts in enumerate(zip(*outputs, strict=True))
        )
        for k, outputs in enumerate(columns)
    ]


@dataclass(frozen=True)
class Aggregation:
    """The mean over a sampled set S: "normalised", weights p_i / sum_S p_j, or "unbiased", (m / |S|) p_i.

    Unbiased, an iterate's mean is its start plus the mean displacement. What an iterate's displacement holds of a
    vector that is an aggregate already (gbar of FedSVRG, h of FedOut) is applied whole: weighed by (m / |S|) p_i once
    more, it would be multiplied by a sum of weights that depends on the same S, and the step would be biased.

    Where every client has a block of x to itself, the others' answers there are what they were sent: an iterate moves
    by its client's weighted displacement (which is what the workers sum), and by every client's steps along an
    aggregate.
    """

    weighting: Weighting
    population: Population
    seed: int
    batch: BatchSize = None

    def __call__(
        self,
        operations: Sequence[Operation],
        tensors: Mapping[str, Tensor],
        options: Mapping[str, Any],
        clients: NDArray[np.int64],
        replies: Sequence[Reply],
    ) -> list[tuple[Tensor, ...]]:
        """Per operation and output `sum_S w_i u_i`, in the dtype of the vectors sent."""
        like = next(iter(tensors.values()))
        blocks = self.population.blocks
        joined = None if blocks is None else [operation.gives for operation in operations]
        total = sum(reply.weight for reply in replies)
        unbiased = self.weighting == "unbiased"
        scale = len(self.population) / len(clients) if unbiased else 1.0 / total
        means = []
        for operation, outputs in zip(
            operations, weighted_mean(replies, normalise=not unbiased, joined=joined), strict=True
        ):
            about, along, elsewhere = (
                per_output(each, len(outputs)) for each in (operation.about, operation.along, operation.elsewhere)
            )
            gives = (*operation.gives, *(len(outputs) - len(operation.gives)) * (False,))
            moved = []
            for output, start, step, rest, of_x in zip(outputs, about, along, elsewhere, gives, strict=True):
                mean = scale * output if unbiased else output
                own = of_x and blocks is not None
                if start is not None and (unbiased or own):
                    mean = mean + (1.0 if own else 1.0 - scale * total) * tensors[start].to(mean.dtype)
                if rest is not None and own:
                    mean = mean + self._elsewhere(operation, rest, tensors, options, clients)
                if step is not None and unbiased:
                    mean = mean + self.whole(operation, step, tensors, options, clients)
                moved.append(mean.to(like.dtype))
            means.append(tuple(moved))
        return means

    def _taus(
        self, operation: Operation, options: Mapping[str, Any], clients: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The local steps of these clients in an operation."""
        work = operation.passes(options)
        assert work.steps is not None
        taus = self.population.local_steps(work.steps, self.seed, clients, self.batch, work.epochs_of)
        return taus.astype(np.float64)

    def whole(
        self,
        operation: Operation,
        along: tuple[str, str],
        tensors: Mapping[str, Tensor],
        options: Mapping[str, Any],
        clients: NDArray[np.int64],
    ) -> Tensor | float:
        """What is missing where the weights of S have scaled a step along an aggregate: it is `tau` steps, whole.

        Each client's displacement holds `-step * tau_i * vector`, of which unbiased weights have made
        `-step * sum_S w_i tau_i * vector`; whole it is `-step * sum_i p_i tau_i * vector`, over all clients.
        """
        vector, step = along
        population, steps = self.population, operation.passes(options).steps
        everyone = np.arange(len(population))
        taus = self._taus(operation, options, clients)
        tau = (
            float(steps)
            if isinstance(steps, int)
            else float(population.weights @ self._taus(operation, options, everyone))
        )
        made = len(population) / len(clients) * float(population.weights[clients] @ taus)
        return (made - tau) * float(options[step]) * tensors[vector].double()

    def elsewhere(
        self, operation: Operation, factor: Elsewhere, options: Mapping[str, Any], clients: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What each client's answer holds of a vector where x is not its own, by its weight, [S]."""
        return self.weights(clients, self.weighting) * factor(options, self._taus(operation, options, clients))

    def weights(self, clients: NDArray[np.int64], weighting: Weighting) -> NDArray[np.float64]:
        """`w_i` of a sampled set S, [S]."""
        p = self.population.weights[clients]
        return (len(self.population) / len(clients) if weighting == "unbiased" else 1.0 / float(p.sum())) * p

    def _elsewhere(
        self,
        operation: Operation,
        rest: tuple[str, Elsewhere],
        tensors: Mapping[str, Tensor],
        options: Mapping[str, Any],
        clients: NDArray[np.int64],
    ) -> Tensor:
        """What the answers of all other clients hold of a vector in each client's block of x, by their weights."""
        vector, factor = rest
        blocks = self.population.blocks
        assert blocks is not None
        held = self.elsewhere(operation, factor, options, clients)
        return (float(held.sum()) - blocks.repeated(held, clients)) * tensors[vector].double()


def per_output(values: tuple[Any, ...], outputs: int) -> tuple[Any, ...]:
    """One value per output: as many as there are, or one for all."""
    return values if len(values) == outputs else values * outputs

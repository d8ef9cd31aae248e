"""Aggregation: from the workers' sums to one vector per output; the one weighted mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.federation.messages import Operation, Reply
from fedbilevel.federation.participation import Population
from fedbilevel.federation.systems import BatchSize

Weighting = Literal["normalised", "unbiased"]


def weighted_mean(replies: Sequence[Reply], *, normalise: bool) -> list[tuple[Tensor, ...]]:
    """Add the workers' float64 sums in client order; normalise: divided by the sum of p_i."""
    total = sum(reply.weight for reply in replies)
    scale = 1.0 / total if normalise else 1.0
    columns = zip(*(reply.sums for reply in replies), strict=True)
    return [
        tuple(
            torch.stack(parts).sum(0) * scale if len(parts) > 1 else parts[0] * scale
            for parts in zip(*outputs, strict=True)
        )
        for outputs in columns
    ]


@dataclass(frozen=True)
class Aggregation:
    """The mean over a sampled set S: "normalised", weights p_i / sum_S p_j, or "unbiased", (m / |S|) p_i.

    Unbiased, an iterate's mean is its start plus the mean displacement. What an iterate's displacement holds of a
    vector that is an aggregate already (gbar of FedSVRG, h of FedOut) is applied whole: weighed by (m / |S|) p_i once
    more, it would be multiplied by a sum of weights that depends on the same S, and the step would be biased.
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
        if self.weighting == "normalised":
            means = weighted_mean(replies, normalise=True)
            return [tuple(output.to(like.dtype) for output in outputs) for outputs in means]
        scale = len(self.population) / len(clients)
        weight = scale * sum(reply.weight for reply in replies)
        means = []
        for operation, outputs in zip(operations, weighted_mean(replies, normalise=False), strict=True):
            about = operation.about if len(operation.about) == len(outputs) else operation.about * len(outputs)
            scaled = []
            for output, start in zip(outputs, about, strict=True):
                moved = scale * output
                if start is not None:
                    moved = moved + (1.0 - weight) * tensors[start].to(moved.dtype)
                    moved = moved + self._whole(operation, tensors, options, clients, scale)
                scaled.append(moved.to(like.dtype))
            means.append(tuple(scaled))
        return means

    def _whole(
        self,
        operation: Operation,
        tensors: Mapping[str, Tensor],
        options: Mapping[str, Any],
        clients: NDArray[np.int64],
        scale: float,
    ) -> Tensor | float:
        """What is missing where the weights of S have scaled a step along an aggregate: it is `tau` steps, whole.

        Each client's displacement holds `-step * tau_i * vector`, of which the weights have made
        `-step * sum_S w_i tau_i * vector`; whole it is `-step * sum_i p_i tau_i * vector`, over all clients.
        """
        if operation.along is None:
            return 0.0
        vector, step = operation.along
        work, population = operation.passes(options), self.population
        steps = work.steps
        assert steps is not None

        def taus(of: NDArray[np.int64]) -> NDArray[np.float64]:
            return population.local_steps(steps, self.seed, of, self.batch, work.epochs_of).astype(np.float64)

        everyone = np.arange(len(population))
        tau = float(steps) if isinstance(steps, int) else float(population.weights @ taus(everyone))
        made = scale * float(population.weights[clients] @ taus(clients))
        return (made - tau) * float(options[step]) * tensors[vector].double()

"""The federation as the server's algorithms see it: the only way to reach clients, and the only place that counts."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.errors import NonFinite
from fedbilevel.ledger import Ledger
from fedbilevel.messages import Exchange, Operation, Reply, Request
from fedbilevel.problem import ClientData
from fedbilevel.systems import BatchSize, LocalSteps, Systems, local_steps

Weighting = Literal["normalised", "unbiased"]


@dataclass(frozen=True)
class Population:
    """What the server knows of its clients: weights p_i and numbers of examples, shape [m] each.

    task_sizes: where the lower level is local, the examples of a task's support and query set.
    """

    weights: NDArray[np.float64]
    lower_sizes: NDArray[np.int64]
    upper_sizes: NDArray[np.int64]
    task_sizes: tuple[int, int] | None = None

    @classmethod
    def of(cls, clients: ClientData, task_sizes: tuple[int, int] | None = None) -> Population:
        """Return the population that owns this data."""
        return cls(clients.weights, clients.lower.sizes, clients.upper.sizes, task_sizes)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass
class _Sent:
    """A vector that was sent in this iteration: its token, whether it still lives, and which clients hold it."""

    token: int
    tensor: weakref.ref[Tensor]
    holders: NDArray[np.int64] | None = None


class Federation:
    """Samples clients, sends them operations, aggregates their answers and counts what travels.

    An algorithm calls `mean` once per communication round. Clients keep the vectors they were sent during one outer
    iteration: a vector (the same tensor object) travels to a client once between two calls of `begin`.

    Parameters
    ----------
    exchange
        Carries requests to the workers.
    clients_per_round
        |S|, sampled once per outer iteration without replacement; None: all who are available.
    weighting
        For a sampled set S: "normalised" p_i / sum_S p_j, or "unbiased" (m / |S|) p_i.
    batch, gradient_batch
        Minibatch sizes of local steps and of every other derivative (only needed for the simulated time).
    """

    def __init__(
        self,
        exchange: Exchange,
        population: Population,
        *,
        seed: int = 0,
        clients_per_round: int | None = None,
        weighting: Weighting = "normalised",
        systems: Systems | None = None,
        batch: BatchSize = None,
        gradient_batch: BatchSize = None,
    ) -> None:
        self.exchange, self.population, self.seed = exchange, population, seed
        self.clients_per_round, self.weighting = clients_per_round, weighting
        self.systems = systems or Systems()
        self.batch, self.gradient_batch = batch, gradient_batch
        self.ledger = Ledger()
        self.iteration = -1
        self.sampled: NDArray[np.int64] = np.arange(0)
        self._everyone = np.arange(len(population))
        self._sent: dict[int, _Sent] = {}
        self._tokens = 0

    # ---- who takes part ----

    def begin(self, iteration: int) -> None:
        """Start an outer iteration: clients forget what they were sent, and the set S is sampled."""
        self.iteration = iteration
        self._sent.clear()
        self.resample()

    def resample(self, purpose: str = "") -> None:
        """Sample S anew within the iteration; a `purpose` of its own gives an independent set.

        Clients that are not available are not asked. When nobody is available the server waits and asks again.
        """
        attempt, present = 0, self._everyone
        while self.systems.availability < 1.0:
            present = np.flatnonzero(self.systems.available(self.seed, self._everyone, self.iteration, attempt))
            if len(present):
                break
            attempt += 1
        size = self.clients_per_round
        if size is None or size >= len(present):
            self.sampled = present
            return
        draw = randomness.generator(self.seed, randomness.SERVER, self.iteration, f"sampling {purpose}")
        chosen = draw.choice(len(present), size=size, replace=False, shuffle=False)
        self.sampled = present[np.sort(chosen)]

    def random(self, purpose: str) -> np.random.Generator:
        """Return the server's own random numbers for this iteration."""
        return randomness.generator(self.seed, randomness.SERVER, self.iteration, purpose)

    def mean_local_steps(self, spec: LocalSteps) -> float:
        """`sum_S p_i tau_i / sum_S p_i`: the server knows each client's number of local steps."""
        p = self.population.weights[self.sampled]
        taus = local_steps(spec, self.seed, self.sampled, self.population.lower_sizes[self.sampled], self.batch)
        return float(p @ taus / p.sum())

    # ---- one round ----

    def mean(self, *operations: Operation, **arguments: Any) -> Any:
        """One communication round: broadcast, compute, upload, and the p_i-weighted mean over the sampled clients.

        `arguments` are the vectors that the operations read and the options that they take. Returns one tensor per
        operation (a tuple of tensors where an operation has several outputs); a single operation's result is returned
        by itself. Raises NonFinite, naming the operation, if a mean is not finite.
        """
        request, tensors = self._request(operations, arguments, self.sampled)
        down = self._count_down(tensors.values())
        replies = self.exchange(request)
        means = self._aggregate(operations, tensors, replies)
        self._count_up(operations, request, means, down)
        for operation, outputs in zip(operations, means, strict=True):
            if not all(bool(torch.isfinite(output).all()) for output in outputs):
                raise NonFinite(f"operation {operation.name}, round {self.ledger.rounds}: the mean is not finite")
        results = [outputs[0] if len(outputs) == 1 else outputs for outputs in means]
        return results[0] if len(results) == 1 else results

    @property
    def local(self) -> bool:
        """Whether the lower level is local: every client adapts to tasks of its own."""
        return self.population.task_sizes is not None

    def measure(self, operation: Operation, **arguments: Any) -> Tensor:
        """The mean of an operation over all clients, for evaluation: not a round, and not counted."""
        request, tensors = self._request((operation,), arguments, self._everyone)
        outputs = self._sum(self.exchange(request), normalise=True)
        like = next(iter(tensors.values()))
        return outputs[0][0].to(dtype=like.dtype)

    def _request(
        self, operations: tuple[Operation, ...], arguments: dict[str, Any], clients: NDArray[np.int64]
    ) -> tuple[Request, dict[str, Tensor]]:
        reads = {name for operation in operations for name in operation.reads}
        takes = {name for operation in operations for name in operation.options}
        if missing := reads - set(arguments):
            raise TypeError(f"{[operation.name for operation in operations]} also read {sorted(missing)}")
        if extra := set(arguments) - reads - takes:
            raise TypeError(f"{[operation.name for operation in operations]} do not take {sorted(extra)}")
        tensors = {name: value for name, value in arguments.items() if name in reads}
        request = Request(
            operations=tuple(operation.name for operation in operations),
            clients=clients,
            tensors=tensors,
            tokens={name: self._entry(tensor).token for name, tensor in tensors.items()},
            options={name: value for name, value in arguments.items() if name in takes},
            iteration=self.iteration,
            round=self.ledger.rounds,
            alive=frozenset(sent.token for sent in self._sent.values()),
        )
        return request, tensors

    def _entry(self, tensor: Tensor) -> _Sent:
        """What is known of this vector. When the algorithm drops it, it can never be sent again and is forgotten."""
        key = id(tensor)
        if key not in self._sent:
            gone = weakref.ref(tensor, lambda _, key=key, sent=self._sent: sent.pop(key, None))  # type: ignore[misc]  # bound now
            self._sent[key] = _Sent(self._tokens, gone)
            self._tokens += 1
        return self._sent[key]

    def _count_down(self, tensors: Iterable[Tensor]) -> NDArray[np.float64]:
        """Count the vectors that clients do not hold yet; returns the bytes down of each sampled client."""
        down = np.zeros(len(self.sampled))
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            sent = self._entry(tensor)
            if sent.holders is self.sampled:
                continue
            new = np.ones(len(down), np.bool_) if sent.holders is None else ~np.isin(self.sampled, sent.holders)
            count, size = int(new.sum()), tensor.numel() * tensor.element_size()
            down += new * float(size)
            self.ledger.vectors_down += count
            self.ledger.downlink_bytes += count * size
            sent.holders = self.sampled if sent.holders is None else np.union1d(sent.holders, self.sampled)
        return down

    def _count_up(
        self,
        operations: tuple[Operation, ...],
        request: Request,
        means: list[tuple[Tensor, ...]],
        down: NDArray[np.float64],
    ) -> None:
        counted = zip(operations, means, strict=True)
        outputs = [output for operation, results in counted for output in results[: len(results) - operation.report]]
        size = sum(output.numel() * output.element_size() for output in outputs)
        count = len(self.sampled)
        self.ledger.rounds += 1
        self.ledger.messages += 2 * count
        self.ledger.vectors_up += count * len(outputs)
        self.ledger.uplink_bytes += count * size
        examples = np.zeros(count)
        for operation in operations:
            examples += self._examples(operation, request)
        up = np.full(count, float(size))
        self.ledger.simulated_seconds += self.systems.seconds(self.seed, self.sampled, down, up, examples)

    def _examples(self, operation: Operation, request: Request) -> NDArray[np.float64]:
        """How many examples each sampled client differentiates, gradients counted once and products twice."""
        work = operation.passes(request.options)
        lower, upper = self.population.lower_sizes[self.sampled], self.population.upper_sizes[self.sampled]
        if work.of_task:
            support, query = self.population.task_sizes or (0, 0)
            return np.full(len(self.sampled), support * work.lower + query * work.upper)
        batch = self.gradient_batch if work.steps is None else self.batch
        if batch is not None:
            seen = np.minimum(lower, batch) * work.lower + np.minimum(upper, batch) * work.upper
        else:
            seen = lower * work.lower + upper * work.upper
        if work.steps is None:
            return np.asarray(seen, dtype=np.float64)
        sizes = lower if work.epochs_of == "lower" else upper
        return seen * local_steps(work.steps, self.seed, self.sampled, sizes, self.batch).astype(np.float64)

    # ---- aggregation: the one weighted mean ----

    @staticmethod
    def _sum(replies: list[Reply], *, normalise: bool) -> list[tuple[Tensor, ...]]:
        """Add the workers' float64 sums in client order; normalised: divided by the sum of p_i."""
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

    def _aggregate(
        self, operations: tuple[Operation, ...], tensors: dict[str, Tensor], replies: list[Reply]
    ) -> list[tuple[Tensor, ...]]:
        """sum_S w_i u_i; for unbiased weights an iterate's mean is its start plus the mean displacement."""
        like = next(iter(tensors.values()))
        sums = self._sum(replies, normalise=self.weighting == "normalised")
        if self.weighting == "normalised":
            return [tuple(output.to(like.dtype) for output in outputs) for outputs in sums]
        scale = len(self.population) / len(self.sampled)
        weight = scale * sum(reply.weight for reply in replies)
        means = []
        for operation, outputs in zip(operations, sums, strict=True):
            about = operation.about if len(operation.about) == len(outputs) else operation.about * len(outputs)
            scaled = []
            for output, start in zip(outputs, about, strict=True):
                moved = scale * output
                if start is not None:
                    moved = moved + (1.0 - weight) * tensors[start].to(moved.dtype)
                scaled.append(moved.to(like.dtype))
            means.append(tuple(scaled))
        return means

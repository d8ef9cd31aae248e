"""The federation as the server's algorithms see it: the only way to reach clients, one call per communication round."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.errors import NonFinite
from fedbilevel.federation.aggregation import Aggregation, Weighting, weighted_mean
from fedbilevel.federation.channel import Channel
from fedbilevel.federation.ledger import Clock, Ledger
from fedbilevel.federation.messages import Exchange, Operation, Request
from fedbilevel.federation.participation import Participation, Population
from fedbilevel.federation.systems import BatchSize, LocalSteps, Systems


class Federation:
    """Samples clients, sends them operations, aggregates their answers and counts what travels.

    An algorithm calls `mean` once per communication round. Clients keep the vectors they were sent during one outer
    iteration: a vector (the same tensor object) travels to a client once between two calls of `begin`. Each of its
    parts does one thing: `participation` says who is asked, `channel` what travels, `aggregation` how answers become
    one, `ledger` (with its `clock`) what it has cost.

    Parameters
    ----------
    exchange
        Carries requests to the workers.
    clients_per_round
        |S|, sampled once per outer iteration without replacement; None: all who are available.
    weighting
        For a sampled set S: "normalised" p_i / sum_S p_j, or "unbiased" (m / |S|) p_i.
    batch, gradient_batch
        Minibatch sizes of local steps and of every other derivative.
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
        systems = systems or Systems()
        self.exchange, self.population, self.seed, self.batch = exchange, population, seed, batch
        self.participation = Participation(population, systems, seed, clients_per_round)
        self.channel = Channel()
        self.aggregation = Aggregation(weighting, population, seed, batch)
        self.clock = Clock(population, systems, seed, batch, gradient_batch)
        self.ledger = Ledger()
        self.iteration = -1
        self.sampled: NDArray[np.int64] = np.arange(0)

    def begin(self, iteration: int) -> None:
        """Start an outer iteration: clients forget what they were sent, and the set S is sampled."""
        self.iteration = iteration
        self.channel.forget()
        self.resample()

    def resample(self, purpose: str = "") -> None:
        """Sample S anew within the iteration; a `purpose` of its own gives an independent set."""
        self.sampled = self.participation.sample(self.iteration, purpose)

    def random(self, purpose: str) -> np.random.Generator:
        """Return the server's own random numbers for this iteration."""
        return randomness.generator(self.seed, randomness.SERVER, self.iteration, purpose)

    def mean_local_steps(self, spec: LocalSteps) -> float:
        """`sum_S p_i tau_i / sum_S p_i`: the server knows each client's number of local steps."""
        p = self.population.weights[self.sampled]
        return float(p @ self.population.local_steps(spec, self.seed, self.sampled, self.batch) / p.sum())

    @property
    def local(self) -> bool:
        """Whether the lower level is local: every client adapts to tasks of its own."""
        return self.population.task_sizes is not None

    def mean(self, *operations: Operation, **arguments: Any) -> Any:
        """One communication round: broadcast, compute, upload, and the p_i-weighted mean over the sampled clients.

        `arguments` are the vectors that the operations read and the options that they take. Returns one tensor per
        operation (a tuple of tensors where an operation has several outputs); a single operation's result is returned
        by itself. Raises NonFinite, naming the operation, if a mean is not finite.
        """
        request = self._request(operations, arguments, self.sampled)
        down = self.channel.down(request.tensors.values(), self.sampled)
        replies = self.exchange(request)
        means = self.aggregation(operations, request.tensors, request.options, self.sampled, replies)
        up = self.channel.up(operations, means, len(self.sampled))
        seconds = self.clock.seconds(self.sampled, operations, request.options, down, up)
        self.ledger.enter(down, up, seconds)
        for operation, outputs in zip(operations, means, strict=True):
            if not all(bool(torch.isfinite(output).all()) for output in outputs):
                raise NonFinite(f"operation {operation.name}, round {self.ledger.rounds}: the mean is not finite")
        results = [outputs[0] if len(outputs) == 1 else outputs for outputs in means]
        return results[0] if len(results) == 1 else results

    def measure(self, operation: Operation, **arguments: Any) -> Tensor:
        """The mean of an operation over all clients, for evaluation: not a round, and not counted."""
        request = self._request((operation,), arguments, self.participation.everyone)
        outputs = weighted_mean(self.exchange(request), normalise=True)
        like = next(iter(request.tensors.values()))
        return outputs[0][0].to(dtype=like.dtype)

    def _request(
        self, operations: tuple[Operation, ...], arguments: dict[str, Any], clients: NDArray[np.int64]
    ) -> Request:
        reads = {name for operation in operations for name in operation.reads}
        takes = {name for operation in operations for name in operation.options}
        if missing := reads - set(arguments):
            raise TypeError(f"{[operation.name for operation in operations]} also read {sorted(missing)}")
        if extra := set(arguments) - reads - takes:
            raise TypeError(f"{[operation.name for operation in operations]} do not take {sorted(extra)}")
        tensors = {name: value for name, value in arguments.items() if name in reads}
        return Request(
            operations=tuple(operation.key for operation in operations),
            clients=clients,
            tensors=tensors,
            tokens={name: self.channel.token(tensor) for name, tensor in tensors.items()},
            options={name: value for name, value in arguments.items() if name in takes},
            iteration=self.iteration,
            round=self.ledger.rounds,
            alive=self.channel.alive(),
        )

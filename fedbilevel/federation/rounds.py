"""The federation as the server's algorithms see it: the only way to reach clients, one call per communication round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedbilevel import randomness
from fedbilevel.derivatives import Level
from fedbilevel.errors import NonFinite
from fedbilevel.federation.aggregation import Aggregation, Weighting, per_output, weighted_mean
from fedbilevel.federation.channel import Channel
from fedbilevel.federation.ledger import Clock, Ledger
from fedbilevel.federation.messages import Exchange, Kept, Operation, Request
from fedbilevel.federation.participation import Participation, Population
from fedbilevel.federation.systems import BatchSize, LocalSteps, Systems
from fedbilevel.problem import Part


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
    x_shapes
        The parts of x, for who steps matrix by matrix; none: x is a vector.
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
        x_shapes: Sequence[Part] = (),
    ) -> None:
        systems = systems or Systems()
        self.exchange, self.population, self.seed, self.batch = exchange, population, seed, batch
        self.x_shapes = x_shapes
        self.participation = Participation(population, systems, seed, clients_per_round)
        self.channel = Channel(population.blocks)
        self.aggregation = Aggregation(weighting, population, seed, batch)
        self.clock = Clock(population, systems, seed, batch, gradient_batch)
        self.ledger = Ledger()
        self.iteration = -1
        self.sampled: NDArray[np.int64] = np.arange(0)
        self.asked: list[NDArray[np.int64]] = []
        self._cuts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def begin(self, iteration: int) -> None:
        """Start an outer iteration: clients forget what they were sent, and the set S is sampled."""
        self.iteration, self.asked = iteration, []
        self.channel.forget()
        self.resample()

    def resample(self, purpose: str = "") -> None:
        """Sample S anew within the iteration; a `purpose` of its own gives an independent set."""
        self.sampled = self.participation.sample(self.iteration, purpose)

    def random(self, purpose: str) -> np.random.Generator:
        """Return the server's own random numbers for this iteration."""
        return randomness.generator(self.seed, randomness.SERVER, self.iteration, purpose)

    def local_steps(self, spec: LocalSteps, level: Level = "lower") -> NDArray[np.int64]:
        """tau_i of the sampled clients [S], which the server knows; epochs count examples of this level."""
        return self.population.local_steps(spec, self.seed, self.sampled, self.batch, level)

    def mean_over_sampled(self, values: NDArray[Any]) -> float:
        """`sum_S p_i u_i / sum_S p_i` of what the server knows of its clients, one number each [S]."""
        p = self.population.weights[self.sampled]
        return float(p @ values / p.sum())

    def mean_local_steps(self, spec: LocalSteps, level: Level = "lower") -> float:
        """`sum_S p_i tau_i / sum_S p_i`."""
        return self.mean_over_sampled(self.local_steps(spec, level))

    @property
    def local(self) -> bool:
        """Whether the lower level is local: every client adapts to tasks of its own."""
        return self.population.task_sizes is not None

    def mean(self, *operations: Operation, **arguments: Any) -> Any:
        """One communication round: broadcast, compute, upload, and the p_i-weighted mean over the sampled clients.

        `arguments` are the vectors that the operations read, the options that they take, and for an operation that lets
        clients keep something (`Operation.keeps`) what they have kept, one vector by client. Returns one tensor per
        operation (a tuple of tensors where an operation has several outputs, the last of them what the clients keep
        now); a single operation's result is returned by itself. Raises NonFinite, naming the operation, if a mean is
        not finite.
        """
        request = self._request(operations, arguments, self.sampled)
        of_x = {name for operation in operations for name in operation.upper}
        sent = {name: arguments[name] for name in request.tensors}
        down = self.channel.down(((tensor, name in of_x) for name, tensor in sent.items()), self.sampled)
        replies = self.exchange(request)
        means = self.aggregation(operations, request.tensors, request.options, self.sampled, replies)
        up = self.channel.up(operations, means, self.sampled)
        gradients = self.clock.gradients(self.sampled, operations, request.options)
        seconds = self.clock.seconds(self.sampled, gradients, down, up)
        self.ledger.enter(down, up, seconds, float(gradients.sum()))
        self.asked.append(self.sampled)
        results: list[Any] = []
        for k, (operation, outputs) in enumerate(zip(operations, means, strict=True)):
            if not all(bool(torch.isfinite(output).all()) for output in outputs):
                raise NonFinite(f"operation {operation.name}, round {self.ledger.rounds}: the mean is not finite")
            whole: tuple[Any, ...] = self._uncut(operation, outputs, sent, request.options)
            if operation.keeps is not None:
                whole = (*whole, self._kept(arguments[operation.keeps], [reply.own[k] for reply in replies]))
            results.append(whole[0] if len(whole) == 1 else whole)
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
        keeps = {operation.keeps for operation in operations if operation.keeps is not None}
        if missing := (reads | keeps) - set(arguments):
            raise TypeError(f"{[operation.name for operation in operations]} also read {sorted(missing)}")
        if extra := set(arguments) - reads - takes - keeps:
            raise TypeError(f"{[operation.name for operation in operations]} do not take {sorted(extra)}")
        tensors = {name: value for name, value in arguments.items() if name in reads}
        cut: frozenset[str] = frozenset()
        ends: NDArray[np.int64] | None = None
        if self.population.blocks is not None:
            cut = frozenset(name for operation in operations for name in operation.upper if name in tensors)
            tensors |= {name: self._cut(tensors[name], clients) for name in cut}
            ends = np.cumsum(self.population.blocks.sizes[clients])
        return Request(
            operations=tuple(operation.key for operation in operations),
            clients=clients,
            tensors=tensors,
            tokens={name: self.channel.token(tensor) for name, tensor in tensors.items()},
            options={name: value for name, value in arguments.items() if name in takes},
            iteration=self.iteration,
            round=self.ledger.rounds,
            alive=self.channel.alive(),
            cut=cut,
            ends=ends,
            own={name: _rows(arguments[name], clients) for name in keeps},
        )

    # ---- a client's own block of x ----

    def _cut(self, x: Tensor, clients: NDArray[np.int64]) -> Tensor:
        """The blocks of these clients, the same tensor object for as long as the same are asked of the same x."""
        assert self.population.blocks is not None
        found = self._cuts.get(x)
        if found is None or not np.array_equal(found[0], clients):
            found = self._cuts[x] = (clients, self.population.blocks.cut(x, clients))
        part: Tensor = found[1]
        return part

    def _uncut(
        self, operation: Operation, outputs: tuple[Tensor, ...], sent: Mapping[str, Tensor], options: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        """The outputs with those of the dimension of x whole.

        In the blocks of clients that were not asked stands what the answers of those that were hold there: the start of
        an iterate, and what the operation says of a vector elsewhere.
        """
        blocks = self.population.blocks
        if blocks is None or not any(operation.gives):
            return outputs
        about, elsewhere = (per_output(each, len(outputs)) for each in (operation.about, operation.elsewhere))
        whole = []
        for output, start, rest, of_x in zip(outputs, about, elsewhere, operation.gives, strict=True):
            if not of_x:
                whole.append(output)
                continue
            base = sent[start] if start is not None else output.new_zeros(int(blocks.offsets[-1]))
            if rest is not None:
                vector, factor = rest
                held = self.aggregation.elsewhere(operation, factor, options, self.sampled)
                base = base + float(held.sum()) * sent[vector]
            whole.append(blocks.fill(base, output, self.sampled))
        return tuple(whole)

    # ---- what clients keep ----

    def _kept(self, before: Mapping[int, Tensor], rows: list[Tensor | None]) -> dict[int, Tensor]:
        """What each client keeps: what those keep now who were asked, and the others what they did."""
        now = torch.cat([part for part in rows if part is not None])
        return {**before, **{int(client): row.clone() for client, row in zip(self.sampled, now, strict=True)}}


def _rows(kept: Mapping[int, Tensor], clients: NDArray[np.int64]) -> Kept:
    """What these clients have kept, a row each; 0 of a client that has not been asked before."""
    known = np.array([int(client) in kept for client in clients], dtype=np.bool_)
    if not known.any():
        return Kept(torch.zeros(len(clients), 0), known)
    zero = torch.zeros_like(next(iter(kept.values())))
    return Kept(torch.stack([kept.get(int(client), zero) for client in clients]), known)

"""The federation as the server's algorithms see it: the only way to reach clients, one call per communication round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.conditions.privacy import Privacy, PrivacyTable
from fedbilevel.conditions.tables import Conditions
from fedbilevel.derivatives import Level
from fedbilevel.errors import NobodyAnswered, NonFinite
from fedbilevel.federation.aggregation import Aggregation, Weighting, per_output, weighted_mean
from fedbilevel.federation.answering import Answered, Answering
from fedbilevel.federation.channel import Channel, Traffic
from fedbilevel.federation.downlink import Downlink
from fedbilevel.federation.ledger import Clock, Ledger
from fedbilevel.federation.messages import Exchange, Kept, Operation, Reply, Request
from fedbilevel.federation.own_blocks import OwnBlocks
from fedbilevel.federation.participation import Participation, Population
from fedbilevel.federation.rows import RowAggregation
from fedbilevel.federation.systems import BatchSize, LocalSteps, Systems
from fedbilevel.problem import Part


class Federation:
    """Samples clients, sends them operations, aggregates their answers and counts what travels.

    An algorithm calls `mean` once per communication round. Clients keep the vectors they were sent during one outer
    iteration: a vector (the same tensor object) travels to a client once between two calls of `begin`. Each of its
    parts does one thing: `participation` says who is asked, `answering` who of them answers, `channel` (with its
    `downlink`) what travels, `aggregation` how answers become one (`rows` where each client's own is needed), `ledger`
    (with its `clock`) what it has cost.

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
    conditions
        How answers are aggregated, compressed and protected; default: their mean, as they are.
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
        conditions: Conditions | None = None,
    ) -> None:
        systems, conditions = systems or Systems(), conditions or Conditions()
        self.exchange, self.population, self.seed, self.batch = exchange, population, seed, batch
        self.x_shapes = x_shapes
        self.participation = Participation(population, systems, seed, clients_per_round)
        self.channel, self.downlink = Channel(population.blocks, conditions.channel), Downlink(conditions.channel, seed)
        self.aggregation = Aggregation(weighting, population, seed, batch)
        self.privacy = None if conditions.privacy is None else self._private(conditions.privacy)
        self.rows = RowAggregation(self.aggregation, conditions, systems.byzantine, self.privacy)
        self.own = None if population.blocks is None else OwnBlocks(population.blocks, self.aggregation)
        self.clock = Clock(population, systems, seed, batch, gradient_batch)
        self.answering = Answering(self.participation, self.clock, self.channel)
        self.ledger = Ledger()
        self.iteration, self.attempt = -1, 0
        self.sampled: NDArray[np.int64] = np.arange(0)
        self.answered: NDArray[np.int64] = self.sampled
        self.asked: list[NDArray[np.int64]] = []
        self.lost, self.repeated = 0, 0
        self._gone: NDArray[np.int64] = np.arange(0)

    def begin(self, iteration: int, attempt: int = 0) -> None:
        """Start an outer iteration: clients forget what they were sent, and the set S is sampled.

        A further attempt begins one again in which nobody answered.
        """
        self.iteration, self.attempt, self.asked = iteration, attempt, self.asked if attempt else []
        self._gone = np.arange(0)
        self.repeated += attempt > 0
        self.channel.forget()
        self.downlink.forget()
        if self.privacy is not None:
            self.privacy.begun()
        self.resample()

    def resample(self, purpose: str = "") -> None:
        """Sample S anew within the iteration; a `purpose` of its own gives an independent set."""
        self.sampled = self.participation.sample(self.iteration, purpose, self.attempt)
        if len(self._gone):
            self.sampled = self.sampled[~np.isin(self.sampled, self._gone)]
        self.answered = self.sampled
        if self.privacy is not None:
            self.privacy.drawn(purpose)

    def random(self, purpose: str) -> np.random.Generator:
        """Return the server's own random numbers for this iteration."""
        return randomness.generator(self.seed, randomness.SERVER, self.iteration, purpose)

    def local_steps(self, spec: LocalSteps, level: Level = "lower") -> NDArray[np.int64]:
        """tau_i of the clients that answered last [S], which the server knows; epochs count examples of this level."""
        return self.population.local_steps(spec, self.seed, self.answered, self.batch, level)

    def mean_over_sampled(self, values: NDArray[Any]) -> float:
        """`sum_S p_i u_i / sum_S p_i` of what the server knows of who answered last, one number each [S]."""
        p = self.population.weights[self.answered]
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
        not finite, and NobodyAnswered if there is nothing to take a mean of.
        """
        if not len(self.sampled):
            raise NobodyAnswered(f"{_named(operations)}, round {self.ledger.rounds}: nobody was asked")
        sent = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        received, sizes = self._received(sent)
        of_x = {name for operation in operations for name in operation.upper}
        down = self.channel.down(((tensor, name in of_x) for name, tensor in received.items()), self.sampled, sizes)
        asked, done = self.sampled, self._decided(operations, {**arguments, **received}, down)
        answered = asked if done is None else asked[done.counts]
        request = self._request(operations, {**arguments, **received}, answered)
        replies = self.exchange(request) if len(answered) else []
        answered = self.answered = _who_answered(answered, replies)
        means: list[tuple[Tensor, ...]] = []
        nobody: NobodyAnswered | None = None
        if len(answered):
            try:
                means = self._means(operations, request, answered, replies)
                means = self._from_what_was_sent(operations, means, sent, received)
            except NobodyAnswered as useless:  # what came was sent all the same
                nobody = useless
        came = means or [_like_sums(own, request) for reply in replies[:1] for own in reply.sums]
        up = self.channel.up(operations if came else (), came, answered)
        self._enter(operations, request.options, down, up, done)
        if not means:
            raise nobody or NobodyAnswered(f"{_named(operations)}, round {request.round}: nobody answered")
        results: list[Any] = []
        for k, (operation, outputs) in enumerate(zip(operations, means, strict=True)):
            if not all(map(_finite, outputs)):
                raise NonFinite(f"operation {operation.name}, round {self.ledger.rounds}: the mean is not finite")
            whole: tuple[Any, ...] = outputs
            if self.own is not None:
                whole = self.own.uncut(operation, outputs, sent, request.options, answered)
            if operation.keeps is not None:
                whole = (*whole, self._kept(arguments[operation.keeps], [reply.own[k] for reply in replies]))
            results.append(whole[0] if len(whole) == 1 else whole)
        return results[0] if len(results) == 1 else results

    # ---- a round ----

    def _decided(self, operations: tuple[Operation, ...], arguments: dict[str, Any], down: Traffic) -> Answered | None:
        """Who of those asked answers, as the systems have it; None: whoever is asked."""
        if self.answering.certain:
            return None
        request = self._request(operations, arguments, self.sampled[:1])

        def outputs() -> list[tuple[Tensor, ...]]:
            # what answers will weigh is found by asking one client outside of the protocol
            replies = self.exchange(replace(request, rows=True))
            if not replies:
                raise NobodyAnswered(f"{_named(operations)}, round {request.round}: nobody answered")
            return [_like_sums(own, request) for own in replies[0].sums]

        kind = (request.operations, *(tensor.shape for tensor in request.tensors.values()))
        done = self.answering(self.sampled, self.ledger.rounds, operations, request.options, down.bytes, kind, outputs)
        if self.participation.systems.dropout_lasts == "iteration":
            self._gone = np.union1d(self._gone, self.sampled[done.failed])
        return done

    def _enter(
        self,
        operations: tuple[Operation, ...],
        options: Mapping[str, Any],
        down: Traffic,
        up: Traffic,
        done: Answered | None,
    ) -> None:
        """Enter the round into the ledger: what all were sent, what came back, and the work of who did not fail."""
        asked, answered = self.sampled, self.answered
        worked = answered if done is None else asked[~done.failed]
        gradients = self.clock.gradients(worked, operations, options)
        if done is not None:
            seconds = done.seconds
        else:
            sent = down.bytes if answered is asked else down.bytes[np.isin(asked, answered)]
            seconds = float(self.clock.seconds(answered, gradients, sent, up.bytes).max(initial=0.0))
        self.ledger.enter(down, up, seconds, float(gradients.sum()))
        self.asked.append(asked)
        self.lost += len(asked) - len(answered)
        if len(self._gone):
            self.sampled = asked[~np.isin(asked, self._gone)]

    def _received(self, sent: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, NDArray[np.int64]] | None]:
        """What the sampled clients receive of these vectors, and by its id the bytes of each that is compressed."""
        if self.downlink.table.downlink == "exact":
            return dict(sent), None
        received, sizes = {}, {}
        for name, tensor in sent.items():
            received[name], size = self.downlink(name, tensor, self.sampled, self.ledger.rounds)
            if size is not None:
                sizes[id(received[name])] = size
        return received, sizes

    def _means(
        self,
        operations: tuple[Operation, ...],
        request: Request,
        answered: NDArray[np.int64],
        replies: Sequence[Reply],
    ) -> list[tuple[Tensor, ...]]:
        """What the answers become, each output by itself."""
        if not self.rows.needed:
            return self.aggregation(operations, request.tensors, request.options, answered, replies)
        place = self.iteration, request.round
        return self.rows(operations, request.tensors, request.options, answered, replies, *place)

    def _from_what_was_sent(
        self,
        operations: tuple[Operation, ...],
        means: list[tuple[Tensor, ...]],
        sent: Mapping[str, Tensor],
        received: Mapping[str, Tensor],
    ) -> list[tuple[Tensor, ...]]:
        """Iterates that start where the server stands: clients have moved from what arrived of that."""
        if self.downlink.table.downlink == "exact":
            return means
        found = []
        for operation, outputs in zip(operations, means, strict=True):
            about = per_output(operation.about, len(outputs))
            found.append(
                tuple(
                    output if start is None else output + (sent[start] - received[start])
                    for output, start in zip(outputs, about, strict=True)
                )
            )
        return found

    def measure(self, operation: Operation, **arguments: Any) -> Tensor:
        """The mean of an operation over all clients, for evaluation: not a round, and not counted."""
        request = replace(self._request((operation,), arguments, self.participation.everyone), rows=False)
        replies = self.exchange(request)
        if not replies:
            raise NobodyAnswered(f"operation {operation.name}, after round {self.ledger.rounds}: nobody answered")
        outputs = weighted_mean(replies, normalise=True)
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
        if self.own is not None:
            cut = frozenset(name for operation in operations for name in operation.upper if name in tensors)
            tensors |= {name: self.own.cut(tensors[name], clients) for name in cut}
            ends = np.cumsum(self.own.blocks.sizes[clients])
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
            rows=self.rows.needed,
            own={name: _rows(arguments[name], clients) for name in keeps},
        )

    # ---- what a run carries on ----

    def _private(self, table: PrivacyTable) -> Privacy:
        who = self.participation
        poisson, there = who.systems.sampling == "poisson", who.systems.availability == 1.0
        amplified = who.asked if there else None
        return Privacy(
            table, self.seed, clients=len(self.population), expected=who.expected, asked=amplified, poisson=poisson
        )

    def remembered(self) -> dict[str, Any]:
        """What goes on from one iteration to the next beside the ledger, as a checkpoint holds it."""
        private = self.privacy
        return {
            "lost": self.lost,
            "repeated": self.repeated,
            "dropped": self.rows.dropped,
            "last": dict(self.rows.last),
            "downlink": self.downlink.remembered(),
            "clips": dict(private.clips) if private else {},
            "groups": private.told() if private else {},
        }

    def remember(self, held: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint holds."""
        self.lost, self.repeated, self.rows.dropped = held["lost"], held["repeated"], held["dropped"]
        self.rows.last = dict(held["last"])
        self.downlink.remember(held["downlink"])
        if self.privacy is not None:
            self.privacy.clips = dict(held["clips"])
            self.privacy.groups.update(held["groups"])

    def measures(self) -> dict[str, int | float]:
        """What a history row says of the conditions: only of those that a run has."""
        systems, found = self.participation.systems, dict[str, int | float]()
        if not systems.everybody_answers or systems.failures == "drop" or systems.sampling == "poisson":
            found |= {"metric_lost": self.lost, "metric_repeated": self.repeated}
        if not self.rows.conditions.aggregation.polite:
            found["metric_dropped"] = self.rows.dropped
        if self.privacy is not None:
            found["epsilon"] = self.privacy.epsilon()
        return found

    # ---- what clients keep ----

    def _kept(self, before: Mapping[int, Tensor], rows: list[Tensor | None]) -> dict[int, Tensor]:
        """What each client keeps: what those keep now who were asked, and the others what they did."""
        now = torch.cat([part for part in rows if part is not None])
        return {**before, **{int(client): row.clone() for client, row in zip(self.answered, now, strict=True)}}


def _finite(output: Tensor) -> bool:
    """Whether all numbers are: the least and the largest tell it in one pass, and NaN is either."""
    return not output.numel() or all(map(math.isfinite, torch.aminmax(output)))


def _named(operations: Sequence[Operation]) -> str:
    return f"operation {', '.join(operation.name for operation in operations)}"


def _like_sums(sums: tuple[Tensor, ...], request: Request) -> tuple[Tensor, ...]:
    """Tensors without content, of the dtype of the vectors sent and as long as these sums, or as the rows of each."""
    like = next(iter(request.tensors.values()))
    return tuple(torch.empty(each.shape[-1], dtype=like.dtype, device="meta") for each in sums)


def _who_answered(asked: NDArray[np.int64], replies: Sequence[Reply]) -> NDArray[np.int64]:
    """Those of whom replies came: the very array that was asked if all did."""
    came = [reply.clients for reply in replies]
    if any(clients is None for clients in came) or sum(len(clients) for clients in came if clients is not None) == len(
        asked
    ):
        return asked
    return np.concatenate([clients for clients in came if clients is not None]) if came else asked[:0]


def _rows(kept: Mapping[int, Tensor], clients: NDArray[np.int64]) -> Kept:
    """What these clients have kept, a row each; 0 of a client that has not been asked before."""
    known = np.array([int(client) in kept for client in clients], dtype=np.bool_)
    if not known.any():
        return Kept(torch.zeros(len(clients), 0), known)
    zero = torch.zeros_like(next(iter(kept.values())))
    return Kept(torch.stack([kept.get(int(client), zero) for client in clients]), known)

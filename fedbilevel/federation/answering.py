"""Who of those that were asked answers in time, and when a round ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.errors import BadInput
from fedbilevel.federation.channel import Channel
from fedbilevel.federation.ledger import Clock
from fedbilevel.federation.messages import Operation
from fedbilevel.federation.participation import Participation

Outputs = Sequence[tuple[Tensor, ...]]
"""Per operation tensors of the shapes and dtype of its outputs."""


@dataclass(frozen=True)
class Answered:
    """Of the clients asked [S]: who has failed, and who counts; and the seconds after which the round ended."""

    failed: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    seconds: float


class Answering:
    """A client fails by chance, drawn for it and the round; an answer after the deadline is lost, and so are those
    beyond the `clients_per_round` fastest ones (over-selection; of equally fast ones a draw decides).

    The server waits for the last answer that counts, or until the deadline where it has fewer answers than it wants; a
    failure is noticed at once where there is no deadline.
    """

    def __init__(self, participation: Participation, clock: Clock, channel: Channel) -> None:
        self.participation, self.clock, self.channel = participation, clock, channel
        self._shapes: dict[tuple[Any, ...], Outputs] = {}
        self._met: set[tuple[Any, ...]] = set()

    @property
    def certain(self) -> bool:
        """Whether whoever is asked answers, and counts."""
        return self.participation.systems.everybody_answers

    def __call__(
        self,
        asked: NDArray[np.int64],
        round: int,
        operations: Sequence[Operation],
        options: Mapping[str, Any],
        down: NDArray[np.float64],
        kind: tuple[Any, ...],
        outputs: Callable[[], Outputs],
    ) -> Answered:
        """Say it of the clients asked, to whom so many bytes were sent [S].

        kind: names rounds whose answers have the same shapes, which `outputs` gives. Raises BadInput for a deadline
        that no client of all can meet in such a round.
        """
        if kind not in self._shapes:
            self._shapes[kind] = outputs()
        systems, seed = self.participation.systems, self.participation.seed
        self._hold_deadline(operations, options, down, kind)
        takes = self._takes(operations, options, asked, down, kind)
        failed = np.zeros(len(asked), np.bool_)
        if systems.dropout > 0.0:
            failed = randomness.uniform(seed, asked, round, "dropout")[:, 0] < systems.dropout
        deadline = systems.deadline_seconds
        counts = ~failed if deadline is None else ~failed & (takes <= deadline)
        size = self.participation.clients_per_round
        wanted = min(size, len(asked)) if size is not None and systems.over_selection else len(asked)
        if counts.sum() > wanted:
            lot = randomness.uniform(seed, asked, round, "equally fast")[:, 0]
            fastest = np.lexsort((lot, takes, ~counts))[:wanted]
            counts = np.isin(np.arange(len(asked)), fastest)
        if deadline is not None and counts.sum() < wanted:
            return Answered(failed, counts, deadline)
        return Answered(failed, counts, float(takes[counts].max() if counts.any() else takes.max()))

    def _takes(
        self,
        operations: Sequence[Operation],
        options: Mapping[str, Any],
        clients: NDArray[np.int64],
        down: NDArray[np.float64],
        kind: tuple[Any, ...],
    ) -> NDArray[np.float64]:
        """How long each of these clients takes for a round, [S]."""
        gradients = self.clock.gradients(clients, operations, options)
        return self.clock.seconds(
            clients, gradients, down, self.channel.up(operations, self._shapes[kind], clients).bytes
        )

    def _hold_deadline(
        self,
        operations: Sequence[Operation],
        options: Mapping[str, Any],
        down: NDArray[np.float64],
        kind: tuple[Any, ...],
    ) -> None:
        deadline, everyone = self.participation.systems.deadline_seconds, self.participation.everyone
        if deadline is None or kind in self._met:
            return
        least = np.full(len(everyone), down.min())
        fastest = float(self._takes(operations, options, everyone, least, kind).min())
        if fastest > deadline:
            named = ", ".join(operation.name for operation in operations)
            allowed = f"at least {fastest}: the fastest client takes as long for operation {named}"
            raise BadInput("systems.deadline_seconds", deadline, allowed)
        self._met.add(kind)

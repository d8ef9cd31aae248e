"""Who of those that were asked answers in time, and when a round ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbilevel import randomness
from fedbilevel.federation.systems import Systems


@dataclass(frozen=True)
class Answered:
    """Of the clients asked [S]: who has failed, and who counts; and the seconds after which the round ended."""

    failed: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    seconds: float


@dataclass(frozen=True)
class Answering:
    """A client fails by chance, drawn for it and the round; an answer after the deadline is lost, and so are those
    beyond the `wanted` fastest ones (over-selection; of equally fast ones a draw decides).

    The server waits for the last answer that counts, or until the deadline where it has fewer answers than it wants; a
    failure is noticed at once where there is no deadline.
    """

    systems: Systems
    seed: int
    wanted: int | None = None

    def __call__(self, asked: NDArray[np.int64], round: int, takes: NDArray[np.float64]) -> Answered:
        """takes: the seconds that each of those asked would take, [S]."""
        systems = self.systems
        failed = np.zeros(len(asked), np.bool_)
        if systems.dropout > 0.0:
            failed = randomness.uniform(self.seed, asked, round, "dropout")[:, 0] < systems.dropout
        deadline = systems.deadline_seconds
        counts = ~failed if deadline is None else ~failed & (takes <= deadline)
        wanted = len(asked) if self.wanted is None or systems.over_selection == 0 else min(self.wanted, len(asked))
        if counts.sum() > wanted:
            lot = randomness.uniform(self.seed, asked, round, "equally fast")[:, 0]
            order = np.lexsort((lot, takes, ~counts))
            counts = np.zeros_like(counts)
            counts[order[:wanted]] = True
        if deadline is not None and counts.sum() < wanted:
            return Answered(failed, counts, deadline)
        return Answered(failed, counts, float(takes[counts].max()) if counts.any() else float(takes.max(initial=0.0)))

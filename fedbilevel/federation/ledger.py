"""The ledger: the one record of what a federation has sent and how long that would have taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbilevel.federation.channel import Traffic
from fedbilevel.federation.messages import Operation
from fedbilevel.federation.participation import Population
from fedbilevel.federation.systems import BatchSize, Systems


@dataclass
class Ledger:
    """Totals since the start of a run.

    Counted per client, as a real federation would send it, whatever the simulator moves: `messages` one per client and
    direction, `vectors` and `bytes` the payload of the vectors (numel x itemsize; scalars and framing are not counted).
    `gradient_evaluations` are the gradients of single examples that all clients have computed, a product counted twice.
    """

    rounds: int = 0
    messages: int = 0
    vectors_down: int = 0
    vectors_up: int = 0
    downlink_bytes: int = 0
    uplink_bytes: int = 0
    simulated_seconds: float = 0.0
    gradient_evaluations: int = 0

    def totals(self) -> dict[str, int | float]:
        """Every total by name."""
        return asdict(self)

    def communication(self) -> dict[str, int | float]:
        """Every total but the clients' own work."""
        return {name: value for name, value in self.totals().items() if name != "gradient_evaluations"}

    def enter(self, down: Traffic, up: Traffic, seconds: float, gradients: float) -> None:
        """Enter one round."""
        self.rounds += 1
        self.messages += len(down.bytes) + len(up.bytes)
        self.vectors_down += down.vectors
        self.vectors_up += up.vectors
        self.downlink_bytes += down.total_bytes
        self.uplink_bytes += up.total_bytes
        self.simulated_seconds += seconds
        self.gradient_evaluations += round(gradients)


@dataclass(frozen=True)
class Clock:
    """The simulated time of a round: the slowest client's transfers and derivatives.

    batch, gradient_batch: minibatch sizes of local steps and of every other derivative.
    """

    population: Population
    systems: Systems
    seed: int
    batch: BatchSize = None
    gradient_batch: BatchSize = None

    def gradients(
        self, clients: NDArray[np.int64], operations: Sequence[Operation], options: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        """How many examples each of these clients differentiates in a round, [S]."""
        examples = np.zeros(len(clients))
        for operation in operations:
            examples += self._examples(operation, options, clients)
        return examples

    def seconds(
        self,
        clients: NDArray[np.int64],
        gradients: NDArray[np.float64],
        down: NDArray[np.float64],
        up: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """How long each of these clients takes for a round with so many examples, and bytes down and up, [S]."""
        return self.systems.seconds(self.seed, clients, down, up, gradients)

    def _examples(
        self, operation: Operation, options: Mapping[str, Any], clients: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """How many examples each client differentiates, gradients counted once and products twice."""
        work, population = operation.passes(options), self.population
        if work.of_task:
            support, query = population.task_sizes or (0, 0)
            return np.full(len(clients), support * work.lower + query * work.upper)
        lower, upper = population.lower_sizes[clients], population.upper_sizes[clients]
        batch = None if work.whole else self.gradient_batch if work.steps is None else self.batch
        if batch is not None:
            lower, upper = np.minimum(lower, batch), np.minimum(upper, batch)
        seen = np.asarray(lower * work.lower + upper * work.upper, dtype=np.float64)
        if work.steps is None:
            return seen
        return seen * population.local_steps(work.steps, self.seed, clients, self.batch, work.epochs_of)

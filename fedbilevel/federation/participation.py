"""Who takes part: the population of clients, who of them is there, and who is sampled for an outer iteration."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbilevel import randomness
from fedbilevel.blocks import Blocks
from fedbilevel.federation.systems import BatchSize, LocalSteps, Systems, local_steps
from fedbilevel.problem import ClientData


@dataclass(frozen=True)
class Population:
    """What the server knows of its clients: weights p_i and numbers of examples, shape [m] each.

    task_sizes: where the lower level is local, the examples of a task's support and query set; blocks: where every
    client has a block of x to itself.
    """

    weights: NDArray[np.float64]
    lower_sizes: NDArray[np.int64]
    upper_sizes: NDArray[np.int64]
    task_sizes: tuple[int, int] | None = None
    blocks: Blocks | None = None

    @classmethod
    def of(cls, clients: ClientData, task_sizes: tuple[int, int] | None = None) -> Population:
        """Return the population that owns this data."""
        return cls(clients.weights, clients.lower.sizes, clients.upper.sizes, task_sizes, clients.blocks)

    def __len__(self) -> int:
        return len(self.weights)

    def local_steps(
        self, spec: LocalSteps, seed: int, clients: NDArray[np.int64], batch: BatchSize, level: str = "lower"
    ) -> NDArray[np.int64]:
        """tau_i of some clients, [S]; epochs count a client's examples of the level named."""
        sizes = self.lower_sizes if level == "lower" else self.upper_sizes
        return local_steps(spec, seed, clients, sizes[clients], batch)


@dataclass(frozen=True)
class Participation:
    """The clients of an iteration: all who are there, or a sample of `clients_per_round` without replacement."""

    population: Population
    systems: Systems
    seed: int
    clients_per_round: int | None = None

    @functools.cached_property
    def everyone(self) -> NDArray[np.int64]:
        """Every registered client, [m]."""
        return np.arange(len(self.population))

    @property
    def asked(self) -> int | None:
        """How many clients are asked in a round; None: all who are there."""
        size = self.clients_per_round
        return None if size is None else size + self.systems.over_selection

    @property
    def expected(self) -> float:
        """How many answers a round has in the mean."""
        m, systems = len(self.population), self.systems
        asked = m * systems.availability
        if self.asked is not None:
            asked = asked * min(self.asked / m, 1.0) if systems.sampling == "poisson" else min(self.asked, asked)
        answers = asked * (1.0 - systems.dropout)
        return answers if self.clients_per_round is None else min(answers, self.clients_per_round)

    def sample(self, iteration: int, purpose: str = "", attempt: int = 0) -> NDArray[np.int64]:
        """Return the set S of an iteration, sorted; a `purpose` of its own gives an independent set.

        Clients that are not available are not asked. When nobody is available the server waits and asks again. A
        further `attempt` at an iteration, in which nobody answered, draws anew. Drawn one by one (Poisson), S may be
        empty.
        """
        wait, present = 0, self.everyone
        while self.systems.availability < 1.0:
            there = self.systems.available(self.seed, self.everyone, iteration, attempt + wait)
            present = np.flatnonzero(there)
            if len(present):
                break
            wait += 1
        size = self.asked
        if size is None:
            return present
        again = f"{purpose} {attempt}" if attempt else purpose
        if self.systems.sampling == "poisson":
            drawn = randomness.uniform(self.seed, present, iteration, f"poisson {again}")[:, 0]
            return np.asarray(present[drawn < size / len(self.population)])
        if size >= len(present):
            return present
        draw = randomness.generator(self.seed, randomness.SERVER, iteration, f"sampling {again}")
        chosen = draw.choice(len(present), size=size, replace=False, shuffle=False)
        return np.asarray(present[np.sort(chosen)])

"""The examples that some clients hold, and which of them a derivative averages over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.blocks import OWN, Blocks
from fedbilevel.derivatives import Level
from fedbilevel.federation.systems import BatchSize
from fedbilevel.problem import Examples, Problem, Ragged


@dataclass(frozen=True)
class Rows:
    """Which examples a derivative averages over.

    index [S, b] points into the level's examples, weights [S, b] sum to 1 along a row (padding weighs 0); a pooled
    cohort has one flat row, index [n] and weights [n]. Without an index all examples of the level are meant.
    """

    index: Tensor | None
    weights: Tensor


@dataclass(frozen=True)
class Batch:
    """One local step: examples of each level, and which clients still make a step (None: all; else [S, 1])."""

    rows: dict[Level, Rows]
    active: Tensor | None = None

    def keep(self, step: Tensor) -> Tensor:
        """Return the step of the clients that are still active, zero for the others."""
        return step if self.active is None else step * self.active


@dataclass(frozen=True)
class Draw:
    """What keys the minibatches of one operation, and their sizes."""

    seed: int
    round: int
    purpose: str
    batch: BatchSize = None
    gradient_batch: BatchSize = None


@dataclass
class Held:
    """The examples of some clients on both levels, and what was prepared from them for the latest x (and y)."""

    problem: Problem
    clients: NDArray[np.int64]
    weights: NDArray[np.float64]
    levels: dict[Level, Ragged]
    blocks: Blocks | None = None
    prepared: dict[tuple[Level, str], tuple[tuple[object, ...], Examples]] = field(default_factory=dict)
    full_rows: dict[Level, Rows] = field(default_factory=dict)
    pooled_rows: dict[Level, Rows] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, clients: NDArray[np.int64]) -> Held:
        """Gather the examples of the clients named, in that order.

        Where x falls into blocks of the clients' own, places in x become places in the blocks of these clients.
        """
        data, blocks = problem.clients, problem.clients.blocks
        lower, upper = data.each(lambda level: level.take(clients))
        levels: dict[Level, Ragged] = {"lower": lower, "upper": upper}
        if blocks is None:
            return cls(problem, clients, data.weights[clients], levels)
        within = blocks.of_clients(clients)
        for level, held in levels.items():
            if isinstance(held.values, Mapping) and OWN in held.values:
                shift = np.repeat(within.offsets[:-1] - blocks.offsets[clients], held.sizes)
                own = held.values[OWN]
                moved = own + torch.from_numpy(shift).to(own.device) if bool(shift.any()) else own
                levels[level] = Ragged({**held.values, OWN: moved}, held.offsets)
        return cls(problem, clients, data.weights[clients], levels, within)

"""An estimate of the peak memory of a run, from the sizes of its problem and the way its clients work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedbilevel import derivatives
from fedbilevel.federation import Population
from fedbilevel.problem import Examples, Problem, leaves
from fedbilevel.tasks import is_local
from server.options import Options

_VECTORS = 12
"""Copies of x and y at one time: the server's state, the message, the node's copies, and float64 sums."""
_ROWS = 6
"""Copies of each client's own x or y in a local step: the iterate, two gradients, their difference, temporaries."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes beyond the clients' data, which are loaded already.

    gathered: the sampled clients' examples; prepared: what `prepare` makes of examples, with as much again for its
    intermediate results; vectors: x, y and their copies; rows: one x or y per client.
    """

    gathered: float
    prepared: float
    vectors: float
    rows: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.gathered + self.prepared + self.vectors + self.rows


def estimate(
    problem: Problem, start: tuple[Tensor, Tensor], options: Options, clients_per_round: int | None
) -> Estimate:
    """Estimate the peak of a run of one worker that evaluates on all clients."""
    x, y = start
    population = Population.of(problem.clients)
    m = len(population)
    sampled = m if clients_per_round is None else min(clients_per_round, m)
    data = sum(_bytes(level.values) for level in (problem.clients.lower, problem.clients.upper))
    everyone = float(population.lower_sizes.sum() + population.upper_sizes.sum())
    rows = 0.0
    if is_local(problem):
        states = 1 + int(getattr(options, "local_steps", 1))
        rows += states * sampled * int(getattr(options, "tasks_per_client", 1)) * x.numel() * x.element_size()
        options = Options()
    local_x = getattr(options, "upper_local_steps", 1) not in (0, 1)
    local_y = getattr(options, "local_steps", 1) != 1
    if local_x or (local_y and not hasattr(options, "upper_local_steps")):
        rows += _ROWS * sampled * x.numel() * x.element_size()
    if local_y:
        rows += _ROWS * sampled * y.numel() * y.element_size()
    vectors = _VECTORS * (x.numel() * max(x.element_size(), 8) + y.numel() * max(y.element_size(), 8))
    return Estimate(
        gathered=data * sampled / m if sampled < m else 0.0,
        prepared=2.0 * everyone * _prepared_bytes(problem, x),
        vectors=float(vectors),
        rows=rows,
    )


def _bytes(examples: Examples) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in leaves(examples)))


def _prepared_bytes(problem: Problem, x: Tensor) -> float:
    """Bytes that one example takes once it is prepared; none where the problem prepares nothing."""
    if not hasattr(problem, "prepare"):
        return 0.0
    one = problem.clients.lower.take(np.array([0]))
    with torch.no_grad():
        return _bytes(derivatives.prepare(problem, x, one.values)) / float(one.sizes[0])

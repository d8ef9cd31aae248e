"""What keys a draw of minibatches (seed, round, operation, level, client) and of tasks (seed, round, client)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.cohort import Cohort
from clients.held import Draw, Held
from fedbilevel import ClientData
from fedbilevel.problem import Ragged
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from fedbilevel.tasks import Tasks

M, N, B, ROUNDS = 4, 6, 2, 300
CHANCE = 1 / 15
"""Two independent draws of 2 out of 6 examples are the same pair in one of 15 rounds."""


class Alike:
    """Four clients with six examples on each level; the gradient of <e, y> or <e, x> shows which were drawn."""

    def __init__(self) -> None:
        rows = [torch.eye(N, dtype=torch.float64) for _ in range(M)]
        self.clients = ClientData(rows, rows)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ y

    def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ x

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


def drawn(kind: str, seed: int, purpose: str) -> list[np.ndarray]:
    """Of each level and client the two examples that a round's draw holds, [rounds, 2]."""
    problem = Alike()
    held, zeros = Held.of(problem, np.arange(M)), problem.initial(torch.Generator())
    found = np.zeros((2, M, ROUNDS, B), dtype=np.int64)
    for round in range(ROUNDS):
        size = {"batch": B} if kind == "walk" else {"gradient_batch": B}
        cohort = Cohort(held, Draw(seed, round, purpose, **size), pooled=False)
        batch = next(iter(cohort.batches(1, torch.float64, "lower", "upper"))) if kind == "walk" else None
        for level, gradient in enumerate((cohort.lower_gradient, cohort.upper_gradient_x)):
            found[level, :, round] = gradient(*zeros, batch).nonzero()[:, 1].view(M, B)
    return list(found.reshape(2 * M, ROUNDS, B))


@pytest.mark.parametrize("kind", ["walk", "own"])
def test_seeds_operations_levels_and_clients_draw_independently(kind: str) -> None:
    """Any two of 24 streams coincide as often as chance has it, in 20 of 300 rounds, to five deviations."""
    streams = [stream for key in ((1, "a"), (2, "a"), (1, "b")) for stream in drawn(kind, *key)]
    deviation = (ROUNDS * CHANCE * (1 - CHANCE)) ** 0.5
    for one, other in combinations(streams, 2):
        assert abs(int((one == other).all(1).sum()) - ROUNDS * CHANCE) < 5 * deviation
    for stream in streams:
        assert (stream[1:] == stream[:-1]).all(1).mean() < 3 * CHANCE  # nor is a round that of the one before
    assert all(np.array_equal(a, b) for a, b in zip(streams[: 2 * M], drawn(kind, 1, "a"), strict=True))


class Telling(QuadraticTasks):
    """Keeps the numbers that it makes tasks of, [clients, tasks, draws]."""

    draws = 3

    def tasks(self, held: Ragged, draws: np.ndarray) -> Tasks:
        self.told = draws
        return super().tasks(held, draws)


def test_tasks_are_keyed_by_seed_client_and_round_and_are_the_same_for_every_operation() -> None:
    problem = Telling(clients=M)
    x, _ = problem.initial(torch.Generator())

    def numbers(clients: list[int], seed: int, round: int, purpose: str = "a", *, fixed: bool = False) -> np.ndarray:
        cohort = Cohort(Held.of(problem, np.array(clients)), Draw(seed, round, purpose), pooled=False)
        cohort.tasks(x, 5, fixed=fixed)
        return problem.told

    everyone = list(range(M))
    first = numbers(everyone, 1, 7)
    assert first.shape == (M, 5, 3)
    different = [first, numbers(everyone, 2, 7), numbers(everyone, 1, 8), numbers(everyone, 1, 7, fixed=True)]
    assert len(np.unique(np.stack(different))) == 4 * M * 5 * 3
    assert np.array_equal(numbers(everyone, 1, 7, "b"), first)
    assert np.array_equal(numbers([3, 1], 1, 7), first[[3, 1]])
    assert np.array_equal(numbers(everyone, 1, 8, fixed=True), different[3])

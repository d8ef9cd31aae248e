"""Processes that are not pinned: any of them may answer for any node."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import make_app, node_of_setup
from clients.node import Node, Setting
from clients.operations.oracles import lower_gradient, neumann_factor
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problems.bilevel.quadratic import Quadratic
from server.grids.exchange import GridExchange, Placement
from server.grids.local import LocalGrid
from tests.processes.app_runs import assert_same_history, run_app

# --- processes that are not pinned: any of them may answer for any node ---


class Unpinned:
    """Several processes' worth of the ClientApp: each message goes to the next in `order`, the Context with it."""

    def __init__(self, node_for: Callable[[], Callable[[str], Node]], processes: int, order: Iterator[int]) -> None:
        self.apps, self.order = [make_app(node_for()) for _ in range(processes)], order

    def __call__(self, message: Message, context: Context) -> Message:
        return self.apps[next(self.order)](message, context)

    def grid(self, nodes: int) -> LocalGrid:
        return LocalGrid(cast(ClientApp, self), nodes)


def nodes_of_a_process() -> Callable[[str], Node]:
    """A `node_of_setup` with a cache of its own, as another process has."""
    return functools.lru_cache(maxsize=1)(node_of_setup.__wrapped__)


def in_turn(processes: int) -> Iterator[int]:
    return itertools.cycle(range(processes))


def at_random(processes: int) -> Iterator[int]:
    draw = np.random.default_rng(0)
    while True:
        yield int(draw.integers(processes))


@pytest.mark.parametrize(("nodes", "order"), [(3, in_turn), (5, at_random)])
def test_any_process_answers_for_any_node(
    partial_run: tuple[Path, Path], tmp_path: Path, nodes: int, order: Callable[[int], Iterator[int]]
) -> None:
    """Sampled clients leave nodes without messages for iterations, and then another process answers for them."""
    config, expected = partial_run
    processes = Unpinned(nodes_of_a_process, 2, order(2))
    run_app(processes.grid(nodes), config=str(config), out=str(tmp_path / "flower"))
    assert_same_history(tmp_path / "flower", expected, 1e-12)


class CheckedRun:
    """Rounds of one run on a quadratic, each held against the problem's own matrices."""

    def __init__(self, placement: Placement, problem: Quadratic, seed: int) -> None:
        exchange, population = GridExchange(placement, ""), Population.of(problem.clients)
        self.problem, self.fed = problem, Federation(exchange, population, seed=seed, clients_per_round=3)
        self.draw = torch.Generator().manual_seed(seed)

    def begin(self, iteration: int) -> None:
        self.fed.begin(iteration)
        self.x, self.y = (torch.randn(d, generator=self.draw).double() for d in (5, 8))

    def round(self, number: int) -> None:
        """Over a new sample: the mean of r - H_i r / 2 and of A_i y - B_i x - b_i, all weights being equal."""
        self.fed.resample(f"sample {number}")
        x, y, r = self.x, self.y, torch.randn(8, generator=self.draw).double()
        factor, gradient = self.fed.mean(neumann_factor, lower_gradient, x=x, y=y, r=r, neumann_step=0.5)
        examples = self.problem.clients.lower.take(self.fed.sampled).values
        A, B, b = examples["A"], examples["B"], examples["b"]
        torch.testing.assert_close(factor, r - 0.5 * A.mean(0) @ r)
        torch.testing.assert_close(gradient, (A @ y - B @ x - b).mean(0))


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_of_the_same_processes_never_see_each_others_vectors(processes: int) -> None:
    """Two Flower runs by turns, and each with a second algorithm after the first, which counts vectors and iterations
    from 0 again: the setup is the same for all, so only the session tells their vectors apart.
    """
    problem = Quadratic(clients=6, examples=2, weights="uniform")
    node = Node(problem, Setting())
    shared = Unpinned(lambda: lambda setup: node, processes, at_random(processes))
    placements = [Placement(shared.grid(3), 6) for _ in range(2)]
    for algorithm in range(2):
        runs = [CheckedRun(placement, problem, 10 * algorithm + j) for j, placement in enumerate(placements)]
        for iteration in range(3):
            for run in runs:
                run.begin(iteration if algorithm == 0 else 2)
            for number in range(4):
                for run in runs:
                    run.round(number)


def test_two_sessions_by_turns_on_one_grid_are_sent_their_vectors_again() -> None:
    """A node holds the vectors of one session: the other's come again, and no number is wrong."""
    problem = Quadratic(clients=6, examples=2, weights="uniform")
    node = Node(problem, Setting())
    placement = Placement(LocalGrid(make_app(lambda setup: node), 2), 6)
    runs = [CheckedRun(placement, problem, seed) for seed in range(2)]
    for run in runs:
        run.begin(0)
        run.round(0)
    for number in range(4):
        for run in runs:
            run.round(number)  # the first time over those whom the session asked before

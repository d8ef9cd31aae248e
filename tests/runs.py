"""Runs that tests look into: every iterate, the whole state, the sampled sets, a method's meta-gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.methods import methods
from clients.node import Setting
from clients.tasks import TaskBatch
from fedbilevel import Problem, randomness, simulate
from fedbilevel.federation.messages import Reply, Request
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problem import map_examples
from fedbilevel.tasks import Tasks
from server.grids.engines import in_process
from server.kit.algorithm import find
from server.running.run import Result


def traced(problem: Problem, name: str, iterations: int, **options: Any) -> Result:
    """A run in float64 that keeps every iterate, and evaluates at both ends only unless told otherwise."""
    options = {"dtype": "float64", "trace": True, "evaluate_every": 10**9, **options}
    return simulate(problem, name, iterations=iterations, **options)


def start(problem: Problem, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The start of a run with this seed."""
    return problem.initial(torch.Generator().manual_seed(seed))


def directions(result: Result) -> list[Tensor]:
    """The hypergradients along which x moved."""
    assert result.trace is not None
    found = [entry.hypergradient for entry in result.trace]
    return [h for h in found if h is not None]


def last_state(problem: Problem, name: str, x: Tensor, y: Tensor, iterations: int = 1, **options: Any) -> Any:
    """The whole state of an algorithm, with the vectors that a result does not show."""
    fed = Federation(in_process(problem, Setting()), Population.of(problem.clients))
    algorithm = find(name).make(options)
    state = algorithm.init(x, y)
    for k in range(iterations):
        fed.begin(k)
        state = algorithm.step(state, fed)
    return state


def silent(problem: Problem, seed: int = 0, **settings: Any) -> Federation:
    """A federation that samples and draws, and whose clients cannot be asked."""

    def nobody(request: Request) -> list[Reply]:
        raise AssertionError(request)

    return Federation(nobody, Population.of(problem.clients), seed=seed, **settings)


def sampled_sets(problem: Problem, size: int | None, iterations: int, seed: int) -> list[NDArray[np.int64]]:
    """The sets that a run with this seed samples."""
    fed = silent(problem, seed, clients_per_round=size)
    sets = []
    for k in range(iterations):
        fed.begin(k)
        sets.append(fed.sampled)
    return sets


# ---- tasks ----

Loss = Callable[[Tensor], Tensor]


def drawn(problem: Any, clients: Any, round: int, count: int, *, seed: int = 0, fixed: bool = False) -> Tasks:
    """The tasks that these clients draw in a round, client-major."""
    clients = np.asarray(clients)
    round, purpose = (0, "tasks to evaluate") if fixed else (round, "tasks")
    numbers = randomness.uniform(seed, clients, round, purpose, count * problem.draws)
    return problem.tasks(problem.clients.lower.take(clients), numbers.reshape(len(clients), count, problem.draws))


def tasks_of(problem: Any, count: int, *, seed: int = 0) -> tuple[TaskBatch, Tensor]:
    """`count` tasks of every client as one batch, and a start."""
    x, _ = start(problem, seed)
    return TaskBatch(problem, drawn(problem, range(len(problem.clients)), 0, count, seed=seed), x), x


def unseen(problem: Any, count: int, dtype: torch.dtype = torch.float64) -> TaskBatch:
    """`count` of the problem's test tasks as one batch."""
    made = problem.test_tasks(count)
    parts = (map_examples(lambda t: t.to(dtype) if t.is_floating_point() else t, p) for p in (made.support, made.query))
    return TaskBatch(problem, Tasks(*parts), torch.zeros(1, dtype=dtype))


def settings(name: str, **options: Any) -> dict[str, Any]:
    """What an algorithm sends to its clients' method, with its defaults for the options that are not given."""
    sent: dict[str, Any] = find(name).parse(options).settings()  # type: ignore[attr-defined]  # of a local lower level
    return sent


def meta_gradient(name: str, tasks: TaskBatch, x: Tensor, **options: Any) -> Tensor:
    """A method's meta-gradient of every task, [B, d]."""
    with torch.no_grad():
        return methods()[name].meta_gradient(tasks, x, settings(name, **options))[0]


def of_task(tasks: TaskBatch, b: int) -> tuple[Loss, Loss]:
    """L and f of one task, as the problem defines them."""
    problem: Any = tasks.problem
    support, query = (map_examples(lambda t: t[b], tasks.examples[level]) for level in ("lower", "upper"))
    return (lambda y: problem.lower(y, y, support).mean()), (lambda y: problem.upper(y, y, query).mean())

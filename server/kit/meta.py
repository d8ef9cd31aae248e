"""What the algorithms with a local lower level share: one round per outer iteration, the x step, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from clients.methods import methods
from clients.methods.method import Adapted, Method
from clients.operations.adaptation import adapted_losses, meta_gradient
from clients.tasks import TaskBatch
from fedbilevel.federation.rounds import Federation
from fedbilevel.machine.device import where
from fedbilevel.problem import Problem
from fedbilevel.tasks import TaskProblem, Tasks, is_local, is_personal
from server.kit import options
from server.kit.algorithm import Algorithm, State
from server.kit.measures import by_client, judge, summary

EVALUATION_CHUNK = 100
"""Test tasks that are adapted at one time."""


SolveDtype = Annotated[
    Literal["float64", "run"],
    Field(description="precision of the small systems of a task: float64, or that of the run (run.dtype)"),
]


class TaskOptions(options.UpperOptions):
    """What the server's side of a local lower level takes."""

    tasks_per_client: Annotated[options.Count, Field(description="tasks of each client and round")] = 4
    evaluation_tasks: Annotated[options.Count, Field(description="unseen tasks of an evaluation")] = 600

    def settings(self) -> dict[str, Any]:
        """What the clients' method reads of these."""
        server = {*options.UpperOptions.model_fields, "tasks_per_client", "evaluation_tasks"}
        return {name: value for name, value in self.model_dump().items() if name not in server}

    def kept(self) -> int:
        """Points y that a client keeps per task beyond a constant number, to estimate memory."""
        return 0

    def held(self, tasks: int, vector: float, support: float, query: float) -> float:
        """Bytes that the meta-gradients of so many tasks hold beyond a constant number of vectors each.

        vector: bytes of one y, with what a closed form keeps of a point where it is kept; support, query: bytes that
        the loss of a task keeps to be differentiated. A Hessian product keeps them twice.
        """
        return tasks * (self.kept() * vector + max(2 * support, query))

    def held_to_judge(self, tasks: int, vector: float, support: float, query: float) -> float:
        """The same of an evaluation, which adapts and takes losses alone."""
        return tasks * max(support, query)


class MetaOptions(TaskOptions):
    """Options of the algorithms whose lower level is local."""

    lower_step: options.LowerStep = 0.1
    local_steps: Annotated[options.Count, Field(description="K: inner steps of a client on a task")] = 5


@dataclass(frozen=True)
class MetaState(State):
    """report: what the clients' method told of the last round, per name."""

    report: Mapping[str, float] | None = None


def meta_algorithm(name: str, o: TaskOptions, start: Callable[[Tensor], Tensor] = lambda x: x) -> Algorithm[MetaState]:
    """The algorithm around a clients' method: x down, the meta-gradient up, x -= alpha * agg; one round.

    start: from the problem's initialisation to the x of this method.
    """
    method, settings = methods()[name], o.settings()

    def init(x: Tensor, y: Tensor) -> MetaState:
        return MetaState(start(x), y)

    def step(state: MetaState, fed: Federation) -> MetaState:
        h, told = fed.mean(meta_gradient, x=state.x, method=name, settings=settings, tasks=o.tasks_per_client)
        report = dict(zip(method.reports, told.tolist(), strict=True))
        return replace(state, x=state.x - o.upper_step * h, hypergradient=h, report=report)

    def evaluate(state: MetaState, problem: Problem, fed: Federation) -> dict[str, float]:
        return evaluated(name, settings, o, state.x, problem, fed) | dict(state.report or {})

    return Algorithm(init, step, lambda index: 1, evaluate)


def evaluated(
    name: str, settings: Mapping[str, Any], o: TaskOptions, x: Tensor, problem: Problem, fed: Federation
) -> dict[str, float]:
    """Losses of the clients on a fixed set of their tasks, and measures on unseen tasks, both after adaptation."""
    assert is_local(problem)
    method = methods()[name]
    upper, lower = fed.measure(adapted_losses, x=x, method=name, settings=settings, tasks=o.tasks_per_client).tolist()
    measures = {"upper_loss": upper, "lower_loss": lower}
    x = x.to(where(problem))
    unseen = problem.test_tasks(o.evaluation_tasks)
    with torch.no_grad():
        seen = [judge(batch, found) for batch, found in adapted(method, settings, x, problem, unseen)]
    return measures | (by_client(seen, problem.tested(o.evaluation_tasks)) if is_personal(problem) else summary(seen))


def adapted(
    method: Method, settings: Mapping[str, Any], x: Tensor, problem: TaskProblem, tasks: Tasks
) -> Iterator[tuple[TaskBatch, Adapted]]:
    """The tasks, some at a time, and what the method with its x makes of them; a task's place keys its own draws."""
    for k, part in enumerate(tasks.chunks(EVALUATION_CHUNK)):
        places = k * EVALUATION_CHUNK + np.arange(len(part), dtype=np.uint64)
        batch = TaskBatch(problem, part, method.parameters(x), places)
        yield batch, method.adapt(batch, x, settings)

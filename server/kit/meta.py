"""What the algorithms with a local lower level share: one round per outer iteration, the x step, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clients.methods import methods
from clients.operations.adaptation import adapted_losses, meta_gradient
from clients.tasks import TaskBatch
from fedbilevel.federation.rounds import Federation
from fedbilevel.machine.device import where
from fedbilevel.problem import Problem
from fedbilevel.tasks import is_local
from server.kit import options
from server.kit.algorithm import Algorithm, State
from server.kit.measures import judge, summary

EVALUATION_CHUNK = 100
"""Test tasks that are adapted at one time."""


class TaskOptions(options.Options):
    """What the server's side of a local lower level takes."""

    upper_step: options.UpperStep = 0.1
    tasks_per_client: Annotated[options.Count, Field(description="tasks of each client and round")] = 4
    upper_optimiser: Annotated[
        Literal["sgd", "adam"], Field(description="how the server steps along the mean meta-gradient")
    ] = "sgd"
    upper_halving: Annotated[
        options.Count | None,
        Field(description="outer iterations k in which the server's step halves, alpha 2^(-t/k); default: it stays"),
    ] = None
    evaluation_tasks: Annotated[options.Count, Field(description="unseen tasks of an evaluation")] = 600

    def settings(self) -> dict[str, Any]:
        """What the clients' method reads of these."""
        server = ("upper_step", "tasks_per_client", "upper_optimiser", "upper_halving", "evaluation_tasks")
        return {name: value for name, value in self.model_dump().items() if name not in server}

    def kept(self) -> int:
        """Vectors of the size of y that a client keeps per task beyond a constant number, to estimate memory."""
        return 0


class MetaOptions(TaskOptions):
    """Options of the algorithms whose lower level is local."""

    lower_step: options.LowerStep = 0.1
    local_steps: Annotated[options.Count, Field(description="K: inner steps of a client on a task")] = 5


@dataclass(frozen=True)
class MetaState(State):
    """first, second: the moments of Adam; steps: how many were made.

    report: what the clients' method told of the last round, per name.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    steps: int = 0
    report: Mapping[str, float] | None = None


def moved(state: MetaState, h: Tensor, o: TaskOptions) -> MetaState:
    """The step `x - alpha_t h`, or a step of Adam (Kingma & Ba, 2015) along h on the server.

    Ours, though a test holds it against `torch.optim.Adam`: that one's moments are changed in place, where a state is
    frozen, and its last bits differ, which would change every history there is.
    """
    alpha = o.upper_step * (1.0 if o.upper_halving is None else 2.0 ** (-state.steps / o.upper_halving))
    t = state.steps + 1
    if o.upper_optimiser == "sgd":
        return replace(state, x=state.x - alpha * h, hypergradient=h, steps=t)
    first = 0.1 * h if state.first is None else 0.9 * state.first + 0.1 * h
    second = 0.001 * h * h if state.second is None else 0.999 * state.second + 0.001 * h * h
    direction = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return replace(state, x=state.x - alpha * direction, hypergradient=h, first=first, second=second, steps=t)


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
        return replace(moved(state, h, o), report=report)

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
    seen = []
    x = x.to(where(problem))
    with torch.no_grad():
        for tasks in problem.test_tasks(o.evaluation_tasks).chunks(EVALUATION_CHUNK):
            batch = TaskBatch(problem, tasks, method.parameters(x))
            seen.append(judge(batch, method.adapt(batch, x, settings)))
    return measures | summary(seen)

"""Problems with a local lower level: every client adapts parameters of its own to tasks of its own (few-shot learning).

A task is a support set, on which y is adapted from the shared x, and a query set, on which the adapted y is judged:
min_x sum_i p_i E_tasks f(y*(x)), y*(x) from x and the support loss L. The losses are those of `Problem`: `lower(x, y,
support)` is L and `upper(x, y, query)` is f, per example, of one task and its adapted parameters y [dy].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.problem import Examples, Problem, Ragged, leaves, map_examples


@dataclass(frozen=True)
class Tasks:
    """B tasks as one batch: every tensor of `support` is [B, n, ...], of `query` [B, q, ...]."""

    support: Examples
    query: Examples

    def __len__(self) -> int:
        return int(leaves(self.support)[0].shape[0])

    def __getitem__(self, rows: slice) -> Tasks:
        return Tasks(*(map_examples(lambda t: t[rows], part) for part in (self.support, self.query)))

    def chunks(self, size: int) -> Iterator[Tasks]:
        """The same tasks, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@runtime_checkable
class TaskProblem(Problem, Protocol):
    """A `Problem` whose lower level is local. `initial` returns (x0, y0), both the shared initialisation [d].

    draws: how many random numbers determine a task; task_sizes: examples of its support and of its query set; kind:
    what `outputs` are, logits [n, classes], predictions [n], or nothing that could be judged.

    Where the network is a representation and a linear softmax head, the head's weight [classes, width] and bias
    [classes] are the last entries of its parameters, and `features(y, inputs)` computes the representation [n, width]
    of examples `{"input": ..., "label": ...}` with `classes` labels; its absence says that there is no such head.

    Optional: `outputs_jacobian(y, examples, rows)`, products with the Jacobian of `outputs` in closed form, for the
    examples [B, n, ...] of B tasks at common parameters y [dy] (`clients.jacobian.Jacobian`).
    """

    draws: int
    task_sizes: tuple[int, int]
    kind: Literal["classification", "regression"] | None

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        """Make S * T tasks, client-major, from the lower examples of S clients and uniform numbers [S, T, draws]."""
        ...

    def test_tasks(self, count: int) -> Tasks:
        """The first `count` of a fixed sequence of tasks that no client ever trains on."""
        ...

    def outputs(self, y: Tensor, examples: Examples) -> Tensor:
        """What the network with parameters y [dy] says of one task's examples: logits or predictions."""
        ...


@dataclass(frozen=True)
class OwnTests:
    """Whose B tasks for testing are, where they are clients' own, who are to be told apart.

    owner [B]: the client, from 0; counted [B, q], bool: the queries that count, where others only fill a row; trained
    [clients], bool: who takes part in training.
    """

    owner: Tensor
    counted: Tensor
    trained: Tensor


@runtime_checkable
class PersonalProblem(TaskProblem, Protocol):
    """A `TaskProblem` of kind "classification" whose tasks for testing are the clients' own."""

    def tested(self, count: int) -> OwnTests:
        """Of `test_tasks(count)`, which may be more than `count` here: all clients have as many."""
        ...


def is_personal(problem: Any) -> TypeGuard[PersonalProblem]:
    """Whether the tasks for testing are the clients' own."""
    return is_local(problem) and callable(getattr(problem, "tested", None))


def loss_of_outputs(problem: TaskProblem, outputs: Tensor, label: Tensor) -> Tensor:
    """What outputs [..., n, classes] or [..., n] cost by the problem's kind, per example [..., n].

    Cross-entropy of logits, or the squared error: for who makes outputs otherwise than by the network at some y.
    """
    if problem.kind == "classification":
        return -outputs.log_softmax(-1).gather(-1, label.unsqueeze(-1)).squeeze(-1)
    return (outputs - label).square()


def is_local(problem: Any) -> TypeGuard[TaskProblem]:
    """Whether the problem's (or its class's) lower level is local."""
    return callable(getattr(problem, "tasks", None))

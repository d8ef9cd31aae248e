"""The problems that tests share: quadratics with a global lower level, and tasks of a few shots."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import ClientData, randomness
from fedbilevel.problem import Ragged, map_examples
from fedbilevel.problems import MinimaxQuadratic, Quadratic
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from fedbilevel.tasks import Tasks
from server.kit.algorithm import find
from tests.reference import Dense

M, DX, DY = 5, 3, 4
"""Clients and dimensions of `quadratic`; M also of `tasks` and `Softmax`."""
WEIGHTS: dict[str, Any] = {"size": "size", "uniform": "uniform", "list": [0.1, 0.5, 1.0, 2.0, 0.7]}

# ---- a global lower level ----


@functools.cache
def quadratic(weights: str = "list") -> Quadratic:
    """Five unlike clients of two to five examples."""
    return Quadratic(clients=M, dim_x=DX, dim_y=DY, examples=(2, 5), weights=WEIGHTS[weights], seed=3)


@functools.cache
def saddle() -> Any:
    """The same clients, weights and dimensions in a game with curvature."""
    return MinimaxQuadratic(clients=M, dim_x=DX, dim_y=DY, examples=(2, 5), weights=WEIGHTS["list"], seed=3)


def problem_for(name: str) -> Any:
    """The problem of an algorithm's kind, where the lower level is not local."""
    return saddle() if find(name).lower == "minimax" else quadratic()


SHAPES: list[dict[str, Any]] = [
    {"clients": 1, "dim_x": 1, "dim_y": 1, "examples": 2, "seed": 1},
    {"clients": 4, "dim_x": 3, "dim_y": 5, "weights": "size", "seed": 2},
    {"clients": 6, "dim_x": 7, "dim_y": 2, "weights": "uniform", "seed": 3},
    {"clients": 3, "dim_x": 4, "dim_y": 4, "weights": [5.0, 1.0, 0.2], "heterogeneity": 3.0, "seed": 4},
]
"""Parameters of `Quadratic`: one client and one dimension, fewer and more x than y, unlike weights."""


def lower_point(problem: Quadratic, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random x and y*(x) by a dense solve."""
    x = torch.randn(problem.dim_x, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.from_numpy(Dense.of(problem).lower_solution(x.numpy()))


def pooled(problem: Quadratic) -> Quadratic:
    """The same losses as those of a single client."""
    one = copy.copy(problem)
    one.clients = problem.clients.pooled()
    return one


class Weighted:
    """x: the logit of a weight for every lower example, which counts a little on the upper level; y: a linear model.

    blocks: whether a client is sent its own weights alone, or all of them.
    """

    l2 = 0.3

    def __init__(self, blocks: bool, weights: str = "list") -> None:
        draw = torch.Generator().manual_seed(11)
        sizes, parts = [3, 1, 4, 2, 5], {"lower": [], "upper": []}  # type: ignore[var-annotated]
        start = 0
        for client, size in enumerate(sizes):
            for level, n in (("lower", size), ("upper", 2 + client % 3)):
                a = torch.randn(n, DY, generator=draw, dtype=torch.float64)
                b = torch.randn(n, generator=draw, dtype=torch.float64) + client
                parts[level].append({"a": a, "b": b, "own": start + torch.arange(n) % size})
            start += size
        own = sizes if blocks else None
        self.dim_x, self.sizes = start, sizes
        self.clients = ClientData(parts["lower"], parts["upper"], WEIGHTS[weights], blocks=own)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0 = torch.randn(self.dim_x, generator=generator, dtype=torch.float64)
        return x0, torch.randn(DY, generator=generator, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        weight = torch.sigmoid(x[examples["own"]])
        return weight * (examples["a"] @ y - examples["b"]) ** 2 / 2 + self.l2 * (y @ y) / 2

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return (1 + torch.tanh(x[examples["own"]]) / 5) * (examples["a"] @ y - examples["b"]) ** 2 / 2

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {"norm": float(x.norm())}


# ---- tasks with quadratic losses ----

DIM = 4


def quadratic_tasks(**parameters: Any) -> QuadraticTasks:
    """Five clients of unequal weights with tasks in `DIM` dimensions."""
    problem = QuadraticTasks(clients=M, dim=DIM, tasks=7, seed=3, **parameters)
    problem.clients = ClientData(problem.clients.lower, problem.clients.upper, WEIGHTS["list"])
    return problem


class Concave(QuadraticTasks):
    """Quadratic tasks less bend/2 |y|^2 on the support set: Hess L = A - bend."""

    bend = 0.0

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return super().lower(x, y, examples) - 0.5 * self.bend * (y @ y)


class Quartic(QuadraticTasks):
    """L' = u + u^3 at u = y - 1."""

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return ((y - 1) ** 2 / 2 + (y - 1) ** 4 / 4).sum().expand(1)


class Linear(QuadraticTasks):
    """L' = slopes y, one slope per coordinate: the flow from x is exp(-slopes T) x."""

    def __init__(self, slopes: list[float]) -> None:
        super().__init__(dim=len(slopes))
        self.slopes = torch.tensor(slopes, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return (0.5 * self.slopes.to(y.dtype) * y * y).sum().expand(1)


# ---- tasks of classes ----

INPUTS, HIDDEN, CLASSES, SHOTS, QUERIES = 3, 4, 3, 2, 3
BODY, HEAD = (INPUTS + 1) * HIDDEN, (HIDDEN + 1) * CLASSES
"""Parameters of `Softmax`: of its representation, and of its head behind it."""


class Softmax:
    """Three-way tasks: a client's inputs, of which a task takes some, under labels of the task's own.

    y: a tanh layer (weights, biases) and a linear softmax head (weights, biases).
    """

    draws = classes = CLASSES
    task_sizes = (SHOTS * CLASSES, QUERIES * CLASSES)
    kind = "classification"

    def __init__(self, clients: int = M, scale: float = 1.0) -> None:
        draw = torch.Generator().manual_seed(5)
        inputs = scale * torch.randn(clients * 30, INPUTS, generator=draw, dtype=torch.float64)
        level = Ragged({"input": inputs}, np.arange(clients + 1) * 30)
        self.clients = ClientData(level, level, WEIGHTS["list"][:clients])

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0 = 0.7 * torch.randn(BODY + HEAD, generator=generator, dtype=torch.float64)
        return x0, x0.clone()

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        per_class = SHOTS + QUERIES
        first = held.offsets[:-1, None, None] + (draws * (30 - per_class)).astype(int)
        index = torch.from_numpy((first[..., None] + np.arange(per_class)).reshape(-1, CLASSES, per_class))
        labels = torch.arange(CLASSES)[None, :, None].expand(index.shape)
        parts = []
        for cut in (slice(None, SHOTS), slice(SHOTS, None)):
            chosen = held.values["input"][index[:, :, cut].flatten(1)]
            parts.append({"input": chosen, "label": labels[:, :, cut].flatten(1)})
        return Tasks(*parts)

    def test_tasks(self, count: int) -> Tasks:
        clients = len(self.clients)
        draws = randomness.uniform(99, np.arange(clients), 0, "test", 4 * CLASSES).reshape(clients, 4, CLASSES)
        return self.tasks(self.clients.lower, draws)[:count]

    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        W, b = y[:BODY].split([INPUTS * HIDDEN, HIDDEN])
        return torch.tanh(inputs @ W.view(INPUTS, HIDDEN) + b)

    def outputs(self, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        V, c = y[BODY:].split([HIDDEN * CLASSES, CLASSES])
        return self.features(y, examples["input"]) @ V.view(CLASSES, HIDDEN).T + c

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        logits = self.outputs(y, examples)
        return torch.logsumexp(logits, -1) - logits.gather(-1, examples["label"][:, None])[:, 0]

    upper = lower

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


def with_horizon(x: Tensor, T: float) -> Tensor:
    """What COMLN carries: the parameters and log T."""
    return torch.cat([x, x.new_tensor([math.log(T)])])


class Head:
    """A softmax head on fixed features, the support set of a task noisy; y = (weights [3, 2], biases [3])."""

    kind = "classification"
    task_sizes = (5, 7)
    draws = 12

    def __init__(self, clients: int = 3, examples: int = 20) -> None:
        draw = torch.Generator().manual_seed(4)

        def pool() -> dict[str, Tensor]:
            inputs = torch.randn(examples, 2, generator=draw, dtype=torch.float64)
            score = inputs @ torch.randn(2, 3, generator=draw, dtype=torch.float64)
            return {"input": inputs, "label": score.argmax(-1)}

        pools = Ragged.join([pool() for _ in range(clients + 1)], "clients")
        self.clients = ClientData(pools.take(np.arange(clients)), pools.take(np.arange(clients)))
        self._unseen = pools.take(np.array([clients]))

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(9, generator=generator, dtype=torch.float64)
        return x, x.clone()

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        rows = held.offsets[:-1, None, None] + (draws * held.sizes[:, None, None]).astype(np.int64)
        rows = rows.reshape(-1, self.draws)
        parts = (torch.from_numpy(rows[:, :5]), torch.from_numpy(rows[:, 5:]))
        return Tasks(*(map_examples(lambda t, at=at: t[at], held.values) for at in parts))

    def test_tasks(self, count: int) -> Tasks:
        return self.tasks(self._unseen, np.random.default_rng(1).random((1, count, self.draws)))

    def outputs(self, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return examples["input"] @ y[:6].view(3, 2).T + y[6:]

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(self.outputs(y, examples), examples["label"], reduction="none")

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return self.lower(x, y, examples)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


class Wavy(Head):
    """The head with a support loss that is not convex."""

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return super().lower(x, y, examples) + 0.5 * torch.cos(2 * y).sum()

"""What a meta-gradient costs: a batch of tasks against a loop over them, and time and peak memory of every method.

The tasks are few-shot ones, 5 classes with 1 support and 15 query images of 14 x 14 each, and a network with a hidden
layer of 64 and a linear softmax head (12,933 parameters); 32 tasks and the methods' own defaults.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.timing import ratio, seconds
from clients.methods import methods
from clients.tasks import TaskBatch
from fedbilevel.machine.peak import peak_memory
from fedbilevel.problem import ClientData, Examples, Ragged
from fedbilevel.tasks import Tasks
from server.kit.algorithm import algorithms
from server.kit.meta import MetaOptions, TaskOptions

TASKS, CLASSES, SHOTS, QUERIES = 32, 5, 1, 15
PIXELS, HIDDEN = 196, 64


class FewShot:
    """Noise under labels: what a task costs does not depend on what is in its images."""

    draws = 1
    classes = CLASSES
    task_sizes = (CLASSES * SHOTS, CLASSES * QUERIES)
    kind: Literal["classification"] = "classification"

    def __init__(self) -> None:
        level = Ragged({"input": torch.zeros(1, PIXELS), "label": torch.zeros(1, dtype=torch.int64)}, np.array([0, 1]))
        self.clients = ClientData(level, level)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Weights of a usual size."""
        hidden = torch.randn(HIDDEN * (PIXELS + 1), generator=generator) / PIXELS**0.5
        x0 = torch.cat([hidden, torch.randn(CLASSES * (HIDDEN + 1), generator=generator) / HIDDEN**0.5])
        return x0, x0.clone()

    def test_tasks(self, count: int) -> Tasks:
        """As many tasks as are asked for."""
        draw = torch.Generator().manual_seed(0)

        def part(per_class: int) -> Examples:
            label = torch.arange(CLASSES).repeat_interleave(per_class).expand(count, -1)
            return {"input": torch.randn(count, CLASSES * per_class, PIXELS, generator=draw), "label": label}

        return Tasks(part(SHOTS), part(QUERIES))

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        """The same, whatever the clients hold."""
        return self.test_tasks(draws.shape[0] * draws.shape[1])

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        W, b, V, c = torch.split(y, [PIXELS * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES])
        return W.view(HIDDEN, PIXELS), b, V.view(CLASSES, HIDDEN), c

    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        """The hidden layer."""
        W, b, _, _ = self._parts(y)
        return torch.relu(inputs @ W.T + b)

    def outputs(self, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """Logits."""
        W, b, V, c = self._parts(y)
        return torch.relu(examples["input"] @ W.T + b) @ V.T + c

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """Cross-entropy."""
        logits = self.outputs(y, examples)
        return torch.logsumexp(logits, -1) - logits.gather(-1, examples["label"][:, None])[:, 0]

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """Cross-entropy."""
        return self.lower(x, y, examples)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing without an adaptation."""
        return {}


def _call(name: str, size: int = TASKS) -> Callable[[], Tensor]:
    """A function that computes the method's mean meta-gradient of all tasks, `size` of them at a time."""
    entry, problem = algorithms("local")[name], FewShot()
    options, start = entry.parse({}), problem.initial(torch.Generator().manual_seed(0))
    assert isinstance(options, TaskOptions)
    x, settings = entry.factory(options).init(*start).x, options.settings()
    chosen = methods()[name]
    tasks = problem.test_tasks(TASKS)
    batches = [TaskBatch(problem, part, chosen.parameters(x)) for part in tasks.chunks(size)]

    def call() -> Tensor:
        with torch.no_grad():
            return sum((chosen.meta_gradient(b, x, settings)[0].sum(0) for b in batches), torch.zeros_like(x)) / TASKS

    return call


def _autograd(steps: int, step: float) -> Callable[[], Tensor]:
    """MAML as it is written for one task after another: torch.autograd through the inner steps, graph and all."""
    problem = FewShot()
    x0, tasks = problem.initial(torch.Generator().manual_seed(0))[0], problem.test_tasks(TASKS)
    sets = (tasks.support, tasks.query)
    parts = [[{key: tensor[b] for key, tensor in part.items()} for part in sets] for b in range(TASKS)]

    def call() -> Tensor:
        total = torch.zeros_like(x0)
        for support, query in parts:
            x = x0.clone().requires_grad_()
            y = x
            for _ in range(steps):
                y = y - step * torch.autograd.grad(problem.lower(x, y, support).mean(), y, create_graph=True)[0]
            total += torch.autograd.grad(problem.upper(x, y, query).mean(), x)[0]
        return total / TASKS

    return call


def _speedup(slow: Callable[[], Tensor], fast: Callable[[], Tensor], repeats: int) -> float:
    """How much faster; medians of runs that alternate, of functions with the same result."""
    assert torch.allclose(slow(), fast(), atol=1e-5)
    return ratio(slow, fast, repeats, warm=0)  # they have just been called


def few_shot_batch_speedup(repeats: int = 9) -> float:
    """MAML's meta-gradient of 32 tasks at once against the same for one task after another."""
    return _speedup(_call("maml", 1), _call("maml"), repeats)


def few_shot_autograd_speedup(repeats: int = 9) -> float:
    """The same against a loop over tasks with torch.autograd through the inner steps, as scripts have it."""
    options = algorithms("local")["maml"].parse({})
    assert isinstance(options, MetaOptions)
    return _speedup(_autograd(options.local_steps, options.lower_step), _call("maml"), repeats)


def meta_gradient_ms(repeats: int = 5) -> dict[str, float]:
    """Milliseconds of a meta-gradient of 32 tasks, per method: medians."""
    found = {}
    for name in algorithms("local"):
        call = _call(name)
        call()
        found[name] = 1e3 * statistics.median(seconds(call) for _ in range(repeats))
    return found


def meta_gradient_peak_mb() -> dict[str, float]:
    """The most memory that a meta-gradient of 32 tasks takes beyond what was there before, per method, in MB.

    Raises BadInput where it cannot be measured.
    """
    return {name: peak_memory(_call(name)) / 1e6 for name in algorithms("local")}


MEASURES: dict[str, Callable[[], float | Mapping[str, float]]] = {
    "few_shot_batch_speedup": few_shot_batch_speedup,
    "few_shot_autograd_speedup": few_shot_autograd_speedup,
    "meta_gradient_ms": meta_gradient_ms,
    "meta_gradient_peak_mb": meta_gradient_peak_mb,
}

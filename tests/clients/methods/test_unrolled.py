"""MAML, first-order MAML and Reptile against closed forms and autograd through the whole path; tasks as one batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from clients.tasks import TaskBatch
from server.kit.algorithm import find
from tests.agreement import relative
from tests.algorithm_table import LOCAL
from tests.algorithm_table.row import Options
from tests.dense_tasks import closed_form
from tests.problem_table import M, Softmax, quadratic_tasks
from tests.runs import meta_gradient, of_task, tasks_of

EXACT = [(name, options) for name, row in LOCAL.items() for options in row.exact]


def by_autograd(tasks: TaskBatch, x: Tensor, steps: int, step: float, truncation: int | None) -> Tensor:
    """The derivative of the query loss after K steps by torch.autograd, one task after another."""
    found = []
    for b in range(len(tasks)):
        L, f = of_task(tasks, b)
        y = leaf = x.clone().requires_grad_()
        for k in range(steps):
            if truncation is not None and k == steps - truncation:
                y = leaf = y.detach().requires_grad_()
            y = y - step * grad(L(y), y, create_graph=True)[0]
        found.append(grad(f(y), leaf)[0])
    return torch.stack(found)


@pytest.mark.parametrize(("name", "options"), EXACT)
def test_meta_gradients_equal_the_closed_form(name: str, options: Options) -> None:
    options = {"lower_step": 0.4, **options}
    tasks, x = tasks_of(quadratic_tasks(), 3)
    assert len(tasks) == 3 * M
    assert relative(meta_gradient(name, tasks, x, **options), closed_form(name, tasks.tasks, x, options)) < 1e-10


@pytest.mark.parametrize("truncation", [None, 1, 4])
def test_maml_equals_autograd_through_the_whole_path(truncation: int | None) -> None:
    tasks, x = tasks_of(Softmax(), 2, seed=1)
    found = meta_gradient("maml", tasks, x, local_steps=6, lower_step=0.5, truncation=truncation)
    assert relative(found, by_autograd(tasks, x, 6, 0.5, truncation)) < 1e-10
    assert relative(meta_gradient("fomaml", tasks, x, local_steps=6, lower_step=0.5), found) > 1e-2


def test_first_order_methods_on_a_network_one_task_after_another() -> None:
    tasks, x = tasks_of(Softmax(), 2, seed=1)
    first, way_back = [], []
    for b in range(len(tasks)):
        L, f = of_task(tasks, b)
        y = x.clone().requires_grad_()
        for _ in range(4):
            y = (y - 0.3 * grad(L(y), y)[0]).detach().requires_grad_()
        way_back.append(x - y.detach())
        first.append(grad(f(y), y)[0])
    options = {"local_steps": 4, "lower_step": 0.3}
    assert relative(meta_gradient("fomaml", tasks, x, **options), torch.stack(first)) < 1e-10
    assert relative(meta_gradient("reptile", tasks, x, **options), torch.stack(way_back)) < 1e-10


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_a_batch_of_tasks_equals_one_task_at_a_time(name: str) -> None:
    tasks, x0 = tasks_of(Softmax(), 3, seed=2)
    x = find(name).make({}).init(x0, x0).x
    together = meta_gradient(name, tasks, x)
    rows = [slice(b, b + 1) for b in range(len(tasks))]
    each = (TaskBatch(tasks.problem, tasks.tasks[row], tasks.x, tasks.words[row]) for row in rows)
    alone = torch.cat([meta_gradient(name, task, x) for task in each])
    assert together.shape == (3 * M, len(x))
    assert relative(together, alone) < 1e-9

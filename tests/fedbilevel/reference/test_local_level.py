"""Dense solutions of quadratic tasks against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedbilevel.problems.tasks.quadratic_adaptation import QuadraticAdaptation
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from fedbilevel.reference.local_level import DenseTasks


@pytest.mark.parametrize("time", [0.5, 3.0])
def test_dense_solutions_of_quadratic_tasks_equal_the_closed_forms(time: float) -> None:
    problem = QuadraticTasks(clients=2, dim=4)
    tasks = problem.tasks(problem.clients.lower, np.array([[[0.1], [0.6]], [[0.3], [0.9]]]))
    x = problem.initial(torch.Generator().manual_seed(0))[0]
    dense, exact = DenseTasks(problem, tasks, x), QuadraticAdaptation(tasks)
    y, unrolled = dense.descent(4, 0.3, 3)
    expected = exact.maml(x, steps=4, step=0.3, truncation=3)
    pairs = [(y, expected.y), (unrolled, expected.gradient), (dense.flow(time)[0], exact.flow(x, time=time).gradient)]
    held = exact.imaml(x, proximal=0.7)
    pairs += [(dense.minimiser(0.7), held.y), (dense.implicit(0.7, held.y), held.gradient)]
    for found, wanted in pairs:
        assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-9)

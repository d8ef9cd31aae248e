"""What adaptation costs: the derivatives charged are those made, and what is kept over the inner steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.methods import methods
from clients.tasks import TaskBatch
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from tests.algorithm_table import LOCAL
from tests.algorithm_table.row import Options
from tests.algorithm_table.tasks import SOLVERS
from tests.dense_tasks import points
from tests.problem_table import Head, Softmax
from tests.runs import drawn, settings, start, tasks_of, unseen

WORK = [(name, options) for name, row in LOCAL.items() for options in row.work]


class Watched(TaskBatch):
    """Counts derivatives, and how many of the points at which the support loss was differentiated are still held."""

    def __init__(self, tasks: TaskBatch) -> None:
        super().__init__(tasks.problem, tasks.tasks, tasks.x)
        self.counts, self.held, self.most = {"lower": 0, "upper": 0, "hvp": 0}, [], 0

    def gradient(self, level: Any, y: Tensor) -> Tensor:
        self.counts[level] += 1
        self.held.append(weakref.ref(y))
        self.most = max(self.most, sum(point() is not None for point in self.held))
        return super().gradient(level, y)

    def hessian(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        product = super().hessian(y)

        def counted(v: Tensor) -> Tensor:
            self.counts["hvp"] += 1
            return product(v)

        return counted


def test_memory_does_not_grow_with_the_inner_steps() -> None:
    x, log_s = points(9)
    for name, x0 in (("imaml", x), ("ibaml", torch.cat([x, log_s]))):
        for solver in ("gd", "momentum", "newton"):
            most = []
            for K in (4, 12):
                tasks = Watched(unseen(Head(), 2))
                methods()[name].meta_gradient(
                    tasks, x0, settings(name, lower_step=0.4, inner_solver=solver, local_steps=K)
                )
                most.append(tasks.most)
            assert most[0] == most[1] <= 4, (name, solver)
    tasks = Watched(unseen(Head(), 2))
    methods()["maml"].meta_gradient(tasks, x, settings("maml", lower_step=0.4, local_steps=12))
    assert tasks.most > 12


@pytest.mark.parametrize("solver", SOLVERS)
def test_passes_are_those_made_when_no_solve_stops_early(solver: str) -> None:
    x, log_s = points(9)
    own = {"inner_solver": solver, "local_steps": 2, "cg_steps": 3, "samples": 4}
    variants = (("imaml", x, {}, 1), ("ibaml", torch.cat([x, log_s]), {"inference": "map"}, 1))
    for name, x0, more, draws in (*variants, ("ibaml", torch.cat([x, log_s]), {"inference": "variational"}, 4)):
        tasks = Watched(unseen(Head(), 2))
        given = {key: value for key, value in own.items() if name == "ibaml" or key != "samples"}
        o = settings(name, lower_step=0.4, **given, **more)
        methods()[name].meta_gradient(tasks, x0, o)
        made = tasks.counts
        expected = (draws * (made["lower"] + 2.0 * made["hvp"]), float(draws * made["upper"]))
        assert methods()[name].passes(o) == expected


@pytest.mark.parametrize(("name", "options"), WORK)
def test_the_work_that_is_charged_is_the_work_that_is_done(name: str, options: Options) -> None:
    """Gradients of a support and of a query example; a Hessian product counts two."""
    problem, done = Softmax(), {"lower": 0, "upper": 0}

    class Counting(TaskBatch):
        def gradient(self, level: Any, y: Tensor) -> Tensor:
            done[level] += 1
            return super().gradient(level, y)

        def hvp(self, y: Tensor, v: Tensor) -> Tensor:
            done["lower"] += 2
            return super().hvp(y, v)

    x = start(problem, 2)[0]
    o = settings(name, local_steps=4, **options)
    methods()[name].meta_gradient(Counting(problem, drawn(problem, [0], 0, 1), x), x, o)
    assert methods()[name].passes(o) == (done["lower"], done["upper"])


@pytest.mark.parametrize(
    ("solver", "adjoint"), [(s, a) for s in ("euler", "midpoint", "rk4") for a in ("stored", "backward")]
)
def test_passes_are_what_is_differentiated(monkeypatch, solver, adjoint):
    counts = {"lower": 0.0, "upper": 0.0}
    real, product = TaskBatch.gradient, TaskBatch.hvp

    def gradient(self, level, y):
        counts[level] += 1
        return real(self, level, y)

    def hvp(self, y, v):
        counts["lower"] += 2
        return product(self, y, v)

    monkeypatch.setattr(TaskBatch, "gradient", gradient)
    monkeypatch.setattr(TaskBatch, "hvp", hvp)
    batch, x = tasks_of(QuadraticTasks(), 2, seed=3)
    o = settings("a-maml", solver=solver, adjoint=adjoint, ode_steps=6)
    methods()["a-maml"].meta_gradient(batch, x, o)
    assert (counts["lower"], counts["upper"]) == methods()["a-maml"].passes(o)

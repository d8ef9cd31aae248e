"""The server's side of a local lower level: reports, evaluations, its optimisers, and the state that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.methods import methods
from clients.tasks import TaskBatch
from fedbilevel import simulate
from fedbilevel.federation.ledger import Ledger
from fedbilevel.problems.tasks.quadratic_adaptation import QuadraticAdaptation
from server.kit.algorithm import find
from server.running.checkpoints import Checkpoint, Checkpoints
from tests.agreement import relative
from tests.dense_tasks import closed_form
from tests.problem_table import DIM, M, quadratic_tasks
from tests.runs import drawn, start


def test_reports_reach_the_history_and_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    method = methods()["maml"]
    original = type(method).meta_gradient

    def telling(self: Any, tasks: TaskBatch, x: Tensor, o: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        return original(self, tasks, x, o)[0], (tasks.gradient("lower", tasks.spread(x)).norm(dim=-1),)

    quiet = simulate(quadratic_tasks(), "maml", iterations=2, seed=7)
    monkeypatch.setattr(type(method), "meta_gradient", telling)
    monkeypatch.setattr(type(method), "reports", ("slope",))
    result = simulate(quadratic_tasks(), "maml", iterations=2, seed=7, trace=True)
    assert result.communication == quiet.communication
    assert torch.equal(result.x, quiet.x)
    assert result.trace is not None
    problem, x = quadratic_tasks(), result.trace[0].x
    own = QuadraticAdaptation(drawn(problem, range(M), 1, 4, seed=7))
    norms = torch.einsum("bij,bj->bi", own.A, x - own.a).norm(dim=-1).view(M, 4).mean(1)
    expected = float(torch.from_numpy(problem.clients.weights) @ norms)
    assert "metric_slope" not in result.history[0]
    assert result.history[-1]["metric_slope"] == pytest.approx(expected, rel=1e-12)


def test_evaluations_are_of_adapted_parameters() -> None:
    problem = quadratic_tasks()
    result = simulate(problem, "maml", iterations=1, local_steps=3, lower_step=0.4, evaluation_tasks=150, seed=7)
    own = QuadraticAdaptation(drawn(problem, range(M), 0, 4, seed=7, fixed=True))
    y = own.maml(result.x, steps=3, step=0.4).y

    def quadratic(matrix: Tensor, r: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,bij,bj->b", r, matrix, r)

    p, row = torch.from_numpy(problem.clients.weights), result.history[-1]
    assert row["upper_loss"] == pytest.approx(float(p @ quadratic(own.C, y - own.c).view(M, 4).mean(1)), rel=1e-12)
    assert row["lower_loss"] == pytest.approx(float(p @ quadratic(own.A, y - own.a).view(M, 4).mean(1)), rel=1e-12)
    unseen = QuadraticAdaptation(problem.test_tasks(150))
    losses = quadratic(unseen.C, unseen.maml(result.x, steps=3, step=0.4).y - unseen.c)
    assert row["test_loss"] == pytest.approx(float(losses.mean()), rel=1e-12)
    assert row["metric_test_interval"] == pytest.approx(1.96 * float(losses.std()) / 150**0.5, rel=1e-12)


def test_adam_on_the_server_is_that_of_torch() -> None:
    problem, steps = quadratic_tasks(), {"lower_step": 0.4, "local_steps": 4}
    result = simulate(problem, "maml", iterations=6, upper_optimiser="adam", upper_step=0.05, trace=True, **steps)
    x = start(problem, 0)[0].requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    p = torch.from_numpy(problem.clients.weights)
    assert result.trace is not None
    for k, entry in enumerate(result.trace):
        x.grad = p @ closed_form("maml", drawn(problem, range(M), k, 4), x.detach(), steps).view(M, 4, DIM).mean(1)
        optimiser.step()
        assert relative(entry.x, x.detach()) < 1e-10


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_servers_step_halves(optimiser: str) -> None:
    """Against torch's optimiser under an exponential schedule; without halving it stays."""
    problem, steps = quadratic_tasks(), {"lower_step": 0.4, "local_steps": 4}
    settings = {"iterations": 5, "upper_optimiser": optimiser, "upper_step": 0.05, "trace": True, **steps}
    result = simulate(problem, "maml", upper_schedule="halving", upper_period=3, **settings)
    x = start(problem, 0)[0].requires_grad_()
    torchs = (torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam)([x], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(torchs, 0.5 ** (1 / 3))
    assert result.trace is not None
    for entry in result.trace:
        x.grad = entry.hypergradient
        torchs.step()
        schedule.step()
        assert relative(entry.x, x.detach()) < 1e-10
    plain = simulate(problem, "maml", **settings)
    assert relative(plain.trace[0].x, result.trace[0].x) < 1e-10
    assert relative(plain.trace[1].x, result.trace[1].x) > 1e-10


def test_a_state_with_moments_and_a_report_is_kept_exactly(tmp_path: Path) -> None:
    for name in ("maml", "memfbo", "bome"):
        x = torch.randn(DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        first = find(name).make({}).init(x, x.clone())
        changed = {"first": x + 1, "second": x * x, "steps": 3, "report": {"slope": 0.1}, "hypergradient": -x}
        state = type(first)(**{**vars(first), **changed})
        kept = Checkpoints(tmp_path)
        kept.save(name, Checkpoint(state, 3, 0.5, Ledger().totals()))
        found = kept.load(name, first)
        assert found is not None
        for key, value in vars(state).items():
            held = getattr(found.state, key)
            assert torch.equal(held, value) if isinstance(value, Tensor) else held == value

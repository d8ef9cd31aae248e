"""iMAML against closed forms and dense solves, its inner solvers, and negative curvature."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad

from clients.methods import methods
from clients.methods.bayes import Variational, noise
from clients.methods.proximal import Proximal
from clients.solvers.conjugate_gradients import DOUBLINGS
from fedbilevel import simulate
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from tests.agreement import relative
from tests.algorithm_table.tasks import NEWTON, SOLVERS
from tests.dense_tasks import eye, hessian, points
from tests.problem_table import Concave, Head, Wavy
from tests.runs import of_task, settings, unseen


@pytest.mark.parametrize("solver", SOLVERS)
def test_imaml_has_its_closed_form_on_quadratic_tasks(solver: str) -> None:
    tasks, (x, _), lam = unseen(QuadraticTasks(), 9), points(6), 0.7
    o = settings("imaml", proximal=lam, **{"cg_tolerance": 1e-13, **SOLVERS[solver]})
    support, query = tasks.examples["lower"], tasks.examples["upper"]
    A, a, C, c = support["A"][:, 0], support["a"][:, 0], query["C"][:, 0], query["c"][:, 0]
    inverse = torch.linalg.inv(A + lam * eye(6))
    y = torch.einsum("bij,bj->bi", inverse, torch.einsum("bij,bj->bi", A, a) + lam * x)
    expected = lam * torch.einsum("bij,bjk,bk->bi", inverse, C, y - c)
    method = methods()["imaml"]
    gradient, (negative, residual) = method.meta_gradient(tasks, x, o)
    assert relative(method.adapt(tasks, x, o).y, y) < 1e-10
    assert relative(gradient, expected) < 1e-10
    assert not negative.any()
    assert float(residual.max()) < 1e-12


@pytest.mark.parametrize(("solver", "ahead"), [("gd", 0.0), ("momentum", 0.9)])
def test_few_steps_descend_on_the_proximal_objective_and_the_gradient_is_taken_there(solver: str, ahead: float) -> None:
    tasks, (x, _), lam = unseen(Head(), 3), points(9), 2.0
    for K in (1, 5):
        gradient, _ = methods()["imaml"].meta_gradient(
            tasks, x, settings("imaml", lower_step=0.4, proximal=lam, local_steps=K, cg_steps=50, inner_solver=solver)
        )
        for b in range(3):
            L, f = of_task(tasks, b)
            y = last = x
            for _ in range(K):
                point = y + ahead * (y - last)
                last, y = y, point - (grad(L)(point) + lam * (point - x)) / (1 / 0.4 + lam)
            expected = torch.linalg.solve(eye(9) + hessian(L, y) / lam, grad(f)(y))
            assert relative(gradient[b], expected) < 1e-8


def test_the_proximal_steps_are_minima() -> None:
    tasks, (mu, log_s) = unseen(QuadraticTasks(), 3), points(6)
    draw = torch.Generator().manual_seed(3)
    for objective in (Proximal(tasks, mu, log_s.exp()), Variational(tasks, mu, log_s.exp(), 0.3, 2)):
        z = 3 * torch.randn(*objective.start().shape, generator=draw, dtype=torch.float64)
        for length in (1e-3, 0.4, 50.0):
            w = objective.step(z, length)
            assert relative((z - w) / length, objective.pull(w)) < 1e-10
            assert (w[:, 6:] > 0).all()
        assert torch.equal(objective.step(z.abs(), 0.0), z.abs())


def test_a_task_with_negative_curvature_is_damped_and_reported() -> None:
    problem = Concave(mu=0.2, L=0.9)
    problem.bend = 0.8
    tasks, (x, _), lam = unseen(problem, 12), points(6), 0.4
    A, C = tasks.examples["lower"]["A"][:, 0], tasks.examples["upper"]["C"][:, 0]
    tasks.examples["lower"]["A"] = A = torch.cat([A[:6], A[6:] + 0.7 * eye(6)])
    tasks.examples["lower"]["A"] = A[:, None]
    o = settings("imaml", lower_step=0.4, proximal=lam, damping=0.1, cg_steps=40, cg_tolerance=1e-13)
    method = methods()["imaml"]
    gradient, (negative, residual) = method.meta_gradient(tasks, x, o)
    y = method.adapt(tasks, x, o).y
    smallest = torch.linalg.eigvalsh(A)[:, 0] - problem.bend + lam
    assert negative.tolist() == [float(value < 0) for value in smallest]
    assert 0 < float(negative.mean()) < 1
    assert float(residual.max()) < 1e-12
    for b in range(12):
        levels = [0.0] + [0.1 * 2**k for k in range(DOUBLINGS)]
        added = next(level for level in levels if smallest[b] + level * lam > 0)
        system = A[b] + (lam * (1 + added) - problem.bend) * eye(6)
        f = C[b] @ (y[b] - tasks.examples["upper"]["c"][b, 0])
        assert relative(gradient[b], lam * torch.linalg.solve(system, f)) < 1e-8


def test_a_task_that_no_damping_repairs_contributes_nothing_and_the_history_says_so() -> None:
    problem = Concave(clients=3)
    problem.bend = 2.0
    small = {"iterations": 2, "evaluation_tasks": 4, "local_steps": 2, "trace": True}
    for name, own in (("imaml", {"proximal": 0.5}), ("ibaml", {"initial_variance": 2.0})):
        left_out = simulate(problem, name, damping=1e-6, **small, **own)
        assert left_out.trace is not None
        assert not left_out.trace[-1].hypergradient.any()  # type: ignore[union-attr]  # a round was made
        # of u = 0 the residual is the length of a right-hand side of length 1, in the mean over tasks and clients
        assert left_out.history[-1]["metric_negative_curvature"] == pytest.approx(1.0, rel=1e-12)
        assert left_out.history[-1]["metric_cg_residual"] == pytest.approx(1.0, rel=1e-12)
        damped = simulate(problem, name, damping=1.0, **small, **own)
        assert damped.trace is not None
        assert damped.trace[-1].hypergradient.any()  # type: ignore[union-attr]
        assert damped.history[-1]["metric_negative_curvature"] == pytest.approx(1.0, rel=1e-12)
        assert float(damped.history[-1]["metric_cg_residual"]) < 1e-8  # type: ignore[arg-type]
        problem.bend = 0.0
        convex = simulate(problem, name, damping=1e-6, **small, **own)
        assert convex.history[-1]["metric_negative_curvature"] == 0.0
        problem.bend = 2.0


@pytest.mark.parametrize("inference", ["map", "variational"])
def test_newton_reaches_a_stationary_point_of_losses_that_are_not_convex(inference: str) -> None:
    tasks, (mu, log_s) = unseen(Wavy(), 6), points(9)
    o = settings("ibaml", lower_step=0.4, inference=inference, samples=4, **{**NEWTON, "local_steps": 40})
    method, x = methods()["ibaml"], torch.cat([mu, log_s])
    adapted = method.adapt(tasks, x, o)
    assert adapted.variance is not None
    indefinite, eps = 0, noise(4, 9, torch.float64, torch.device("cpu"))
    for b in range(6):
        L, _ = of_task(tasks, b)
        indefinite += int(torch.linalg.eigvalsh(hessian(L, mu) + torch.diag((-log_s).exp()))[0] < 0)
        if inference == "map":
            slope = grad(L)(adapted.y[b]) + (adapted.y[b] - mu) * (-log_s).exp()
        else:
            deviation = adapted.variance[b].sqrt()
            slopes = torch.stack([grad(L)(adapted.y[b] + deviation * e) for e in eps])
            in_deviation = (slopes * eps).mean(0) + deviation * (-log_s).exp() - 1 / deviation
            slope = torch.cat([slopes.mean(0) + (adapted.y[b] - mu) * (-log_s).exp(), in_deviation])
        assert float(slope.norm()) < 1e-9
    assert indefinite > 0


def test_newton_descends_along_the_gradient_where_no_damping_helps() -> None:
    tasks, (mu, _) = unseen(Wavy(), 6), points(9)
    met, before = torch.zeros(6), tasks.losses("lower", mu)
    for K in (1, 2):
        o = settings("imaml", lower_step=0.4, proximal=0.1, damping=1e-9, **{**NEWTON, "local_steps": K})
        y = methods()["imaml"].adapt(tasks, mu, o).y
        met += methods()["imaml"].meta_gradient(tasks, mu, {**o, "local_steps": K - 1})[1][0]
        values = tasks.losses("lower", y) + 0.05 * ((y - mu) ** 2).sum(-1)
        assert (values < before - 1e-3).all()
        before = values
    assert met.any()

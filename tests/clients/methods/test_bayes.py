"""iBaML against dense solves and differences of the solved objective; iMAML as a special case."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from clients.methods import methods
from clients.methods.bayes import noise
from fedbilevel import simulate
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from tests.agreement import relative
from tests.algorithm_table.tasks import NEWTON, SOLVERS
from tests.dense_tasks import dense, hessian, newton, points
from tests.problem_table import Concave, Head
from tests.runs import Loss, of_task, settings, unseen

LAM = 2.5


@functools.cache
def at_the_mode(T: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y*, the gradients in mu and log s and the Laplace variances of four tasks; iMAML's gradient with LAM."""
    tasks, (mu, log_s) = unseen(Head(), 4), points(9)
    y, in_mean, in_variance = dense(tasks, mu, log_s.exp(), T)
    curvature = torch.stack([hessian(of_task(tasks, b)[0], y[b]).diagonal() for b in range(4)])
    _, imaml, _ = dense(tasks, mu, torch.full_like(mu, 1 / LAM))
    return y, in_mean, in_variance, 1 / (curvature / T + (-log_s).exp()), imaml


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("T", [1.0, 0.3])
def test_gradients_at_the_mode_are_those_of_a_dense_solve(solver: str, T: float) -> None:
    tasks, (mu, log_s) = unseen(Head(), 4), points(9)
    own = {"cg_steps": 60, "cg_tolerance": 1e-13, **SOLVERS[solver]}
    y, in_mean, in_variance, variance, imaml = at_the_mode(T)
    o = settings("ibaml", temperature=T, samples=10, **own)
    method, x = methods()["ibaml"], torch.cat([mu, log_s])
    gradient, _ = method.meta_gradient(tasks, x, o)
    adapted = method.adapt(tasks, x, o)
    assert relative(gradient[:, :9], in_mean) < 1e-8
    assert relative(gradient[:, 9:], in_variance) < 1e-8
    assert relative(adapted.y, y) < 1e-8
    assert adapted.variance is not None
    assert relative(adapted.variance, variance) < 1e-8
    gradient, _ = methods()["imaml"].meta_gradient(tasks, mu, settings("imaml", proximal=LAM, **own))
    assert relative(gradient, imaml) < 1e-8


def posterior(L: Loss, x: Tensor, T: float, eps: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the log variance that minimise E L + T KL, by dense Newton steps in these two, from x or `near`."""
    d = len(x) // 2
    mu, log_s = x[:d], x[d:]

    def objective(z: Tensor) -> Tensor:
        m, log_d = z[:d], z[d:]
        data = vmap(L)(m + (log_d / 2).exp() * eps).mean()
        kl = 0.5 * (((m - mu) ** 2 + log_d.exp()) / log_s.exp() - 1 + log_s - log_d)
        return data + T * kl.sum()

    z = newton(objective, x if near is None else near)
    return z[:d], z[d:]


@pytest.mark.parametrize(("solver", "T"), [("newton", 1.0), ("newton", 0.3), ("gd", 1.0), ("momentum", 0.3)])
def test_variational_gradients_are_differences_of_the_solved_objective(solver: str, T: float) -> None:
    tasks, (mu, log_s), h = unseen(Head(), 2), points(9), 1e-4
    eps = noise(4, 9, torch.float64, torch.device("cpu"))
    own = {"cg_steps": 80, "cg_tolerance": 1e-13, **SOLVERS[solver]}
    o = settings("ibaml", inference="variational", samples=4, temperature=T, **own)
    x, method = torch.cat([mu, log_s]), methods()["ibaml"]
    gradient, (negative, residual) = method.meta_gradient(tasks, x, o)
    adapted = method.adapt(tasks, x, o)
    assert adapted.variance is not None
    assert not negative.any()
    assert float(residual.max()) < 1e-10
    for b in range(2):
        L, f = of_task(tasks, b)

        m, log_d = posterior(L, x, T, eps)
        near = torch.cat([m, log_d])

        def query(x: Tensor, L: Loss = L, f: Loss = f, near: Tensor = near) -> Tensor:
            m, log_d = posterior(L, x, T, eps, near)
            return vmap(f)(m + (log_d / 2).exp() * eps).mean()

        assert relative(adapted.y[b], m) < 1e-8
        assert relative(adapted.variance[b], log_d.exp()) < 1e-8
        chosen = (0, 4, 8, 9, 12, 17) if solver == "newton" else (3, 13)
        steps = [h * torch.nn.functional.one_hot(torch.tensor(j), 18) for j in chosen]
        expected = torch.stack([(query(x + e) - query(x - e)) / (2 * h) for e in steps])
        assert relative(gradient[b, list(chosen)], expected) < 1e-6


def test_a_variational_posterior_of_diagonal_quadratics_is_exact() -> None:
    tasks, (mu, log_s) = unseen(QuadraticTasks(), 3), points(6)
    support = tasks.examples["lower"]
    support["A"] = torch.diag_embed(support["A"].diagonal(dim1=-2, dim2=-1))
    A, a = support["A"][:, 0].diagonal(dim1=-2, dim2=-1), support["a"][:, 0]
    variance = 1 / (A + (-log_s).exp())
    x = torch.cat([mu, log_s])
    for inference, samples in (("variational", 2), ("variational", 6), ("map", 2), ("map", 8)):
        adapted = methods()["ibaml"].adapt(
            tasks, x, settings("ibaml", lower_step=0.4, inference=inference, samples=samples, **NEWTON)
        )
        assert adapted.variance is not None
        assert relative(adapted.variance, variance) < 1e-9
        if samples > 2:
            expected = variance * (A * a + mu * (-log_s).exp())
            assert relative(adapted.y, expected) < (1e-9 if inference == "map" else 1.0)


def test_noise_is_antithetic_with_unit_second_moments() -> None:
    eps = noise(6, 5, torch.float64, torch.device("cpu"))
    assert torch.equal(eps[:3], -eps[3:])
    assert torch.allclose((eps**2).mean(0), torch.ones(5, dtype=torch.float64))
    assert len({round(float(v), 9) for v in eps[:3].flatten()}) == 15


def test_imaml_is_the_special_case_of_equal_fixed_variances() -> None:
    for own in (
        {"local_steps": 3},
        {"inner_solver": "momentum"},
        {"inner_solver": "newton", "upper_optimiser": "adam"},
    ):
        shared = {"iterations": 3, "trace": True, "cg_steps": 20, "evaluation_tasks": 20, **own}
        one = simulate("quadratic_tasks", "imaml", proximal=0.4, **shared)
        two = simulate("quadratic_tasks", "ibaml", learn_variance=False, initial_variance=2.5, **shared)
        assert relative(two.x[:6], one.x) < 1e-10
        assert relative(two.x[6:], torch.full((6,), math.log(2.5), dtype=torch.float64)) < 1e-15
        for a, b in zip(one.history, two.history, strict=True):
            assert a["upper_loss"] == pytest.approx(b["upper_loss"], rel=1e-10)
            assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-10)
        moved = simulate("quadratic_tasks", "ibaml", initial_variance=2.5, **shared)
        assert float((moved.x[6:] - math.log(2.5)).abs().min()) > 1e-3


def test_laplace_variances_are_at_most_the_priors() -> None:
    problem = Concave()
    problem.bend = 0.7
    tasks, (mu, log_s) = unseen(problem, 8), points(6)
    adapted = methods()["ibaml"].adapt(
        tasks, torch.cat([mu, log_s]), settings("ibaml", lower_step=0.4, inner_solver="newton")
    )
    entries = tasks.examples["lower"]["A"][:, 0].diagonal(dim1=-2, dim2=-1) - problem.bend
    assert (entries < 0).any()
    assert (entries > 0).any()
    assert adapted.variance is not None
    assert relative(adapted.variance, 1 / (entries.clamp_min(0) + (-log_s).exp())) < 1e-12


@pytest.mark.parametrize("inference", ["map", "variational"])
def test_training_learns_mean_and_variances(inference: str) -> None:
    result = simulate(
        QuadraticTasks(clients=6),
        "ibaml",
        iterations=40,
        inference=inference,
        upper_optimiser="adam",
        initial_variance=0.5,
        evaluate_every=20,
        evaluation_tasks=200,
    )
    losses = [float(row["test_loss"]) for row in result.history]  # type: ignore[arg-type]
    assert losses[-1] < 0.8 * losses[0]
    assert result.x.shape == (12,)
    assert torch.equal(methods()["ibaml"].parameters(result.x), result.x[:6])
    assert float((result.x[6:] - math.log(0.5)).abs().min()) > 0.1


@pytest.mark.parametrize("inference", ["map", "variational"])
def test_extreme_log_variances_stay_finite_and_count_as_the_bound(inference: str) -> None:
    mu, _ = points(6)
    o = settings("ibaml", inference=inference, lower_step=0.5)
    method = methods()["ibaml"]
    for dtype in (torch.float32, torch.float64):
        tasks = unseen(QuadraticTasks(), 3, dtype)
        for size in (40.0, 200.0):
            log_s = torch.tensor([size, -size, 0.0, -1.0, 1.0, 2.0])
            x = torch.cat([mu, log_s]).to(dtype)
            bounded = torch.cat([mu, log_s.clamp(-30, 30)]).to(dtype)
            inside = torch.cat([mu, log_s.clamp(-29, 29)]).to(dtype)
            gradient, told = method.meta_gradient(tasks, x, o)
            adapted = method.adapt(tasks, x, o)
            assert adapted.variance is not None
            for tensor in (gradient, adapted.y, adapted.variance, *told):
                assert tensor.isfinite().all()
            assert torch.equal(gradient, method.meta_gradient(tasks, bounded, o)[0])
            assert not torch.equal(gradient, method.meta_gradient(tasks, inside, o)[0])

"""iMAML and iBaML against closed forms, dense solves and finite differences, and conjugate gradients by themselves."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, jacrev, vmap

from clients.methods import methods
from clients.methods.bayes import Variational, noise
from clients.methods.conjugate_gradients import DOUBLINGS, conjugate_gradients, solve
from clients.methods.proximal import Proximal
from clients.tasks import TaskBatch
from fedbilevel import ClientData, derivatives, simulate
from fedbilevel.errors import BadInput
from fedbilevel.problem import Ragged, map_examples
from fedbilevel.problems.quadratic_tasks import QuadraticTasks
from fedbilevel.tasks import Tasks
from server.kit.algorithm import find

Loss = Callable[[Tensor], Tensor]
NEWTON = {"inner_solver": "newton", "local_steps": 15, "cg_steps": 60, "cg_tolerance": 1e-14}
SOLVERS = {
    "gd": {"inner_solver": "gd", "local_steps": 800},
    "momentum": {"inner_solver": "momentum", "local_steps": 400},
    "newton": NEWTON,
}


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


class Concave(QuadraticTasks):
    """Quadratic tasks less bend/2 |y|^2 on the support set: Hess L = A - bend."""

    bend = 0.0

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return super().lower(x, y, examples) - 0.5 * self.bend * (y @ y)


class Wavy(Head):
    """The head with a support loss that is not convex."""

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return super().lower(x, y, examples) + 0.5 * torch.cos(2 * y).sum()


def eye(d: int) -> Tensor:
    """The identity."""
    return torch.eye(d, dtype=torch.float64)


def hessian(J: Loss, z: Tensor) -> Tensor:
    """The dense second derivative."""
    found: Tensor = jacrev(grad(J))(z)
    return found


def options(name: str, **own: Any) -> dict[str, Any]:
    """The settings as the algorithm sends them."""
    settings: dict[str, Any] = find(name).parse({"lower_step": 0.4, **own}).settings()  # type: ignore[attr-defined]
    return settings


def batch(problem: Any, count: int, dtype: torch.dtype = torch.float64) -> TaskBatch:
    """`count` tasks of the problem, as one batch."""
    made = problem.test_tasks(count)
    parts = (map_examples(lambda t: t.to(dtype) if t.is_floating_point() else t, p) for p in (made.support, made.query))
    return TaskBatch(problem, Tasks(*parts), torch.zeros(1, dtype=dtype))


def of_task(tasks: TaskBatch, b: int) -> tuple[Loss, Loss]:
    """L and f of one task."""
    problem: Any = tasks.problem
    support, query = (map_examples(lambda t: t[b], tasks.examples[level]) for level in ("lower", "upper"))
    return (lambda y: problem.lower(y, y, support).mean()), (lambda y: problem.upper(y, y, query).mean())


def newton(J: Loss, z: Tensor) -> Tensor:
    """Dense Newton steps, halved until J does not grow."""
    for _ in range(60):
        if grad(J)(z).norm() < 1e-13:
            break
        step, length = torch.linalg.solve(hessian(J, z), grad(J)(z)), 1.0
        while not J(z - length * step) <= J(z) + 1e-14 and length > 1e-12:
            length /= 2
        z = z - length * step
    assert grad(J)(z).norm() < 1e-12
    return z


def dense(tasks: TaskBatch, mu: Tensor, s: Tensor, T: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """y*, the gradient of f(y*) in mu and in log s, [B, d] each, by dense solves task by task."""
    rows = []
    for b in range(len(tasks)):
        L, f = of_task(tasks, b)
        y = newton(lambda y, L=L: L(y) + 0.5 * T * ((y - mu) ** 2 / s).sum(), mu)
        u = torch.linalg.solve(hessian(L, y) + T * torch.diag(1 / s), grad(f)(y))
        rows.append((y, T * u / s, T * u * (y - mu) / s))
    y, in_mean, in_variance = (torch.stack(part) for part in zip(*rows, strict=True))
    return y, in_mean, in_variance


def points(d: int) -> tuple[Tensor, Tensor]:
    """A prior's mean and log variances."""
    draw = torch.Generator().manual_seed(7)
    return torch.randn(d, generator=draw, dtype=torch.float64), 0.5 * torch.randn(
        d, generator=draw, dtype=torch.float64
    )


def off(found: Tensor, expected: Tensor) -> float:
    """The relative error."""
    return float((found - expected).norm() / expected.norm())


# ---- conjugate gradients ----


def systems() -> tuple[Tensor, Tensor]:
    """Five positive definite systems, one of them with right-hand side 0 and one whose right-hand side is easy."""
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(5, 7, 7, generator=draw, dtype=torch.float64)
    A = root @ root.mT + 0.5 * eye(7)
    rhs = torch.randn(5, 7, generator=draw, dtype=torch.float64) * torch.tensor([1, 1e-25, 0, 1e25, 1])[:, None]
    rhs[4] = torch.linalg.eigh(A[4])[1][:, 2]
    return A, rhs


def product(A: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: torch.einsum("bij,bj->bi", A, v)


def test_systems_are_solved_together_as_they_are_alone() -> None:
    A, rhs = systems()
    found = solve(product(A), rhs, steps=50, tolerance=1e-13, damping=1.0)
    expected = torch.linalg.solve(A, rhs)
    for b in (0, 1, 3, 4):
        assert off(found.u[b], expected[b]) < 1e-11
        alone = solve(product(A[b : b + 1]), rhs[b : b + 1], steps=50, tolerance=1e-13, damping=1.0)
        assert off(alone.u[0], found.u[b]) < 1e-13
    assert not found.u[2].any()
    assert not found.negative.any()
    assert not found.skipped.any()
    assert float(found.residual.max()) < 1e-12


def test_a_converged_system_no_longer_moves_and_residuals_are_those_reached() -> None:
    A, rhs = systems()
    calls: list[Tensor] = []

    def watched(v: Tensor) -> Tensor:
        calls.append(v)
        return product(A)(v)

    u, _ = conjugate_gradients(watched, rhs, steps=3, tolerance=1e-10)
    assert len(calls) == 3
    assert all(not direction[4].any() and not direction[2].any() for direction in calls[1:])
    assert off(u[4], torch.linalg.solve(A[4], rhs[4])) < 1e-12
    found = solve(product(A), rhs, steps=3, tolerance=1e-10, damping=1.0)
    left = (rhs - product(A)(found.u)).norm(dim=-1) / torch.where(rhs.norm(dim=-1) == 0, 1.0, rhs.norm(dim=-1))
    assert torch.allclose(found.residual, left, rtol=1e-9, atol=1e-14)
    assert float(found.residual[0]) > 1e-3


def test_indefinite_systems_are_damped_or_left_out_and_say_so() -> None:
    A, rhs = systems()
    rhs[2] = 1.0
    A[0] -= 3 * eye(7)
    A[1, 6, 6], rhs[1] = -1e6, torch.tensor([1.0] * 6 + [1e-5])
    A[4] = -eye(7)
    found = solve(product(A), rhs, steps=50, tolerance=1e-13, damping=0.4)
    assert found.negative.tolist() == [True, True, False, False, True]
    assert found.skipped.tolist() == [False, True, False, False, False]
    for b in range(5):
        smallest = float(torch.linalg.eigvalsh(A[b])[0])
        added = 0.0 if smallest > 0 else next((0.4 * 2**k for k in range(DOUBLINGS) if smallest + 0.4 * 2**k > 0), None)
        if added is None:
            assert not found.u[b].any()
            assert float(found.residual[b]) == pytest.approx(1.0)
        else:
            assert float(found.added[b]) == pytest.approx(added)
            assert off(found.u[b], torch.linalg.solve(A[b] + added * eye(7), rhs[b])) < 1e-9


def test_only_levels_of_damping_that_may_do_are_tried() -> None:
    """The curvature that stopped a system rules out the levels below it."""
    A, calls = torch.diag_embed(torch.tensor([[2.0, -100.0], [2.0, -0.1], [2.0, 3.0]], dtype=torch.float64)), 0

    def counted(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return product(A)(v)

    rhs = torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64)
    found = solve(counted, rhs, steps=10, tolerance=1e-12, damping=0.25)
    assert found.added.tolist() == [128.0, 0.25, 0.0]
    assert off(found.u[:, 1], torch.tensor([1 / 28, 1 / 0.15, 1 / 3])) < 1e-6
    assert calls == 3  # as they stand, each with its level, and for the residuals


def test_curvature_beyond_the_numbers_is_not_taken_for_none() -> None:
    A = torch.tensor([[[0.0, 0.0], [0.0, -torch.finfo(torch.float64).max]]], dtype=torch.float64)
    found = solve(lambda v: 4 * product(A)(v), torch.tensor([[0.0, 1.0]], dtype=torch.float64), steps=5, tolerance=1e-9,
                  damping=1.0)  # fmt: skip
    assert found.negative.all()
    assert found.skipped.all()
    assert not found.u.any()


def test_hessian_products_at_one_point_are_those_taken_one_by_one() -> None:
    tasks, draw = batch(Head(), 2), torch.Generator().manual_seed(3)
    y = torch.randn(4, len(tasks), 9, generator=draw, dtype=torch.float64)
    one, several = tasks.hessian(y[0]), tasks.hessian(y)
    for _ in range(2):
        v = torch.randn(*y.shape, generator=draw, dtype=torch.float64)
        expected = torch.stack([tasks.hvp(*each) for each in zip(y, v, strict=True)])
        assert off(several(v), expected) < 1e-13
        assert off(one(v[0]), expected[0]) < 1e-13
    assert off(tasks.hessian(y[0, 0])(v[0]), tasks.hvp(y[0, 0], v[0])) < 1e-13


@pytest.mark.parametrize("loss", [lambda y: 3 * y.sum(-1), lambda y: torch.ones(2)])
def test_a_loss_without_curvature_has_a_hessian_of_zero(loss: Callable[[Tensor], Tensor]) -> None:
    assert not derivatives.hessian(loss, torch.ones(2, 5))(torch.ones(2, 5)).any()


def test_nan_is_not_hidden() -> None:
    A, rhs = systems()
    A[0, 0, 0] = math.nan
    found = solve(product(A), rhs, steps=10, tolerance=1e-10, damping=1.0)
    assert found.u[0].isnan().any()
    assert found.u[1:].isfinite().all()


# ---- gradients ----


@pytest.mark.parametrize("solver", SOLVERS)
def test_imaml_has_its_closed_form_on_quadratic_tasks(solver: str) -> None:
    tasks, (x, _), lam = batch(QuadraticTasks(), 9), points(6), 0.7
    o = options("imaml", proximal=lam, **{"cg_tolerance": 1e-13, **SOLVERS[solver]})
    support, query = tasks.examples["lower"], tasks.examples["upper"]
    A, a, C, c = support["A"][:, 0], support["a"][:, 0], query["C"][:, 0], query["c"][:, 0]
    inverse = torch.linalg.inv(A + lam * eye(6))
    y = torch.einsum("bij,bj->bi", inverse, torch.einsum("bij,bj->bi", A, a) + lam * x)
    expected = lam * torch.einsum("bij,bjk,bk->bi", inverse, C, y - c)
    method = methods()["imaml"]
    gradient, (negative, residual) = method.meta_gradient(tasks, x, o)
    assert off(method.adapt(tasks, x, o).y, y) < 1e-10
    assert off(gradient, expected) < 1e-10
    assert not negative.any()
    assert float(residual.max()) < 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("T", [1.0, 0.3])
def test_gradients_at_the_mode_are_those_of_a_dense_solve(solver: str, T: float) -> None:
    tasks, (mu, log_s) = batch(Head(), 4), points(9)
    own = {"cg_steps": 60, "cg_tolerance": 1e-13, **SOLVERS[solver]}
    y, in_mean, in_variance = dense(tasks, mu, log_s.exp(), T)
    o = options("ibaml", temperature=T, samples=10, **own)
    method, x = methods()["ibaml"], torch.cat([mu, log_s])
    gradient, _ = method.meta_gradient(tasks, x, o)
    adapted = method.adapt(tasks, x, o)
    assert off(gradient[:, :9], in_mean) < 1e-8
    assert off(gradient[:, 9:], in_variance) < 1e-8
    assert off(adapted.y, y) < 1e-8
    assert adapted.variance is not None
    for b in range(4):
        H = hessian(of_task(tasks, b)[0], y[b])
        assert off(adapted.variance[b], 1 / (H.diagonal() / T + (-log_s).exp())) < 1e-8
    lam = 2.5
    y, in_mean, _ = dense(tasks, mu, torch.full_like(mu, 1 / lam))
    gradient, _ = methods()["imaml"].meta_gradient(tasks, mu, options("imaml", proximal=lam, **own))
    assert off(gradient, in_mean) < 1e-8


def posterior(L: Loss, mu: Tensor, log_s: Tensor, T: float, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the log variance that minimise E L + T KL, by dense Newton steps in these two."""
    d = len(mu)

    def objective(z: Tensor) -> Tensor:
        m, log_d = z[:d], z[d:]
        data = vmap(L)(m + (log_d / 2).exp() * eps).mean()
        kl = 0.5 * (((m - mu) ** 2 + log_d.exp()) / log_s.exp() - 1 + log_s - log_d)
        return data + T * kl.sum()

    z = newton(objective, torch.cat([mu, log_s]))
    return z[:d], z[d:]


@pytest.mark.parametrize(("solver", "T"), [("newton", 1.0), ("newton", 0.3), ("gd", 1.0), ("momentum", 0.3)])
def test_variational_gradients_are_differences_of_the_solved_objective(solver: str, T: float) -> None:
    tasks, (mu, log_s), h = batch(Head(), 2), points(9), 1e-4
    eps = noise(4, 9, torch.float64, torch.device("cpu"))
    own = {"cg_steps": 80, "cg_tolerance": 1e-13, **SOLVERS[solver]}
    o = options("ibaml", inference="variational", samples=4, temperature=T, **own)
    x, method = torch.cat([mu, log_s]), methods()["ibaml"]
    gradient, (negative, residual) = method.meta_gradient(tasks, x, o)
    adapted = method.adapt(tasks, x, o)
    assert adapted.variance is not None
    assert not negative.any()
    assert float(residual.max()) < 1e-10
    for b in range(2):
        L, f = of_task(tasks, b)

        def query(x: Tensor, L: Loss = L, f: Loss = f) -> Tensor:
            m, log_d = posterior(L, x[:9], x[9:], T, eps)
            return vmap(f)(m + (log_d / 2).exp() * eps).mean()

        m, log_d = posterior(L, mu, log_s, T, eps)
        assert off(adapted.y[b], m) < 1e-8
        assert off(adapted.variance[b], log_d.exp()) < 1e-8
        chosen = (0, 4, 8, 9, 12, 17) if solver == "newton" else (3, 13)
        steps = [h * torch.nn.functional.one_hot(torch.tensor(j), 18) for j in chosen]
        expected = torch.stack([(query(x + e) - query(x - e)) / (2 * h) for e in steps])
        assert off(gradient[b, list(chosen)], expected) < 1e-6


def test_a_variational_posterior_of_diagonal_quadratics_is_exact() -> None:
    tasks, (mu, log_s) = batch(QuadraticTasks(), 3), points(6)
    support = tasks.examples["lower"]
    support["A"] = torch.diag_embed(support["A"].diagonal(dim1=-2, dim2=-1))
    A, a = support["A"][:, 0].diagonal(dim1=-2, dim2=-1), support["a"][:, 0]
    variance = 1 / (A + (-log_s).exp())
    x = torch.cat([mu, log_s])
    for inference, samples in (("variational", 2), ("variational", 6), ("map", 2), ("map", 8)):
        adapted = methods()["ibaml"].adapt(tasks, x, options("ibaml", inference=inference, samples=samples, **NEWTON))
        assert adapted.variance is not None
        assert off(adapted.variance, variance) < 1e-9
        if samples > 2:
            expected = variance * (A * a + mu * (-log_s).exp())
            assert off(adapted.y, expected) < (1e-9 if inference == "map" else 1.0)


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
        assert off(two.x[:6], one.x) < 1e-10
        assert off(two.x[6:], torch.full((6,), math.log(2.5), dtype=torch.float64)) < 1e-15
        for a, b in zip(one.history, two.history, strict=True):
            assert a["upper_loss"] == pytest.approx(b["upper_loss"], rel=1e-10)
            assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-10)
        moved = simulate("quadratic_tasks", "ibaml", initial_variance=2.5, **shared)
        assert float((moved.x[6:] - math.log(2.5)).abs().min()) > 1e-3


@pytest.mark.parametrize(("solver", "ahead"), [("gd", 0.0), ("momentum", 0.9)])
def test_few_steps_descend_on_the_proximal_objective_and_the_gradient_is_taken_there(solver: str, ahead: float) -> None:
    tasks, (x, _), lam = batch(Head(), 3), points(9), 2.0
    for K in (1, 5):
        gradient, _ = methods()["imaml"].meta_gradient(
            tasks, x, options("imaml", proximal=lam, local_steps=K, cg_steps=50, inner_solver=solver)
        )
        for b in range(3):
            L, f = of_task(tasks, b)
            y = last = x
            for _ in range(K):
                point = y + ahead * (y - last)
                last, y = y, point - (grad(L)(point) + lam * (point - x)) / (1 / 0.4 + lam)
            expected = torch.linalg.solve(eye(9) + hessian(L, y) / lam, grad(f)(y))
            assert off(gradient[b], expected) < 1e-8


# ---- negative curvature ----


def test_a_task_with_negative_curvature_is_damped_and_reported() -> None:
    problem = Concave(mu=0.2, L=0.9)
    problem.bend = 0.8
    tasks, (x, _), lam = batch(problem, 12), points(6), 0.4
    A, C = tasks.examples["lower"]["A"][:, 0], tasks.examples["upper"]["C"][:, 0]
    tasks.examples["lower"]["A"] = A = torch.cat([A[:6], A[6:] + 0.7 * eye(6)])
    tasks.examples["lower"]["A"] = A[:, None]
    o = options("imaml", proximal=lam, damping=0.1, cg_steps=40, cg_tolerance=1e-13)
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
        assert off(gradient[b], lam * torch.linalg.solve(system, f)) < 1e-8


def test_a_task_that_no_damping_repairs_contributes_nothing_and_the_history_says_so() -> None:
    problem = Concave(clients=3)
    problem.bend = 2.0
    small = {"iterations": 2, "evaluation_tasks": 4, "local_steps": 2, "trace": True}
    for name, own in (("imaml", {"proximal": 0.5}), ("ibaml", {"initial_variance": 2.0})):
        left_out = simulate(problem, name, damping=1e-6, **small, **own)
        assert left_out.trace is not None
        assert not left_out.trace[-1].hypergradient.any()  # type: ignore[union-attr]  # a round was made
        assert left_out.history[-1]["metric_negative_curvature"] == 1.0
        assert left_out.history[-1]["metric_cg_residual"] == 1.0
        damped = simulate(problem, name, damping=1.0, **small, **own)
        assert damped.trace is not None
        assert damped.trace[-1].hypergradient.any()  # type: ignore[union-attr]
        assert damped.history[-1]["metric_negative_curvature"] == 1.0
        assert float(damped.history[-1]["metric_cg_residual"]) < 1e-8  # type: ignore[arg-type]
        problem.bend = 0.0
        convex = simulate(problem, name, damping=1e-6, **small, **own)
        assert convex.history[-1]["metric_negative_curvature"] == 0.0
        problem.bend = 2.0


@pytest.mark.parametrize("inference", ["map", "variational"])
def test_newton_reaches_a_stationary_point_of_losses_that_are_not_convex(inference: str) -> None:
    tasks, (mu, log_s) = batch(Wavy(), 6), points(9)
    o = options("ibaml", inference=inference, samples=4, **{**NEWTON, "local_steps": 40})
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
    tasks, (mu, _) = batch(Wavy(), 6), points(9)
    met, before = torch.zeros(6), tasks.losses("lower", mu)
    for K in (1, 2):
        o = options("imaml", proximal=0.1, damping=1e-9, **{**NEWTON, "local_steps": K})
        y = methods()["imaml"].adapt(tasks, mu, o).y
        met += methods()["imaml"].meta_gradient(tasks, mu, {**o, "local_steps": K - 1})[1][0]
        values = tasks.losses("lower", y) + 0.05 * ((y - mu) ** 2).sum(-1)
        assert (values < before - 1e-3).all()
        before = values
    assert met.any()


def test_laplace_variances_are_at_most_the_priors() -> None:
    problem = Concave()
    problem.bend = 0.7
    tasks, (mu, log_s) = batch(problem, 8), points(6)
    adapted = methods()["ibaml"].adapt(tasks, torch.cat([mu, log_s]), options("ibaml", inner_solver="newton"))
    entries = tasks.examples["lower"]["A"][:, 0].diagonal(dim1=-2, dim2=-1) - problem.bend
    assert (entries < 0).any()
    assert (entries > 0).any()
    assert adapted.variance is not None
    assert off(adapted.variance, 1 / (entries.clamp_min(0) + (-log_s).exp())) < 1e-12


def test_the_proximal_steps_are_minima() -> None:
    tasks, (mu, log_s) = batch(QuadraticTasks(), 3), points(6)
    draw = torch.Generator().manual_seed(3)
    for objective in (Proximal(tasks, mu, log_s.exp()), Variational(tasks, mu, log_s.exp(), 0.3, 2)):
        z = 3 * torch.randn(*objective.start().shape, generator=draw, dtype=torch.float64)
        for length in (1e-3, 0.4, 50.0):
            w = objective.step(z, length)
            assert off((z - w) / length, objective.pull(w)) < 1e-10
            assert (w[:, 6:] > 0).all()
        assert torch.equal(objective.step(z.abs(), 0.0), z.abs())


# ---- federations ----

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "imaml": ("imaml", {}),
    "imaml newton": ("imaml", {"inner_solver": "newton", "local_steps": 3}),
    "ibaml map": ("ibaml", {"upper_optimiser": "adam"}),
    "ibaml variational": ("ibaml", {"inference": "variational", "samples": 4, "inner_solver": "momentum"}),
}


def test_the_server_moves_by_the_weighted_mean_of_closed_forms() -> None:
    problem = QuadraticTasks(clients=4, tasks=1)
    problem.clients.weights[:] = [0.1, 0.2, 0.3, 0.4]
    result = simulate(problem, "imaml", iterations=1, proximal=0.5, upper_step=0.3, tasks_per_client=3, **NEWTON)
    x, _ = problem.initial(torch.Generator().manual_seed(0))
    values, h = problem.clients.lower.values, torch.zeros(6, dtype=torch.float64)
    for i, p in enumerate(problem.clients.weights):
        A, a, C, c = (values[name][i] for name in "AaCc")
        system = A + 0.5 * eye(6)
        y = torch.linalg.solve(system, A @ a + 0.5 * x)
        h += p * 0.5 * torch.linalg.solve(system, C @ (y - c))
    assert off(result.x, x - 0.3 * h) < 1e-10
    assert result.communication["rounds"] == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("problem", ["quadratic", "head"])
def test_results_do_not_depend_on_the_workers(variant: str, problem: str) -> None:
    name, own = VARIANTS[variant]
    made: Any = QuadraticTasks(clients=5) if problem == "quadratic" else Head(clients=5)
    shared = {"iterations": 2, "clients_per_round": 3, "tasks_per_client": 2, "evaluation_tasks": 10, **own}
    first, *others = (simulate(made, name, workers=workers, **shared) for workers in (1, 2, 3))
    for other in others:
        assert off(other.x, first.x) < 1e-12
        assert other.history[-1]["upper_loss"] == pytest.approx(first.history[-1]["upper_loss"], rel=1e-12)
    if problem == "head":
        assert 0 <= float(first.history[-1]["test_accuracy"]) <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision(variant: str) -> None:
    name, own = VARIANTS[variant]
    shared = {"iterations": 3, "evaluation_tasks": 10, **own}
    single, double = (simulate("quadratic_tasks", name, dtype=dtype, **shared) for dtype in ("float32", "float64"))
    assert single.x.dtype == torch.float32
    assert off(single.x.double(), double.x) < 1e-4
    assert float(single.history[-1]["metric_cg_residual"]) < 1e-5  # type: ignore[arg-type]


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
    o = options("ibaml", inference=inference, lower_step=0.5)
    method = methods()["ibaml"]
    for dtype in (torch.float32, torch.float64):
        tasks = batch(QuadraticTasks(), 3, dtype)
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


# ---- cost ----


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
    for name, start in (("imaml", x), ("ibaml", torch.cat([x, log_s]))):
        for solver in ("gd", "momentum", "newton"):
            most = []
            for K in (4, 12):
                tasks = Watched(batch(Head(), 2))
                methods()[name].meta_gradient(tasks, start, options(name, inner_solver=solver, local_steps=K))
                most.append(tasks.most)
            assert most[0] == most[1] <= 4, (name, solver)
    tasks = Watched(batch(Head(), 2))
    methods()["maml"].meta_gradient(tasks, x, options("maml", local_steps=12))
    assert tasks.most > 12


@pytest.mark.parametrize("solver", SOLVERS)
def test_passes_are_those_made_when_no_solve_stops_early(solver: str) -> None:
    x, log_s = points(9)
    own = {"inner_solver": solver, "local_steps": 2, "cg_steps": 3, "samples": 4}
    variants = (("imaml", x, {}, 1), ("ibaml", torch.cat([x, log_s]), {"inference": "map"}, 1))
    for name, start, more, draws in (*variants, ("ibaml", torch.cat([x, log_s]), {"inference": "variational"}, 4)):
        tasks = Watched(batch(Head(), 2))
        given = {key: value for key, value in own.items() if name == "ibaml" or key != "samples"}
        o = options(name, **given, **more)
        methods()[name].meta_gradient(tasks, start, o)
        made = tasks.counts
        expected = (draws * (made["lower"] + 2.0 * made["hvp"]), float(draws * made["upper"]))
        assert methods()[name].passes(o) == expected


@pytest.mark.parametrize(
    ("name", "own", "key"),
    [
        ("imaml", {"proximal": 0.0}, "proximal"),
        ("imaml", {"proximal": math.inf}, "proximal"),
        ("imaml", {"inner_solver": "adam"}, "inner_solver"),
        ("imaml", {"cg_steps": 0}, "cg_steps"),
        ("imaml", {"cg_tolerance": 0.0}, "cg_tolerance"),
        ("imaml", {"damping": -1.0}, "damping"),
        ("ibaml", {"inference": "exact"}, "inference"),
        ("ibaml", {"initial_variance": 0.0}, "initial_variance"),
        ("ibaml", {"temperature": 0.0}, "temperature"),
        ("ibaml", {"samples": 3}, "samples"),
    ],
)
def test_options_are_refused_by_name(name: str, own: dict[str, Any], key: str) -> None:
    with pytest.raises(BadInput, match=f"options.{key}: got .*; allowed"):
        simulate("quadratic_tasks", name, iterations=1, **own)

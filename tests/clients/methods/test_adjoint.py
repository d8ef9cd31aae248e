"""A-MAML against closed forms, solves of the sensitivity equation by scipy, and autograd through solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch.func import grad, jacrev

from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from tests.agreement import relative
from tests.problem_table import Quartic, Softmax
from tests.runs import meta_gradient, of_task, tasks_of


def exact_quadratic(batch, x, T):
    """exp(-A T) C (y(T) - c) with y(T) = a + exp(-A T) (x - a)."""
    found = []
    for b in range(len(batch)):
        A, a = (batch.tasks.support[k][b, 0].numpy() for k in "Aa")
        C, c = (batch.tasks.query[k][b, 0].numpy() for k in "Cc")
        flow = expm(-A * T)
        found.append(flow.T @ C @ (a + flow @ (x.numpy() - a) - c))
    return torch.from_numpy(np.stack(found))


def exact_softmax(batch, x, T):
    """The sensitivity dy(T)/dx [d, d] by scipy, against which grad f(y(T)) is multiplied."""
    found = []
    d = len(x)
    for b in range(len(batch)):
        lower, upper = of_task(batch, b)
        slope, second = grad(lower), jacrev(grad(lower))

        def rate(t, state, slope=slope, second=second):
            y, P = torch.from_numpy(state[:d].copy()), torch.from_numpy(state[d:].reshape(d, d).copy())
            return np.concatenate([-slope(y).numpy(), -(second(y) @ P).numpy().ravel()])

        start = np.concatenate([x.numpy(), np.eye(d).ravel()])
        end = solve_ivp(rate, (0, T), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        found.append(torch.from_numpy(end[d:].reshape(d, d).T @ grad(upper)(torch.from_numpy(end[:d])).numpy()))
    return torch.stack(found)


@pytest.fixture(scope="module")
def softmax():
    batch, x = tasks_of(Softmax(2), 2, seed=3)
    return batch, x, exact_softmax(batch, x, 2.0)


@pytest.mark.parametrize("problem", [QuadraticTasks(), Softmax(2)], ids=["quadratic", "softmax"])
@pytest.mark.parametrize("steps", [1, 7])
def test_euler_steps_are_maml_to_rounding(problem, steps):
    batch, x = tasks_of(problem, 2, seed=3)
    expected = meta_gradient("maml", batch, x, local_steps=steps, lower_step=0.3)
    same = meta_gradient("a-maml", batch, x, solver="euler", local_steps=steps, lower_step=0.3)
    other = meta_gradient("a-maml", batch, x, solver="euler", ode_steps=steps, horizon=0.3 * steps, local_steps=50)
    assert relative(same, expected) < 1e-12
    assert relative(other, expected) < 1e-12


def test_midpoint_is_autograd_through_its_own_steps():
    batch, x = tasks_of(Softmax(2), 2, seed=3)
    found = meta_gradient("a-maml", batch, x, solver="midpoint", ode_steps=4, horizon=3.0)
    for b in range(len(batch)):
        lower, upper = of_task(batch, b)

        def through(x, lower=lower, upper=upper):
            for _ in range(4):
                x = x - 0.75 * grad(lower)(x - 0.375 * grad(lower)(x))
            return upper(x)

        assert relative(found[b], grad(through)(x)) < 1e-12


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize("adjoint", ["stored", "backward"])
def test_quadratic_meta_gradients_are_the_matrix_exponential(solver, adjoint):
    batch, x = tasks_of(QuadraticTasks(clients=3, dim=5), 2, seed=3)
    for T in (0.5, 4.0):
        found = meta_gradient(
            "a-maml", batch, x, solver=solver, horizon=T, ode_steps=40, adjoint=adjoint, rtol=1e-9, atol=1e-10
        )
        assert relative(found, exact_quadratic(batch, x, T)) < 1e-6


def test_softmax_meta_gradients_are_the_sensitivity_equation(softmax):
    batch, x, expected = softmax
    assert relative(meta_gradient("a-maml", batch, x, horizon=2.0, ode_steps=40), expected) < 1e-6
    tight = meta_gradient("a-maml", batch, x, horizon=2.0, solver="dopri5", rtol=1e-9, atol=1e-10)
    assert relative(tight, expected) < 1e-6


def order(error):
    """The slope of log error against log step where the step is halved."""
    return math.log2(error(32) / error(64))


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_order_of_convergence(softmax, solver, expected):
    batch, x, exact = softmax
    found = order(lambda n: relative(meta_gradient("a-maml", batch, x, solver=solver, horizon=2.0, ode_steps=n), exact))
    assert found == pytest.approx(expected, abs=0.2)
    batch, x = tasks_of(QuadraticTasks(clients=3, dim=5), 2, seed=3)
    exact = exact_quadratic(batch, x, 4.0)
    found = order(lambda n: relative(meta_gradient("a-maml", batch, x, solver=solver, horizon=4.0, ode_steps=n), exact))
    assert found == pytest.approx(expected, abs=0.2)


@pytest.mark.slow
@pytest.mark.beside
def test_stored_states_stay_exact_where_running_backwards_breaks_down():
    """Here u(T)^2 = u^2 e / (1 + u^2 (1 - e)), e = exp(-2T), and dy(T)/dx = L'(y(T)) / L'(x)."""
    batch, x = tasks_of(Quartic(clients=1, dim=3), 1, seed=3)

    def error(adjoint, T, steps):
        u, e = x - 1, math.exp(-2 * T)
        end = u * (e / (1 + u**2 * (1 - e))).sqrt()
        expected = batch.gradient("upper", 1 + end) * (end + end**3) / (u + u**3)
        return relative(meta_gradient("a-maml", batch, x, adjoint=adjoint, horizon=T, ode_steps=steps), expected)

    assert error("stored", 40.0, 400) < 1e-4
    assert error("backward", 12.0, 144) < 1e-4
    assert not error("backward", 40.0, 240) < 0.1


def test_a_flow_of_no_length_is_the_start():
    batch, x = tasks_of(QuadraticTasks(), 2, seed=3)
    for solver in ("rk4", "euler", "dopri5"):
        found = meta_gradient("a-maml", batch, x, solver=solver, lower_step=0.0)
        assert relative(found, batch.gradient("upper", x)) < 1e-14

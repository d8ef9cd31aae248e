"""COMLN against autograd through an accurate solve of the head's flow, and solves by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.func import grad

from clients.methods import methods
from fedbilevel import simulate
from tests.agreement import relative
from tests.problem_table import BODY, HEAD, Softmax, with_horizon
from tests.runs import meta_gradient, of_task, settings, tasks_of


def through_head(batch, x, steps=100):
    """Autograd in (parameters, log T) through so many classical RK4 steps of the head's weights, task by task."""
    found = []
    for b in range(len(batch)):
        lower, upper = of_task(batch, b)

        def loss(x, lower=lower, upper=upper):
            body, w, h = x[:BODY], x[BODY:-1], x[-1].exp() / steps
            slope = grad(lambda w: lower(torch.cat([body, w])))
            for _ in range(steps):
                k1 = slope(w)
                k2 = slope(w - h / 2 * k1)
                k3 = slope(w - h / 2 * k2)
                w = w - h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(w - h * k3))
            return upper(torch.cat([body, w]))

        found.append(grad(loss)(x))
    return torch.stack(found)


def test_comln_is_autograd_through_an_accurate_solve_of_the_head():
    batch, x = tasks_of(Softmax(2), 1, seed=3)
    x = with_horizon(x, 3.0)
    expected = through_head(batch, x)
    for options in ({"ode_steps": 200}, {"solver": "dopri5", "rtol": 1e-10, "atol": 1e-12}):
        found = meta_gradient("comln", batch, x, initial_horizon=3.0, **options)
        assert relative(found, expected) < 1e-8
        assert relative(found[:, -1], expected[:, -1]) < 1e-8
    fixed = meta_gradient("comln", batch, x, initial_horizon=3.0, ode_steps=200, learn_horizon=False)
    assert torch.equal(fixed[:, -1], torch.zeros_like(fixed[:, -1]))
    assert relative(fixed[:, :-1], expected[:, :-1]) < 1e-8


def test_comln_learns_the_horizon_along_the_product_of_the_two_gradients():
    batch, x = tasks_of(Softmax(2), 2, seed=3)
    found = meta_gradient("comln", batch, with_horizon(x, 2.0), initial_horizon=2.0, ode_steps=200)[:, -1]
    o = settings("comln", initial_horizon=2.0, ode_steps=200)
    y = methods()["comln"].adapt(batch, with_horizon(x, 2.0), o).y
    product = (batch.gradient("lower", y) * batch.gradient("upper", y))[:, BODY:].sum(1)
    assert relative(found, -2.0 * product) < 1e-10


def test_comln_adapts_the_head_by_its_gradient_flow():
    batch, x = tasks_of(Softmax(2), 2, seed=3)
    y = methods()["comln"].adapt(batch, with_horizon(x, 2.5), settings("comln", ode_steps=100, initial_horizon=2.5)).y
    for b in range(len(batch)):
        lower, _ = of_task(batch, b)

        def rate(t, w, lower=lower):
            return -grad(lower)(torch.cat([x[:BODY], torch.from_numpy(w.copy())])).numpy()[BODY:]

        exact = solve_ivp(rate, (0, 2.5), x[BODY:].numpy(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        assert torch.equal(y[b, :BODY], x[:BODY])
        assert np.allclose(y[b, BODY:].numpy(), exact, rtol=1e-8, atol=1e-10)


def test_comln_keeps_the_length_of_its_steps_as_the_horizon_grows():
    """Twice the horizon in steps of the same length is the flow of twice as many steps."""
    batch, x = tasks_of(Softmax(2), 2, seed=3)
    grown = meta_gradient("comln", batch, with_horizon(x, 2.0), initial_horizon=1.0, ode_steps=5)
    given = meta_gradient("comln", batch, with_horizon(x, 2.0), initial_horizon=2.0, ode_steps=10)
    coarse = meta_gradient("comln", batch, with_horizon(x, 2.0), initial_horizon=2.0, ode_steps=5)
    assert torch.equal(grown, given)
    assert relative(coarse, grown) > 1e-7


def test_comln_runs_and_learns():
    result = simulate(
        Softmax(), "comln", iterations=20, upper_step=0.3, initial_horizon=1.0, ode_steps=5, evaluation_tasks=20
    )
    assert result.x.shape == (BODY + HEAD + 1,)
    assert result.history[-1]["test_loss"] < result.history[0]["test_loss"]
    assert result.history[-1]["metric_horizon"] != result.history[1]["metric_horizon"]
    still = simulate(Softmax(), "comln", iterations=2, initial_horizon=1.5, learn_horizon=False, evaluation_tasks=5)
    assert float(still.x[-1].exp()) == pytest.approx(1.5, rel=1e-14)

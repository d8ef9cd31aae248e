"""COMLN against autograd through an accurate solve of the head's flow, and solves by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.func import grad

from clients.methods import methods
from fedbilevel import simulate
from fedbilevel.data.federated import federate
from fedbilevel.errors import BadInput
from fedbilevel.problems.tasks.personal_representation import PersonalRepresentation
from server.kit.algorithm import find
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


class Regularised(Softmax):
    """The head, or the way from x, is penalised on the support set."""

    of = "head"

    def lower(self, x, y, examples):
        penalised = y[BODY:] if self.of == "head" else y - x
        return super().lower(x, y, examples) + 0.05 * penalised.square().sum()


class Elsewhere(Softmax):
    """What is penalised is on the query set, which the flow does not read."""

    def upper(self, x, y, examples):
        return super().lower(x, y, examples) + 0.05 * y.square().sum()


@pytest.mark.parametrize("of", ["head", "way"])
def test_a_regulariser_of_the_support_loss_is_refused_in_one_line(of):
    """The flow in sample space is that of the cross-entropy, and would leave it out."""
    problem = Regularised(3)
    problem.of = of
    with pytest.raises(BadInput) as caught:
        simulate(problem, "comln", iterations=1)
    said = str(caught.value)
    assert said.startswith("algorithm: got 'comln'; allowed: ")
    assert "whose support loss is the mean cross-entropy alone, without a regulariser" in said
    assert "\n" not in said
    assert "r2d2" in said.split("one of ")[1]
    assert "comln" not in said.split("one of ")[1]
    for fine in (Softmax(3), Elsewhere(3)):
        simulate(fine, "comln", iterations=1, evaluation_tasks=3)


def test_a_personal_head_with_a_penalty_is_refused_and_without_one_is_not():
    data = federate(clients=2, partition_name="iid")
    for l2 in (0.0, 0.001):
        problem = PersonalRepresentation(data, hidden=[3], support=3, queries=3, l2=l2)
        assert find("comln").served(problem) == (l2 == 0.0)

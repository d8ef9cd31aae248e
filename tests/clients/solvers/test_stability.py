"""Steps that are too long for a flow: refused with the bound, or reported."""

from __future__ import annotations

import re

import pytest
import torch

from clients.methods import methods
from clients.solvers.stability import UnstableFlow, curvature
from fedbilevel import simulate
from fedbilevel.errors import ClientFailed
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from tests.agreement import relative
from tests.problem_table import Linear, Softmax, with_horizon
from tests.runs import meta_gradient, settings, tasks_of


@pytest.mark.parametrize(("solver", "limit"), [("euler", 2.0), ("midpoint", 2.0), ("rk4", 2.785)])
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_unstable_steps_are_refused_with_the_stable_bound(solver, limit, steps):
    problem = QuadraticTasks(clients=3, dim=5, mu=0.1, L=1.2)
    batch, x = tasks_of(problem, 2, seed=3)
    largest = float(torch.linalg.eigvalsh(batch.tasks.support["A"]).max())
    with pytest.raises(UnstableFlow) as refused:
        meta_gradient("a-maml", batch, x, solver=solver, horizon=5.0 * steps, ode_steps=steps)
    said = str(refused.value)
    assert f"step h = 5 of the {solver} flow is unstable" in said
    bound = float(re.search(r"stable below ([\d.]+);", said)[1])
    assert bound == pytest.approx(limit / largest, rel=0.1)
    # just below the bound it runs, and what adapts says the same
    meta_gradient("a-maml", batch, x, solver=solver, horizon=0.95 * limit / largest * steps, ode_steps=steps)
    with pytest.raises(UnstableFlow, match="stable below"):
        methods()["a-maml"].adapt(batch, x, settings("a-maml", solver=solver, horizon=5.0 * steps, ode_steps=steps))


def test_a_flow_that_leaves_the_finite_numbers_is_refused_whatever_the_curvature():
    class Cliff(QuadraticTasks):
        def lower(self, x, y, examples):
            return torch.where(y > 0, y * y, torch.inf * y).sum().expand(1)

    batch, x = tasks_of(Cliff(dim=2), 2, seed=3)
    with pytest.raises(UnstableFlow, match="leaves the finite numbers"):
        meta_gradient("a-maml", batch, x.abs() + 1, horizon=2.4, ode_steps=2, solver="euler")


def test_curvature_is_the_largest_eigenvalue_also_where_a_negative_one_is_larger():
    batch, x = tasks_of(Linear([-3.0, -1.5, 0.0, 1.5]), 2, seed=3)
    assert torch.allclose(curvature(batch, batch.spread(x), batch.spread(x)), torch.tensor(1.5).double(), rtol=0.05)


def test_a_slope_that_may_grow_is_no_instability():
    """Away from a saddle |grad L| grows, and the flow is right all the same."""
    batch, x = tasks_of(Linear([-1.0, 0.5, 0.5]), 2, seed=3)
    found = methods()["a-maml"].adapt(batch, x, settings("a-maml", horizon=2.0, ode_steps=40)).y
    exact = x * torch.exp(-2.0 * torch.tensor([-1.0, 0.5, 0.5], dtype=x.dtype))
    assert torch.allclose(found, exact.expand_as(found), rtol=1e-5)


@pytest.mark.parametrize(("step", "share"), [(0.5, 0.0), (5.0, 1.0)])
def test_steps_too_long_may_be_reported_and_the_gradient_is_that_of_the_steps_made(step, share):
    flat = QuadraticTasks(clients=3, mu=0.9, L=1.0)
    common = {"iterations": 1, "lower_step": step, "local_steps": 3, "trace": True, "upper_step": 0.0, "seed": 2}
    maml = simulate(flat, "maml", **common)
    euler = simulate(flat, "a-maml", solver="euler", unstable="report", **common)
    assert euler.history[-1]["metric_unstable"] == pytest.approx(share, rel=1e-12)
    expected = maml.trace[0].hypergradient
    assert relative(euler.trace[0].hypergradient, expected) < 1e-12
    if share:
        with pytest.raises(ClientFailed, match="unstable"):
            simulate(flat, "a-maml", solver="euler", **common)
    else:
        strict = simulate(flat, "a-maml", solver="euler", **common)
        assert torch.equal(strict.trace[0].hypergradient, euler.trace[0].hypergradient)


def test_comln_refuses_unstable_steps_and_horizons_without_end():
    batch, x = tasks_of(Softmax(2, scale=20.0), 2, seed=3)
    with pytest.raises(UnstableFlow, match=r"of the rk4 flow is unstable.*stable below"):
        meta_gradient("comln", batch, with_horizon(x, 4000.0), initial_horizon=4000.0, ode_steps=10)
    with pytest.raises(UnstableFlow, match="learned horizon"):
        meta_gradient("comln", batch, with_horizon(x, 1e9), initial_horizon=1.0)

"""Temperatures against closed forms and a second minimiser."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from clients.methods import methods
from clients.methods.method import Adapted
from clients.tasks import TaskBatch
from fedbilevel.problems.tasks.sinusoid import Sinusoid
from server.kit.predictive import Classes, Curves, Predictive, mixture, predict
from server.uncertainty.scaling import WIDEST, chosen_factor, fitted_temperature, tempered


def minimised(predictive: Predictive) -> float:
    def cost(log: float) -> float:
        return float(predictive.scaled(math.exp(log)).nll.mean())

    return math.exp(minimize_scalar(cost, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x)


def test_logits_that_are_three_times_too_long() -> None:
    # seven of ten labels are 0, of which the truth says 0.7; the logits are three times those of the truth
    log_p = (3 * torch.tensor([0.7, 0.3], dtype=torch.float64).log()).log_softmax(-1).expand(1, 10, 2)
    label = torch.tensor([[0] * 7 + [1] * 3])
    assert fitted_temperature(Classes(log_p, label)) == pytest.approx(3.0)
    torch.testing.assert_close(Classes(log_p, label).scaled(3.0).log_p[0, 0].exp(), torch.tensor([0.7, 0.3]).double())


@pytest.mark.parametrize("stretch", [0.3, 1.0, 4.0])
def test_the_minimum_is_that_of_another_minimiser(stretch: float) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 6, 4, generator=draw, dtype=torch.float64)
    label = torch.distributions.Categorical(logits=logits).sample()
    classes = Classes((stretch * logits).log_softmax(-1), label)
    assert fitted_temperature(classes) == pytest.approx(minimised(classes), rel=1e-5)
    mean, variance = torch.randn(40, 6, generator=draw), torch.rand(40, 6, generator=draw) + 0.2
    curves = Curves(mean, variance, mean + stretch * torch.randn(40, 6, generator=draw))
    assert fitted_temperature(curves) == pytest.approx(minimised(curves), rel=1e-4)


def test_what_has_no_best_temperature_gets_the_last() -> None:
    log_p = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]).log()
    assert fitted_temperature(Classes(log_p, torch.tensor([[0, 1]]))) == pytest.approx(math.exp(-WIDEST))
    assert fitted_temperature(Classes(log_p, torch.tensor([[1, 0]]))) == pytest.approx(math.exp(WIDEST))
    exact = Curves(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2))
    assert fitted_temperature(exact) == pytest.approx(math.exp(-WIDEST))


def test_a_scaled_distribution_is_the_power_normalised() -> None:
    grid = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    one = Curves(torch.full((20_001,), 0.5).double(), torch.full((20_001,), 2.0).double(), grid)
    power = (-one.nll / 3.0).exp()
    expected = power / (power.sum() * (grid[1] - grid[0]))
    torch.testing.assert_close((-one.scaled(3.0).nll).exp(), expected, atol=1e-9, rtol=1e-6)


def test_mixtures_by_hand() -> None:
    label = torch.tensor([[0]])
    classes = [Classes(torch.tensor([[p]]).log(), label) for p in ([0.9, 0.1], [0.5, 0.5])]
    found = mixture(classes)
    assert isinstance(found, Classes)
    torch.testing.assert_close(found.log_p.exp(), torch.tensor([[[0.7, 0.3]]]))
    of = torch.tensor([[1.0]])
    both = mixture([Curves(torch.tensor([[m]]), torch.tensor([[v]]), of) for m, v in ((1.0, 0.5), (3.0, 1.5))])
    assert isinstance(both, Curves)
    # E y = 2, Var y = E v + Var m = 1 + 1
    assert (float(both.mean), float(both.variance)) == (2.0, 2.0)


def test_the_factor_with_the_least_likelihood_is_taken_and_what_is_not_finite_never() -> None:
    label = torch.zeros(1, 3)
    said = [Curves(label + m, torch.ones(1, 3), label) for m in (math.nan, 2.0, 0.5, 1.0)]
    assert chosen_factor(said, (1.0, 2.0, 3.0, 4.0)) == 3.0


def test_a_tempered_posterior_is_that_of_another_temperature() -> None:
    problem = Sinusoid(clients=2, shots=3, hidden=[8], activation="tanh", noise=0.3)
    x = problem.initial(torch.Generator().manual_seed(0))[0].double()
    method = methods()["ibaml"]
    inner = {"inner_solver": "gd", "lower_step": 0.01, "local_steps": 20}
    settings: dict[str, Any] = {"inference": "map", "samples": 8, **inner}

    def at(factor: float) -> tuple[TaskBatch, Adapted]:
        prior = torch.cat([x, torch.full_like(x, math.log(0.01 * factor))])
        batch = TaskBatch(problem, problem.test_tasks(4), method.parameters(prior))
        with torch.no_grad():
            return batch, method.adapt(batch, prior, settings | {"temperature": 0.02 * factor})

    (batch, one), (_, other) = at(1.0), at(30.0)
    again = tempered(one, 30.0)
    assert again.variance is not None
    assert other.variance is not None
    torch.testing.assert_close(again.y, other.y)
    torch.testing.assert_close(again.variance, other.variance)
    assert np.isfinite(float(predict(batch, again).nll.mean()))
    assert tempered(Adapted(one.y), 30.0).variance is None

"""Lost answers, unbiased weights: every method goes where it went, and a step that is halved wears the noise off."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from fedbilevel.problems import MinimaxQuadratic, Quadratic
from server.kit.algorithm import find
from server.running.run import Result
from tests.runs import traced

pytestmark = [pytest.mark.slow, pytest.mark.beside, pytest.mark.timeout(300)]
DROPOUT: dict[str, Any] = {"systems": {"dropout": 0.3}, "weighting": "unbiased"}
OPTIONS = {
    "upper_step": 0.06,
    "lower_step": 0.8,
    "neumann_step": 0.8,
    "lower_rounds": 1,
    "neumann_terms": 2,
    "accounting": "merged",
    "warm_start": True,
    "upper_local_steps": 0,
}
"""About 0.4 / L of F, whose curvature lies between 3.3 and 6.5; few rounds an iteration."""
NAMES = [
    *("simfbo", "shrofbo", "br-fedbi", "fedbio", "aggitd", "fednest", "fednest-sgd", "f2sa", "memfbo", "joint"),
    *("fedgda", "fed-optimistic", "fed-extragradient", "fednest-minimax"),
]


@functools.cache
def problem(minimax: bool) -> Any:
    """Twenty unlike clients, of whom fourteen answer in the mean; well conditioned."""
    shape: dict[str, Any] = {"clients": 20, "dim_x": 2, "dim_y": 3, "examples": 3, "weights": "uniform", "seed": 3}
    if minimax:
        return MinimaxQuadratic(**shape)
    return Quadratic(mu=0.6, rho=3.0, heterogeneity=0.5, **shape)


def run(name: str, iterations: int, **told: Any) -> Result:
    takes = find(name).options.model_fields
    options = {key: value for key, value in OPTIONS.items() if key in takes}
    minimax = find(name).lower == "minimax"
    if minimax:
        options |= {"upper_step": 0.2, "lower_step": 0.2}
    return traced(problem(minimax), name, iterations, solution_every=0, **(options | told))


@functools.cache
def polite(name: str) -> Result:
    """Where everybody answers, to its end."""
    return run(name, 1000 if find(name).lower == "minimax" else 300)


def distance(name: str, iterations: int, last: int, **told: Any) -> float:
    """The mean distance to where the polite run ends, from which it begins, over the last iterations."""
    star = polite(name)
    trace = run(name, iterations, seed=1, x0=star.x, y0=star.y, **DROPOUT, **told).trace
    assert trace is not None
    return sum(float((entry.x - star.x).norm()) for entry in trace[-last:]) / last


@pytest.mark.parametrize("name", NAMES)
def test_halving_steps_wear_the_noise_off(name: str) -> None:
    """The distance falls to a tenth of its floor at constant steps."""
    floor = distance(name, 300, 200)
    halved = distance(name, 1400, 100, upper_schedule="halving", upper_period=175)
    assert 1e-3 < floor < 1.0
    assert halved <= floor / 10


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_seeds_does_not_drift(name: str) -> None:
    """Twenty seeds: the mean of x is no further from the polite run's than 3.5 of its standard errors."""
    star = polite(name)
    told: dict[str, Any] = {"x0": star.x, "y0": star.y, **DROPOUT}
    ends = torch.stack([run(name, 60, seed=seed, **told).x for seed in range(20)]) - star.x
    error = ends.std(0) / len(ends) ** 0.5
    assert float(error.max()) > 0.0
    assert (ends.mean(0).abs() <= 3.5 * error).all()

"""Lost answers, unbiased weights: every method goes where it went, and a step that is halved wears the noise off."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from fedbilevel.problems import MinimaxQuadratic, Quadratic
from server.kit.algorithm import find
from server.running.run import Result
from tests.algorithm_table import SHARED
from tests.algorithm_table.row import STEPS, Options
from tests.runs import traced

pytestmark = [pytest.mark.slow, pytest.mark.beside, pytest.mark.timeout(600)]
DROPOUT: dict[str, Any] = {"systems": {"dropout": 0.3}, "weighting": "unbiased"}
ALPHA = 0.1
QUICK = {"lower_rounds": 2, "neumann_terms": 2, "accounting": "merged", "local_steps": 1, "upper_local_steps": 1}
"""A round or two per iteration, wherever a method lets one choose."""
NAMES = sorted(set(SHARED) - {"aggitd-aq", "aggitd-s", "oadagrad", "bome"})
"""But those whose step on x does not shrink with alpha, or mixes the noise of several iterations."""


def options_of(name: str, **more: Any) -> Options:
    told = {**STEPS, **QUICK, "upper_step": ALPHA, **more}
    return {key: value for key, value in told.items() if key in find(name).options.model_fields}


@functools.cache
def problem(minimax: bool) -> Any:
    """Twenty unlike clients: fourteen answer in the mean."""
    kind = MinimaxQuadratic if minimax else Quadratic
    return kind(clients=20, dim_x=3, dim_y=4, examples=3, weights="uniform", seed=3)


def run(name: str, iterations: int, seed: int = 0, more: Options | None = None, **told: Any) -> Result:
    return traced(
        problem(find(name).lower == "minimax"), name, iterations, seed=seed, **told, **options_of(name, **(more or {}))
    )


def distances(result: Result, star: Tensor) -> list[float]:
    assert result.trace is not None
    return [float((entry.x - star).norm()) for entry in result.trace]


@pytest.mark.parametrize("name", NAMES)
def test_halving_steps_wear_the_noise_off(name: str) -> None:
    """The distance to where the polite run ends falls to a tenth of its floor at constant steps."""
    polite = run(name, 1200)
    star = polite.x
    told = {"seed": 1, "x0": star, "y0": polite.y, **DROPOUT}
    constant = distances(run(name, 400, **told), star)
    floor = sum(constant[200:]) / 200
    halved = distances(run(name, 1000, more={"upper_schedule": "halving", "upper_period": 80}, **told), star)
    assert 1e-4 < floor < 1.0
    assert sum(halved[-50:]) / 50 <= floor / 10


@pytest.mark.parametrize("name", ["simfbo", "aggitd", "fednest", "memfbo", "fedgda"])
def test_the_mean_over_seeds_does_not_drift(name: str) -> None:
    """Twenty seeds: the mean of x is no further from the polite run's than three of its standard errors."""
    polite = run(name, 1200)
    told = {"x0": polite.x, "y0": polite.y, **DROPOUT}
    ends = torch.stack([run(name, 150, seed=seed, **told).x for seed in range(20)]) - polite.x
    error = ends.std(0) / len(ends) ** 0.5
    assert (ends.mean(0).abs() <= 3.5 * error + 1e-12).all()

"""Lost answers, unbiased weights: every method goes where it went, and halving steps wear the noise off."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from fedbilevel.problems import MinimaxQuadratic, Quadratic
from server.kit.algorithm import algorithms, find
from server.running.run import Result
from tests.runs import traced

pytestmark = [pytest.mark.slow, pytest.mark.beside, pytest.mark.timeout(300)]
DROPOUT: dict[str, Any] = {"systems": {"dropout": 0.3}, "weighting": "unbiased"}
OPTIONS = {
    "upper_step": 0.14,
    "lower_step": 1.2,
    "neumann_step": 1.2,
    "lower_rounds": 1,
    "neumann_terms": 2,
    "accounting": "merged",
    "warm_start": True,
    "upper_local_steps": 0,
}
"""About 0.7 / L of F, whose curvature lies between 3.3 and 5.3; few rounds an iteration."""
MINIMAX = {"upper_step": 0.4, "lower_step": 0.6}
LONG = {"upper_step": 0.2}
"""Of methods whose hypergradient is of the iteration's own y: they bear 1 / L."""
LOCAL = {**LONG, "upper_local_steps": 1}
"""Of methods whose step on x is the clients' own."""
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("fednest", "fednest-sgd", "f2sa"), LONG),
    **dict.fromkeys(("lfednest", "lfednest-svrg", "fedavg-alternating"), LOCAL),
    # N' is one of 0, ..., N-1: the mean of what is drawn is the sum of N terms, of which fednest-sgd has N + 1
    "fedmbo": {**LONG, "neumann_terms": 3},
    # c is constant here, where its theory has it fall with the squared step: a c of 0.1 takes noise off constant steps,
    # and none off those that vanish
    "fedbioacc": {"momentum_decay": 0.5},
    # heavier momenta turn around the solution for longer than a run of 25 iterations
    "br-fedbi momentum": {"variant": "momentum", "momentum": 0.3, "upper_step": 0.06},
    "br-fedbi page": {"variant": "page"},
    "aggitd-s": {"upper_beta1": 0.3, "upper_step": 0.06},
    # near the longest steps that a saddle point bears, the noise has rare and large swings
    "fed-optimistic": {"upper_step": 0.2, "lower_step": 0.3},
    # the curvature of y is twice as large here: f and g are added up
    "joint": {**LONG, "lower_step": 0.8},
}
"""Settings that are not everybody's; a second word names a variant."""
PERIODS = {"aggitd-s": 200}
"""After how many iterations steps are halved, where it is not 150; nine times in all."""
ENDS = {"fedmbo": "fednest-sgd"}
"""Whose polite end is that of a method without its random numbers."""
SEEDS = range(200, 220)
"""By chance 3.5 standard errors of twenty runs are passed in one coordinate of four hundred, and there are a hundred:
what fails with other seeds is to be looked at with fresh ones before it is called a drift."""
NAMES = [
    *("fednest", "fednest-sgd", "lfednest", "lfednest-svrg", "fedmbo", "aggitd", "aggitd-s", "f2sa", "memfbo"),
    *("simfbo", "shrofbo", "fedbio", "fedbioacc", "br-fedbi", "br-fedbi momentum", "br-fedbi page"),
    *("joint", "fedavg-alternating"),
    *("fedgda", "fedgda-gt", "fed-optimistic", "fed-extragradient", "fednest-minimax"),
]
UNSCHEDULED = {
    "oadagrad": "no schedule: its divisors grow like the root of k; 0.156 off at first, 0.065 after 900 iterations and "
    "0.047 after 3600",
    "aggitd-aq": "no schedule, and made for deterministic problems, as it remarks: mixing takes noise for curvature; "
    "0.034 off at first, 0.053 after 900 iterations and 0.042 after 3600",
}
DRIFTING = {
    "bome": "its multiplier is a quotient of means, which noise moves: with halving steps three seeds end 0.076, "
    "0.074 and 0.065 from where the polite run ends by the same schedule, their mean 0.072, of a floor of 0.112",
    "stochastic-bilevel": "its Langevin chains have noise of their own, which has no end and hides that of lost "
    "answers: 0.32 off x* with every answer, 0.33 with lost ones",
}
EXCUSED = UNSCHEDULED | DRIFTING
"""Why a method is not held to the tenth, with what was measured on this problem; those that drift to neither test."""


def test_every_method_of_a_common_lower_level_is_held_to_it_or_excused() -> None:
    """Registered, and in one of both tables."""
    held = {name.split()[0] for name in NAMES}
    assert held | set(EXCUSED) == set(algorithms("minimax"))
    assert not held & set(EXCUSED)


@functools.cache
def problem(minimax: bool) -> Any:
    """Twenty unlike clients, of whom fourteen answer in the mean; well conditioned."""
    shape: dict[str, Any] = {"clients": 20, "dim_x": 4, "examples": 2, "weights": "uniform", "mu": 0.6, "seed": 39}
    return MinimaxQuadratic(dim_y=4, **shape) if minimax else Quadratic(dim_y=8, rho=3.0, heterogeneity=0.5, **shape)


def run(name: str, iterations: int, **told: Any) -> Result:
    entry = find(name.split()[0])
    takes, minimax = entry.options.model_fields, entry.lower == "minimax"
    options = {key: value for key, value in OPTIONS.items() if key in takes}
    options |= {**(MINIMAX if minimax else {}), **OWN.get(name, {})}
    return traced(problem(minimax), entry.name, iterations, solution_every=0, **options, **told)


@functools.cache
def polite(name: str) -> Result:
    """Where everybody answers, to its end."""
    return run(ENDS.get(name, name), 150)


def lossy(name: str, iterations: int, seed: int, **told: Any) -> Result:
    """From where the polite run ends, with answers that are lost."""
    star = polite(name)
    return run(name, iterations, seed=seed, x0=star.x, y0=star.y, **DROPOUT, **told)


@functools.cache
def ends(name: str) -> Tensor:
    """Of twenty seeds, constant steps: where x is after 25 iterations, off the end of the polite run [20, dx]."""
    return torch.stack([lossy(name, 25, seed).x for seed in SEEDS]) - polite(name).x


@pytest.mark.parametrize("name", NAMES)
def test_halving_steps_wear_the_noise_off(name: str) -> None:
    """The distance to where the polite run ends falls to a tenth of its floor, the mean at constant steps."""
    floor = float(ends(name).norm(dim=1).mean())
    period = PERIODS.get(name, 150)
    trace = lossy(name, 9 * period, seed=1, upper_schedule="halving", upper_period=period).trace
    assert trace is not None
    left = sum(float((entry.x - polite(name).x).norm()) for entry in trace[-100:]) / 100
    assert 1e-3 < floor < 1.0
    assert left <= floor / 10


@pytest.mark.filterwarnings("ignore:aggitd-aq:UserWarning")
@pytest.mark.parametrize("name", [*NAMES, *UNSCHEDULED])
def test_the_mean_over_seeds_does_not_drift(name: str) -> None:
    """Twenty seeds: the mean of x is no further from the polite run's than 3.5 of its standard errors."""
    error = ends(name).std(0) / len(ends(name)) ** 0.5
    assert float(error.max()) > 0.0
    assert (ends(name).mean(0).abs() <= 3.5 * error).all()

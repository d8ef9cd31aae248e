"""Results do not depend on how clients are spread over workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedbilevel import BadInput, simulate
from server.kit.algorithm import algorithms, find
from server.running.run import Result
from tests.differentiable import near
from tests.federations import PLAYERS, PROBLEM


def everything(name: str, problem: Any, workers: int, **settings: Any) -> Result:
    options = {"lower_step": 0.2, "lower_rounds": 2, "neumann_terms": 3, "upper_step": 0.1}
    steps = {"local_steps": {"low": 1, "high": 4}, "upper_local_steps": {"epochs": 1}}
    settings = {"evaluate_every": 10**9, "batch": 2, "gradient_batch": 3, "clients_per_round": 5, "seed": 2, **settings}
    return simulate(problem, name, iterations=3, workers=workers, dtype="float64", **settings, **options, **steps)


@pytest.mark.filterwarnings("ignore:aggitd-aq. mixing takes the noise")
@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("name", sorted(algorithms("minimax")))
def test_results_do_not_depend_on_the_number_of_workers(name: str, weighting: str) -> None:
    """With minibatches, unequal local steps, and sampled clients of whom not all are there."""
    network = {"spread": 0.5}
    settings = {"weighting": weighting, "systems": {"availability": 0.8, "network": network}}
    problem = PLAYERS if find(name).lower == "minimax" else PROBLEM
    one = everything(name, problem, 1, **settings)
    for workers in (2, 3, 7):
        other = everything(name, problem, workers, **settings)
        near(other.x, one.x, 1e-12)
        near(other.y, one.y, 1e-12)
        assert other.communication == one.communication
    full_batch = everything(name, problem, 1, batch="full", gradient_batch="full", **settings)
    assert not torch.allclose(full_batch.y, one.y)


@pytest.mark.parametrize("variant", ["momentum", "page"])
def test_what_clients_keep_is_theirs_on_whatever_worker(variant: str) -> None:
    """Five of seven are asked, so that in later rounds some have kept something and others have not."""
    one, three = (everything("br-fedbi", PROBLEM, workers, variant=variant) for workers in (1, 3))
    near(three.x, one.x, 1e-12)
    near(three.y, one.y, 1e-12)
    assert not torch.allclose(everything("br-fedbi", PROBLEM, 1).x, one.x)


def test_no_workers_are_refused() -> None:
    with pytest.raises(BadInput, match="workers: got 0"):
        everything("fednest", PROBLEM, 0)


def test_there_may_be_more_workers_than_clients() -> None:
    near(everything("fednest", PROBLEM, 9).x, everything("fednest", PROBLEM, 1).x, 1e-12)

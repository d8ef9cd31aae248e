"""Runs of a directory held against unseen tasks: what a history says of them too, ensembles, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.cli import main
from fedbilevel.errors import BadInput
from fedbilevel.problems import Sinusoid
from server.running.load import Loaded, load
from server.uncertainty.study import Judged, Study, judged, training_tasks
from tests.processes.console import config

CURVES = """
title = "Curves"
[run]
seeds = [0, 1, 2]
iterations = 2
[problem]
name = "sinusoid"
clients = 3
shots = 3
queries = 4
noise = 0.3
hidden = [6]
[options]
tasks_per_client = 2
evaluation_tasks = 110
lower_step = 0.01
upper_step = 0.01
[algorithms.maml]
[algorithms.ibaml]
local_steps = 5
initial_variance = 0.01
temperature = 0.01
"""


def ran(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.chdir(tmp_path)
    assert main(["run", config(text), "--out", "run"]) == 0
    return load("run")


def mean(of: Judged) -> dict[str, float]:
    return of.scores.measures(np.ones(len(of.scores.seed), np.int64))


def test_a_point_is_judged_as_in_the_history_and_an_ensemble_by_the_mean_of_its_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = ran(CURVES, tmp_path, monkeypatch)
    told: list[str] = []
    found = judged(loaded, Study(tasks=110, training=5, samples=4, members=2), told.append)
    assert told == ["maml", "maml, ensembles of 2", "ibaml"]
    assert [(each.label, each.members, each.scaled) for each in found] == [
        (*way, scaled) for way in (("maml", 1), ("maml", 2), ("ibaml", 1)) for scaled in (False, True)
    ]
    by = {(each.label, each.members, each.scaled): each for each in found}
    last = {row["seed"]: row for row in loaded.history if row["algorithm"] == "maml"}
    single = by["maml", 1, False]
    for seed in (0, 1, 2):
        own = single.scores.nll[single.scores.seed == seed]
        assert own.shape == (110, 4)
        assert own.mean() == pytest.approx(float(str(last[seed]["metric_nll"])), rel=1e-5)
    for each in found:
        assert set(each.scores.seed) == ({0, 1, 2} if each.members == 1 else {0})
        assert len(each.temperatures) == (len(set(each.scores.seed)) if each.scaled else 0)
        assert len(each.factors) == (0 if each.label == "maml" else 3)
        plain = by[each.label, each.members, False]
        assert each.training_nll <= plain.training_nll
        np.testing.assert_allclose(each.scores.loss, plain.scores.loss)
    losses = by["maml", 2, False].scores.loss
    for task in (0, 109):
        outputs = [descended(loaded, seed, task) for seed in (0, 1)]
        label = loaded.problem(0).test_tasks(110).query["label"][task]  # type: ignore[attr-defined]  # it has tasks
        expected = (sum(outputs) / 2 - label).square()
        np.testing.assert_allclose(losses[task], expected.numpy(), rtol=1e-4, atol=1e-6)


def descended(loaded: Loaded, seed: int, task: int) -> Tensor:
    """What five steps of 0.01 from the model of a seed make of the queries of a task of seed 0."""
    problem: Any = loaded.problem(0)
    tasks = problem.test_tasks(110)
    support, query = ({key: t[task] for key, t in part.items()} for part in (tasks.support, tasks.query))
    y = loaded["maml", seed].x.clone()
    for _ in range(5):
        y.requires_grad_(True)
        (gradient,) = torch.autograd.grad((problem.outputs(y, support) - support["label"]).square().mean(), y)
        y = (y - 0.01 * gradient).detach()
    return torch.as_tensor(problem.outputs(y, query))


def test_tasks_of_training_are_of_every_client_alike_and_of_no_round() -> None:
    problem = Sinusoid(clients=5, shots=3, queries=4)
    tasks, more = training_tasks(problem, 0, 2), training_tasks(problem, 0, 2)
    assert len(tasks) == 10
    assert torch.equal(tasks.query["label"], more.query["label"])
    assert not torch.equal(tasks.query["label"], training_tasks(problem, 1, 2).query["label"])


def test_what_cannot_be_judged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
[run]
seeds = [0, 1]
iterations = 1
[problem]
name = "quadratic_tasks"
[options]
tasks_per_client = 1
evaluation_tasks = 2
[algorithms.maml]
"""
    loaded = ran(text, tmp_path, monkeypatch)
    with pytest.raises(BadInput, match=r"problem.name: got 'quadratic_tasks'.*few_shot"):
        judged(loaded, Study())
    Path("run/models/maml-1.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no model of maml-1.; allowed: .*resume"):
        judged(load("run"), Study())

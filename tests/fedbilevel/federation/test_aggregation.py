"""Unbiased weights (m / |S|) p_i where clients move along an aggregate: over all sets, by hand, and by accounting."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.node import Setting
from clients.operations.oracles import hypergradient
from fedbilevel import ClientData
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Epochs
from fedbilevel.problem import Problem, Ragged
from fedbilevel.problems import Quadratic
from server.grids.engines import in_process
from server.kit.subroutines import fed_inn, fed_out
from tests.agreement import relative
from tests.algorithm_table import SHARED
from tests.algorithm_table.row import STEPS, UPPER_TAU
from tests.problem_table import DX, DY, WEIGHTS, M, problem_for, quadratic
from tests.reference import clients_of
from tests.runs import start, traced

P = np.array(WEIGHTS["list"]) / sum(WEIGHTS["list"])
"""p_i: the largest is twenty times the smallest."""


def over_all_sets(
    problem: Problem, size: int, weighting: Any = "unbiased", batch: int | None = None
) -> Iterator[tuple[list[int], Federation]]:
    """A federation in its first iteration for every set of so many clients; each set is as likely as any other."""
    for chosen in combinations(range(M), size):
        exchange = in_process(problem, Setting(batch=batch))
        fed = Federation(exchange, Population.of(problem.clients), weighting=weighting, batch=batch)
        fed.begin(0)
        fed.sampled = np.array(chosen)
        yield list(chosen), fed


def mean_over_all_sets(found: list[Tensor]) -> Tensor:
    assert len(found) == 10
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("size", [2, 3])
def test_the_y_step_of_fedsvrg_is_unbiased(size: int) -> None:
    """With one local step: over all S the mean of y - beta gbar_S is y - beta sum_i p_i gy_i."""
    problem = quadratic()
    x, y = start(problem, 1)
    steps = [fed_inn(fed, x, y, "svrg", 1, 0.3, 1, "paper") for _, fed in over_all_sets(problem, size)]
    gradient = sum(p * c.gy(x.numpy(), y.numpy()) for p, c in zip(P, clients_of(problem), strict=True))
    assert relative(mean_over_all_sets(steps), y.numpy() - 0.3 * gradient) < 1e-12
    assert relative(steps[0], steps[1]) > 1e-2


@pytest.mark.parametrize("size", [2, 3])
def test_the_x_step_of_fedout_is_unbiased(size: int) -> None:
    """With one local step: over all S the mean of x - alpha h_S is x - alpha sum_i p_i (fx_i - J_i v)."""
    problem = quadratic()
    x, y = start(problem, 1)
    v = torch.randn(DY, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    steps = []
    for _, fed in over_all_sets(problem, size):
        h = fed.mean(hypergradient, x=x, y=y, v=v)
        steps.append(fed_out(fed, x, y, h, 0.2, 1, "paper"))
    pairs = zip(P, clients_of(problem), strict=True)
    h = sum(p * (c.fx(x.numpy(), y.numpy()) - c.cross(v.numpy())) for p, c in pairs)
    assert relative(mean_over_all_sets(steps), x.numpy() - 0.2 * h) < 1e-12
    assert relative(steps[0], steps[1]) > 1e-2


BATCH = 2
UPPER_SIZES = [9, 7, 6, 8, 7]
PER_EPOCH = [5, 4, 3, 4, 4]
"""Batches of two in an epoch of those examples."""


def without_curvature() -> Quadratic:
    """Every f_i is linear in x, so that FedOut's correction vanishes and clients only go along h."""
    problem = Quadratic(clients=M, dim_x=DX, dim_y=DY, examples=(2, 5), rho=0.0, weights=WEIGHTS["list"], seed=3)
    nine = Quadratic(clients=M, dim_x=DX, dim_y=DY, examples=9, seed=3).clients.upper.values
    parts = [{key: rows[9 * i : 9 * i + size] for key, rows in nine.items()} for i, size in enumerate(UPPER_SIZES)]
    problem.clients = ClientData(problem.clients.lower, Ragged.join(parts, "upper"), WEIGHTS["list"])
    return problem


@pytest.mark.parametrize(
    ("spec", "tau"),
    [(1, [1] * M), (3, [3] * M), (UPPER_TAU, UPPER_TAU), (Epochs(epochs=2), [2 * n for n in PER_EPOCH])],
    ids=["one", "equal", "unequal", "epochs"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_steps_along_an_aggregate_are_taken_whole(spec: Any, tau: list[int], size: int) -> None:
    """Unbiased: x - alpha (sum_i p_i tau_i) h, over all clients, whoever is sampled; else over S, p_i / sum_S p_j."""
    problem = without_curvature()
    x, y = start(problem, 1)
    h = torch.randn(DX, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for _, fed in over_all_sets(problem, size, batch=BATCH):
        moved = fed_out(fed, x, y, h, 0.2, spec, "paper")
        assert relative(moved, x - 0.2 * float(P @ tau) * h) < 1e-12
    for chosen, fed in over_all_sets(problem, size, "normalised", batch=BATCH):
        moved = fed_out(fed, x, y, h, 0.2, spec, "paper")
        share = float(P[chosen] @ np.array(tau)[chosen] / P[chosen].sum())
        assert relative(moved, x - 0.2 * share * h) < 1e-12


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["aggitd", "fednest", "lfednest-svrg", "fednest-minimax"])
def test_both_accountings_give_the_same_iterates(name: str, size: int) -> None:
    """At one local step the server's own step is that of the clients."""
    options = {**STEPS, **SHARED[name].sampled, "local_steps": 1, "upper_local_steps": 1}
    sampling = {"clients_per_round": size, "weighting": "unbiased", "seed": 3}
    paper, merged = (
        traced(problem_for(name), name, 4, **options, **sampling, accounting=accounting)
        for accounting in ("paper", "merged")
    )
    assert paper.trace is not None
    assert merged.trace is not None
    for ours, theirs in zip(paper.trace, merged.trace, strict=True):
        assert relative(ours.x, theirs.x) < 1e-12
        assert relative(ours.y, theirs.y) < 1e-12
        assert ours.rounds > theirs.rounds

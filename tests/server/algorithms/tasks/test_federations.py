"""Algorithms with a local lower level through the federation: closed forms, workers, precision, what travels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedbilevel import simulate
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from server.running.run import Result
from tests.agreement import relative
from tests.algorithm_table import LOCAL
from tests.algorithm_table.row import Options
from tests.algorithm_table.tasks import NEWTON
from tests.dense_tasks import closed_form, eye
from tests.problem_table import BODY, DIM, HEAD, Head, M, Softmax, quadratic_tasks
from tests.runs import drawn, sampled_sets, start, traced

EXACT = sorted(name for name, row in LOCAL.items() if row.exact)
VARIANTS = [
    pytest.param(name, own, id=f"{name} {variant}")
    for name, row in LOCAL.items()
    for variant, own in row.variants.items()
]


@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("name", EXACT)
def test_runs_equal_the_closed_form(name: str, size: int | None, weighting: Any) -> None:
    """X -= alpha sum_S w_i mean_tasks h, w_i = p_i / sum_S p_j or (m/|S|) p_i."""
    problem, count, steps = quadratic_tasks(), 3, {"lower_step": 0.4, "local_steps": 4}
    sampling = {"seed": 7, "clients_per_round": size, "weighting": weighting, "tasks_per_client": count}
    result = traced(problem, name, 4, upper_step=0.3, **sampling, **steps)
    x = start(problem, 7)[0]
    assert result.trace is not None
    for k, (clients, entry) in enumerate(zip(sampled_sets(problem, size, 4, 7), result.trace, strict=True)):
        p = torch.from_numpy(problem.clients.weights[clients])
        w = p / p.sum() if weighting == "normalised" else p * M / len(p)
        h = w @ closed_form(name, drawn(problem, clients, k, count, seed=7), x, steps).view(len(p), count, DIM).mean(1)
        assert entry.hypergradient is not None
        assert relative(entry.hypergradient, h) < 1e-10
        x = x - 0.3 * h
        assert relative(entry.x, x) < 1e-10


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_runs_do_not_depend_on_the_number_of_workers(name: str) -> None:
    def run(workers: int) -> Result:
        return simulate(Softmax(), name, iterations=2, clients_per_round=4, workers=workers, evaluation_tasks=10)

    alone = run(1)
    for other in (run(2), run(3)):
        assert relative(other.x, alone.x) < 1e-12
        for ours, theirs in zip(alone.history, other.history, strict=True):
            for key in ours.keys() - {"wall_seconds"}:
                number = isinstance(ours[key], float)
                assert theirs[key] == (pytest.approx(ours[key], rel=1e-12) if number else ours[key])


@pytest.mark.parametrize("name", sorted(LOCAL))
def test_one_round_carries_one_vector_each_way(name: str) -> None:
    result = traced(Softmax(), name, 3, clients_per_round=2, local_steps=3)
    assert result.trace is not None
    assert [entry.rounds for entry in result.trace] == [1, 1, 1]
    sent = {key: value for key, value in result.communication.items() if key != "simulated_seconds"}
    size, beside = LOCAL[name].size(BODY + HEAD), LOCAL[name].beside
    assert sent == {
        "rounds": 3,
        "messages": 3 * 2 * 2,
        "vectors_down": 3 * 2,
        "vectors_up": 3 * 2 * (1 + (beside > 0)),
        "downlink_bytes": 3 * 2 * size * 8,
        "uplink_bytes": 3 * 2 * (size + beside) * 8,
    }


def test_float32_stays_near_float64_and_batch_sizes_do_not_matter() -> None:
    options = {"local_steps": 4, "upper_step": 0.3}
    for name in ("maml", "reptile", "memfbo", "bome"):
        double = traced(quadratic_tasks(), name, 5, **options)
        single = traced(quadratic_tasks(), name, 5, dtype="float32", **options)
        assert single.x.dtype == torch.float32
        assert relative(single.x.double(), double.x) < 2e-5
        assert single.communication["uplink_bytes"] * 2 == double.communication["uplink_bytes"]
        batches = traced(quadratic_tasks(), name, 5, batch=2, gradient_batch=3, **options)
        assert torch.equal(batches.x, double.x)


def test_the_server_moves_by_the_weighted_mean_of_closed_forms() -> None:
    problem = QuadraticTasks(clients=4, tasks=1)
    problem.clients.weights[:] = [0.1, 0.2, 0.3, 0.4]
    result = traced(problem, "imaml", 1, proximal=0.5, upper_step=0.3, tasks_per_client=3, evaluation_tasks=1, **NEWTON)
    x, _ = problem.initial(torch.Generator().manual_seed(0))
    values, h = problem.clients.lower.values, torch.zeros(6, dtype=torch.float64)
    for i, p in enumerate(problem.clients.weights):
        A, a, C, c = (values[name][i] for name in "AaCc")
        system = A + 0.5 * eye(6)
        y = torch.linalg.solve(system, A @ a + 0.5 * x)
        h += p * 0.5 * torch.linalg.solve(system, C @ (y - c))
    assert relative(result.x, x - 0.3 * h) < 1e-10
    assert result.communication["rounds"] == 1


@pytest.mark.parametrize(("name", "own"), VARIANTS)
@pytest.mark.parametrize("problem", ["quadratic", "head"])
def test_results_do_not_depend_on_the_workers(name: str, own: Options, problem: str) -> None:
    made: Any = QuadraticTasks(clients=5) if problem == "quadratic" else Head(clients=5)
    shared = {"iterations": 2, "clients_per_round": 3, "tasks_per_client": 2, "evaluation_tasks": 10, **own}
    first, *others = (simulate(made, name, workers=workers, **shared) for workers in (1, 2, 3))
    for other in others:
        assert relative(other.x, first.x) < 1e-12
        assert other.history[-1]["upper_loss"] == pytest.approx(first.history[-1]["upper_loss"], rel=1e-12)
    if problem == "head":
        assert 0 <= float(first.history[-1]["test_accuracy"]) <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "own"), VARIANTS)
def test_single_precision(name: str, own: Options) -> None:
    shared = {"iterations": 3, "evaluation_tasks": 10, **own}
    single, double = (simulate("quadratic_tasks", name, dtype=dtype, **shared) for dtype in ("float32", "float64"))
    assert single.x.dtype == torch.float32
    assert relative(single.x.double(), double.x) < 1e-4
    assert float(single.history[-1]["metric_cg_residual"]) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["rk4", "euler", "midpoint", "dopri5"])
def test_dtype_is_kept(dtype, solver):
    result = simulate("quadratic_tasks", "a-maml", iterations=2, dtype=dtype, solver=solver, evaluation_tasks=5)
    assert result.x.dtype == dtype
    assert all(math.isfinite(row["test_loss"]) for row in result.history)


def test_comln_in_single_precision():
    result = simulate(Softmax(), "comln", iterations=2, dtype="float32", evaluation_tasks=5)
    assert result.x.dtype == torch.float32


def test_comln_does_not_depend_on_the_number_of_workers():
    one, two = (simulate(Softmax(), "comln", iterations=2, evaluation_tasks=5, workers=w).x for w in (1, 2))
    assert relative(one, two) < 1e-12

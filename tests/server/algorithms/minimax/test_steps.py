"""Steps of the minimax methods by hand, their minibatches, their directions, and what is refused."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedbilevel import BadInput, ClientData, simulate
from fedbilevel.problems import MinimaxQuadratic
from tests import reference
from tests.agreement import agree, relative
from tests.algorithm_table import MINIMAX
from tests.algorithm_table.row import STEPS, TAU
from tests.problem_table import quadratic, saddle
from tests.processes.console import refused
from tests.runs import directions, sampled_sets, start, traced


class Rows:
    """f = e1 x y + e2 x + e3 y per example e, from (x, y) = (1, 2)."""

    def __init__(self, *clients: list[list[float]]) -> None:
        self.clients = ClientData.single([torch.tensor(rows, dtype=torch.float64) for rows in clients])

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.ones(1, dtype=torch.float64), 2 * torch.ones(1, dtype=torch.float64)

    def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ torch.cat([x * y, x, y])

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


def run(problem: Any, name: str, iterations: int, **options: Any) -> list[float]:
    """X and y after the last iteration."""
    found = traced(problem, name, iterations, solution_every=0, **options)
    return [float(found.x), float(found.y)]


def test_the_steps_of_oadagrad_by_hand() -> None:
    """F = x y, F = (y, -x), eta = delta = 1, from z_0 = w_0 = (1, 2).

    F_0 = (2, -1), D_0 = 1 + (2, 1): z_1 = (1 - 2/3, 2 + 1/2) = (1/3, 5/2). F_1 = (5/2, -1/3),
    D_1 = 1 + (sqrt(4 + 25/4), sqrt(1 + 1/9)): w_1 = w_0 - F_1 / D_1, z_2 = w_1 - F_1 / D_1.
    """
    options = {"upper_step": 1.0, "delta": 1.0}
    problem = Rows([[1.0, 0.0, 0.0]])
    assert run(problem, "oadagrad", 1, **options) == pytest.approx([1 / 3, 5 / 2], rel=1e-14)
    x, y = (5 / 2) / (1 + sqrt(41 / 4)), -(1 / 3) / (1 + sqrt(10 / 9))
    assert run(problem, "oadagrad", 2, **options) == pytest.approx([1 - 2 * x, 2 - 2 * y], rel=1e-14)
    z_x, z_y = 1 - 2 * x, 2 - 2 * y  # F_2 = (z_y, -z_x), w_2 = w_1 - F_2 / D_2
    D_x, D_y = 1 + sqrt(41 / 4 + z_y**2), 1 + sqrt(10 / 9 + z_x**2)
    third = [1 - x - 2 * z_y / D_x, 2 - y + 2 * z_x / D_y]
    assert run(problem, "oadagrad", 3, **options) == pytest.approx(third, rel=1e-14)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        # F = (y, -x), eta = 1/2 of both; z_0 = (1, 2)
        ("fedgda", (0, 2.5), (-1.25, 2.5)),
        ("fedgda-gt", (0, 2.5), (-1.25, 2.5)),
        ("fed-optimistic", (0, 2.5), (-1.5, 2.0)),  # z_1 - F_1 + F_0/2 = (0, 2.5) - (2.5, 0) + (1, -0.5)
        ("fed-extragradient", (-0.25, 2.0), (-1.1875, 1.375)),  # at z' = (0, 2.5); then at (-1.25, 1.875)
        ("fednest-minimax", (-0.25, 2.5), (-1.4375, 2.375)),  # y first, x by the new y
    ],
)
def test_two_steps_by_hand(name: str, first: tuple[float, float], second: tuple[float, float]) -> None:
    """On f = x y; the step of y is that of x unless it is given."""
    problem = Rows([[1.0, 0.0, 0.0]])
    assert run(problem, name, 1, upper_step=0.5) == pytest.approx(first, abs=1e-14)
    assert run(problem, name, 2, upper_step=0.5) == pytest.approx(second, abs=1e-14)
    still = run(problem, name, 2, upper_step=0.5, lower_step=0.0)
    assert still == pytest.approx([-1.0, 2.0], abs=1e-14)


@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("name", sorted(MINIMAX))
def test_ten_iterations_with_sampled_clients_and_unequal_local_steps(name: str, weighting: str) -> None:
    problem, options = saddle(), {**STEPS, **MINIMAX[name].sampled}
    assert ("local_steps" in reference.ALGORITHMS[name][1]) == (options.get("local_steps") == TAU)
    x, y = start(problem, 3)
    expected = reference.run(
        name,
        problem,
        x.numpy(),
        y.numpy(),
        10,
        options,
        sets=sampled_sets(problem, 3, 10, 3),
        unbiased=weighting == "unbiased",
    )
    agree(traced(problem, name, 10, seed=3, clients_per_round=3, weighting=weighting, **options), expected)


def test_oadagrad_with_a_large_delta_is_the_optimistic_method() -> None:
    """D_k is delta but for the sums, which are 1e-8 of it."""
    small = traced(saddle(), "oadagrad", 8, upper_step=1e8, delta=1e9)
    assert relative(small.x, traced(saddle(), "fed-optimistic", 8, upper_step=0.1).x) < 1e-7


# ---- minibatches ----


def test_both_parts_of_the_field_are_of_one_minibatch() -> None:
    """F = e (x + y): on any one example fx = fy = e, so that x falls by what y rises."""
    problem = Rows([[0.0, e, e] for e in (1.0, 2.0, 4.0, 8.0, 16.0)])
    for name in ("fedgda", "fedgda-gt", "fed-extragradient", "fed-optimistic"):
        x, y = run(problem, name, 1, upper_step=1.0, batch=1, gradient_batch=1)
        assert 1 - x == pytest.approx(y - 2, rel=1e-14)
        assert 1 - x != pytest.approx(31 / 5)
    x, y = run(problem, "fedgda", 1, upper_step=1.0, batch=1, local_steps={"epochs": 1})
    assert [x, y] == pytest.approx([1 - 31, 2 + 31], rel=1e-14)  # each example once


def test_the_two_fields_of_a_tracked_step_are_of_one_minibatch() -> None:
    """F is linear: on one minibatch F_i(z_i) - F_i(z) = 0, and all tau steps are along Fbar."""
    problem = Rows([[0.0, e, -3 * e] for e in (1.0, 2.0, 4.0, 8.0, 16.0)])
    x, y = run(problem, "fedgda-gt", 1, upper_step=0.5, batch=1, gradient_batch="full", local_steps=3)
    assert [x, y] == pytest.approx([1 - 1.5 * 31 / 5, 2 - 4.5 * 31 / 5], rel=1e-14)


# ---- directions ----


def test_directions_at_the_best_response_are_the_hypergradient() -> None:
    problem = saddle()
    x, _ = start(problem, 4)
    y = problem.lower_solution(x)
    for name in sorted(set(MINIMAX) - {"fed-extragradient"}):
        found = directions(traced(problem, name, 1, x0=x, y0=y, upper_step=0.3))[0]
        assert relative(found, problem.hypergradient(x)) < 1e-12
    trial = directions(traced(problem, "fed-extragradient", 1, x0=x, y0=y, upper_step=1e-9))[0]
    assert relative(trial, problem.hypergradient(x)) < 1e-8


# ---- what is refused ----


@pytest.mark.parametrize("name", sorted(MINIMAX))
def test_a_bilevel_problem_is_refused_with_what_fits(name: str) -> None:
    with pytest.raises(BadInput, match=r"global lower level one of aggitd, .*bome.*fednest, .*simfbo"):
        simulate(quadratic(), name, iterations=1)


def test_a_bilevel_problem_is_refused_in_one_line(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "a.toml"
    config.write_text('[run]\niterations = 1\n[problem]\nname = "quadratic"\n[algorithms.fedgda]\n')
    said = refused(capsys, "run", str(config), "--out", str(tmp_path / "out"))
    assert "algorithms.fedgda: got 'fedgda'; allowed: for a problem with a global lower level one of aggitd" in said
    assert "fed-optimistic" not in said


def test_oadagrad_takes_no_other_optimiser_of_x(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "a.toml"
    config.write_text(
        '[run]\niterations = 1\n[problem]\nname = "minimax_quadratic"\n'
        '[algorithms.oadagrad]\nupper_optimiser = "adam"\n'
    )
    assert "algorithms.oadagrad.upper_optimiser" in refused(capsys, "run", str(config), "--out", str(tmp_path / "out"))
    with pytest.raises(BadInput, match=r"delta: got 0.0; allowed: a number above 0"):
        simulate(MinimaxQuadratic(), "oadagrad", iterations=1, delta=0.0)
    with pytest.raises(BadInput, match=r"lower_step: got -0.1"):
        simulate(MinimaxQuadratic(), "fedgda", iterations=1, lower_step=-0.1)

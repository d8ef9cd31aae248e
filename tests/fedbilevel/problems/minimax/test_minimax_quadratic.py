"""The closed forms of `MinimaxQuadratic` against dense solves and differences, and what its parameters promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import BadInput, simulate
from fedbilevel.problems import MinimaxQuadratic
from fedbilevel.problems.inspection import convert
from server.evaluation.solution import has_closed_forms
from tests.agreement import relative
from tests.reference.saddle import players_of, together

SHAPES: list[dict[str, Any]] = [
    {"clients": 1, "dim_x": 1, "dim_y": 1, "examples": 2, "seed": 1},
    {"clients": 4, "dim_x": 3, "dim_y": 5, "weights": "size", "seed": 2},
    {"clients": 6, "dim_x": 7, "dim_y": 2, "weights": "uniform", "seed": 3},
    {"clients": 3, "dim_x": 4, "dim_y": 4, "weights": [5.0, 1.0, 0.2], "heterogeneity": 3.0, "seed": 4},
]


def point(problem: MinimaxQuadratic, seed: int = 0) -> tuple[Tensor, Tensor]:
    return problem.initial(torch.Generator().manual_seed(seed))


def f(problem: MinimaxQuadratic, x: Tensor, y: Tensor) -> Tensor:
    """sum_i p_i f_i, client by client, from the losses themselves."""
    data, total = problem.clients, torch.zeros((), dtype=torch.float64)
    for i, p in enumerate(data.weights):
        rows = slice(int(data.upper.offsets[i]), int(data.upper.offsets[i + 1]))
        examples = {name: values[rows] for name, values in data.upper.values.items()}
        total = total + float(p) * problem.upper(x, y, examples).mean()
    return total


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("parameters", SHAPES)
def test_the_saddle_point_is_where_no_player_gains(parameters: dict[str, Any], bilinear: bool) -> None:
    if bilinear:
        parameters = {**parameters, "dim_y": parameters["dim_x"]}
    problem = MinimaxQuadratic(**parameters, bilinear=bilinear)
    x, y = problem.saddle_point()
    assert relative(torch.cat([x, y]), together(problem).saddle_point()) < 1e-9
    assert torch.equal(problem.solution(), x)
    leaves = [each.clone().requires_grad_() for each in (x, y)]
    gradients = torch.autograd.grad(f(problem, *leaves), leaves)
    assert max(float(each.norm()) for each in gradients) < 1e-12 * (1 + float(x.norm()) + float(y.norm()))
    middle, draw = float(f(problem, x, y)), torch.Generator().manual_seed(1)
    for _ in range(5):
        aside_x, aside_y = (torch.randn(len(z), generator=draw, dtype=torch.float64) for z in (x, y))
        left, right = float(f(problem, x, y + aside_y)), float(f(problem, x + aside_x, y))
        if bilinear:  # neither gains, neither loses
            assert [left, right] == pytest.approx([middle, middle], rel=1e-9, abs=1e-9)
        else:
            assert left < middle < right
    found = problem.evaluate(x + aside_x, y + aside_y)
    sizes = [float(each.norm()) for each in (aside_x, aside_y)]
    assert [found["upper_distance"], found["lower_distance"]] == pytest.approx(sizes, rel=1e-9)
    assert found["distance"] == pytest.approx(float(np.hypot(*sizes)), rel=1e-9)
    assert ("test_loss" in found) == (not bilinear)


@pytest.mark.parametrize("parameters", SHAPES)
def test_closed_forms_of_the_best_response(parameters: dict[str, Any]) -> None:
    """Against dense solves and differences; at y*(x) the gradient in y is 0 and f is largest."""
    problem = MinimaxQuadratic(**parameters)
    x, y = point(problem)
    best = problem.lower_solution(x)
    assert relative(best, together(problem).best_response(x.numpy())) < 1e-12
    assert problem.value(x) == pytest.approx(float(f(problem, x, best)), rel=1e-12)
    assert problem.evaluate(x, y)["test_loss"] == problem.value(x)
    for step in (y - best, -0.1 * y):
        assert float(f(problem, x, best + step)) < problem.value(x)
    slopes = [(problem.value(x + 1e-3 * e) - problem.value(x - 1e-3 * e)) / 2e-3 for e in torch.eye(len(x)).double()]
    assert relative(problem.hypergradient(x), slopes) < 1e-9
    assert float(problem.hypergradient(problem.solution()).norm()) < 1e-11


def test_losses_are_those_of_the_matrices() -> None:
    """Every client's mean loss and both of its gradients, with curvature and without."""
    for bilinear in (False, True):
        problem = MinimaxQuadratic(clients=3, dim_x=3, dim_y=3, bilinear=bilinear, seed=6)
        x, y = (each.requires_grad_() for each in point(problem))
        for i, player in enumerate(players_of(problem)):
            rows = slice(int(problem.clients.upper.offsets[i]), int(problem.clients.upper.offsets[i + 1]))
            examples = {name: values[rows] for name, values in problem.clients.upper.values.items()}
            loss = problem.upper(x, y, examples).mean()
            fx, fy = torch.autograd.grad(loss, (x, y))
            at = (x.detach().numpy(), y.detach().numpy())
            assert loss.item() == pytest.approx(player.f(*at), rel=1e-12)
            assert relative(fx, player.fx(*at)) < 1e-12
            assert relative(fy, player.fy(*at)) < 1e-12


def test_curvature_coupling_and_heterogeneity_are_as_asked_for() -> None:
    problem = MinimaxQuadratic(clients=6, dim_x=4, dim_y=3, mu=0.3, L=2.0, coupling=0.8, heterogeneity=2.0, seed=5)
    players = players_of(problem)
    for player in players:
        for matrix in (player.A, player.C):
            eigenvalues = np.linalg.eigvalsh(matrix)
            assert eigenvalues.min() > 0.3 - 1e-12
            assert eigenvalues.max() < 2.0 + 1e-12
    assert np.linalg.svd(together(problem).B)[1] == pytest.approx([0.8, 0.6, 0.4], rel=1e-12)
    for name in "ABCac":
        first, second = (getattr(player, name) for player in players[:2])
        assert relative(first, second) > 1e-2
    alike = MinimaxQuadratic(clients=3, heterogeneity=0.0, noise=0.0)
    first, second = players_of(alike)[:2]
    for name in "ABCac":
        assert relative(getattr(first, name), getattr(second, name)) < 1e-14
    assert relative(point(alike)[0], point(MinimaxQuadratic(clients=3, seed=9))[0] * 2) > 0.1
    noisy = MinimaxQuadratic(clients=1, examples=[2, 2], noise=0.5).clients.upper.values
    for name, differs in (("a", True), ("c", True), ("A", False), ("B", False), ("C", False)):
        assert torch.equal(noisy[name][0], noisy[name][1]) != differs


def test_a_bilinear_game_has_no_best_response_and_still_a_run() -> None:
    game, other = MinimaxQuadratic(bilinear=True), MinimaxQuadratic()
    assert not has_closed_forms(game)
    assert not has_closed_forms(convert(game, torch.float32))
    assert has_closed_forms(other)
    rows = simulate(game, "fed-extragradient", iterations=2, solution_every=0).history
    assert rows[-1]["test_loss"] is None
    assert rows[-1].get("value") is None
    assert rows[-1]["metric_distance"] < rows[0]["metric_distance"]
    assert simulate(other, "fedgda", iterations=1).history[-1]["hypergradient_error"] > 0


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"clients": 0}, "problem.clients: got 0; allowed: an integer of at least 1"),
        ({"dim_y": 0}, "problem.dim_y: got 0"),
        ({"examples": 0}, "problem.examples: got 0; allowed: an integer of at least 1, or"),
        ({"examples": [4, 2]}, "problem.examples: got"),
        ({"examples": [1, 2, 3]}, "problem.examples: got"),
        ({"heterogeneity": -1.0}, "problem.heterogeneity: got -1.0; allowed: a finite number of at least 0"),
        ({"noise": float("nan")}, "problem.noise: got nan"),
        ({"mu": 0.0}, r"problem.mu: got 0.0; allowed: a number above 0 and at most L \(1.0\)"),
        ({"mu": 2.0}, "problem.mu: got 2.0"),
        ({"coupling": 0.0}, "problem.coupling: got 0.0; allowed: a finite number above 0"),
        ({"coupling": float("inf")}, "problem.coupling: got inf"),
        ({"dim_y": 4, "bilinear": True}, r"problem.dim_y: got 4; allowed: dim_x \(5\) where bilinear = true"),
        ({"seed": -1}, "problem.seed: got -1"),
        ({"weights": [1.0]}, "clients.weights"),
        ({"clients": 10**6, "dim_x": 10**4}, "problem"),
    ],
)
def test_parameters_that_cannot_be_used(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        MinimaxQuadratic(**parameters)

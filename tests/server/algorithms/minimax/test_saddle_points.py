"""Where the minimax methods go: rates on a bilinear game, drift and its absence, the saddle point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedbilevel.problems import MinimaxQuadratic
from server.kit.algorithm import algorithms
from tests.agreement import relative
from tests.algorithm_table import MINIMAX
from tests.algorithm_table.row import TAU
from tests.reference.saddle import players_of, together
from tests.runs import start, traced


def game(**parameters: Any) -> Any:
    """Five unlike clients of unequal weights."""
    weights = [0.1, 0.5, 1.0, 2.0, 0.7]
    return MinimaxQuadratic(**{"clients": 5, "dim_x": 2, "dim_y": 2, "weights": weights, "seed": 2, **parameters})


def smooth() -> Any:
    return game(dim_y=3, mu=0.6, coupling=0.7)


def distances(problem: Any, name: str, iterations: int, **options: Any) -> np.ndarray:
    """|z - z*| at the start and after every iteration."""
    star, found = together(problem).saddle_point(), traced(problem, name, iterations, solution_every=0, **options)
    assert found.trace is not None
    points = [start(problem), *((entry.x, entry.y) for entry in found.trace)]
    return np.array([np.linalg.norm(np.concatenate([x, y]) - star) for x, y in points])


# ---- bilinear games ----


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("fedgda", lambda s: np.sqrt(1 + s**2)),
        ("fedgda-gt", lambda s: np.sqrt(1 + s**2)),
        ("fed-extragradient", lambda s: np.sqrt((1 - s**2) ** 2 + s**2)),
    ],
)
def test_factors_of_the_distance_on_a_game_of_two_numbers(name: str, factor: Any) -> None:
    """With f = b x y + ..., s = eta b: the field is b times a rotation R by a right angle, so z' = z - s R z, and
    extragradient makes z - s R z + s^2 R^2 z = (1 - s^2) z - s R z.
    """
    problem = game(dim_x=1, dim_y=1, bilinear=True, coupling=1.2)
    s = 0.5 * float(together(problem).B[0, 0])
    off = distances(problem, name, 12, upper_step=0.5)
    assert off[1:] / off[:-1] == pytest.approx(np.full(12, factor(s)), rel=1e-9)
    assert abs(s) == pytest.approx(0.6, rel=1e-9)


def test_the_factor_of_optimistic_steps_on_a_game_of_two_numbers() -> None:
    """R has the eigenvalue i: l^2 = l - 2 i s l + i s for the modes l^k of z; the larger one stays."""
    problem = game(dim_x=1, dim_y=1, bilinear=True, coupling=1.2)
    off = distances(problem, "fed-optimistic", 60, upper_step=0.3)
    roots = np.roots([1, -1 + 2j * 0.36, -1j * 0.36])
    assert off[60] / off[50] == pytest.approx(max(abs(roots)) ** 10, rel=1e-6)
    assert off[60] < off[50]


def test_descent_ascent_spirals_out_and_the_others_come_in() -> None:
    problem = game(bilinear=True)
    for name in ("fedgda", "fedgda-gt"):
        assert (np.diff(distances(problem, name, 40, upper_step=0.3)) > 0).all()
    assert (np.diff(distances(problem, "fed-extragradient", 40, upper_step=0.5)) < 0).all()
    for name, step in (("fed-extragradient", 0.9), ("fed-optimistic", 0.55)):
        off = distances(problem, name, 120, upper_step=step)
        assert off[-1] < 0.01 * off[0]


# ---- drift ----


def test_local_steps_drift_to_the_fixed_point_of_their_mean() -> None:
    """F_i(z) = M_i z + q_i: z moves by -eta sum p_i W_i F_i(z), W_i = sum_{k<tau} (I - eta M_i)^k, until that is 0."""
    problem, eta, tau = smooth(), 0.3, 3
    players, zero = players_of(problem), np.zeros(5)
    left, right = np.zeros((5, 5)), np.zeros(5)
    for player in players:
        M = np.stack([player.field(e) - player.field(zero) for e in np.eye(5)], axis=1)
        W = sum(np.linalg.matrix_power(np.eye(5) - eta * M, k) for k in range(tau))
        left, right = left + player.p * W @ M, right - player.p * W @ player.field(zero)
    found = traced(problem, "fedgda", 40, upper_step=eta, local_steps=tau)
    z = np.concatenate([found.x, found.y])
    assert relative(z, np.linalg.solve(left, right)) < 1e-8
    assert relative(z, together(problem).saddle_point()) > 1e-2


@pytest.mark.parametrize("tau", [3, TAU], ids=["equal", "unequal"])
def test_tracked_steps_do_not_drift(tau: Any) -> None:
    assert distances(smooth(), "fedgda-gt", 40, upper_step=0.4, local_steps=tau)[-1] < 1e-8


# ---- the saddle point ----

STEPS: dict[str, dict[str, Any]] = {"oadagrad": {"upper_step": 5.0}, "fed-optimistic": {"upper_step": 0.4}}


@pytest.mark.parametrize("name", sorted(MINIMAX))
def test_every_minimax_method_reaches_the_saddle_point(name: str) -> None:
    assert distances(smooth(), name, 60, **STEPS.get(name, {"upper_step": 0.6}))[-1] < 1e-6


@pytest.mark.parametrize("name", ["fednest", "simfbo", "memfbo"])
def test_methods_for_a_global_lower_level_reach_it_too(name: str) -> None:
    assert name in algorithms("minimax")
    steps = {"upper_step": 0.5, "lower_step": 0.8, "lower_rounds": 1, "neumann_terms": 1, "accounting": "merged"}
    own = {key: value for key, value in steps.items() if key in algorithms()[name].options.model_fields}
    assert distances(smooth(), name, 60, **own)[-1] < 1e-4

"""Our own methods: where they go on deterministic problems, what they say of noise, and twenty iterations of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.cli import main
from fedbilevel import simulate
from fedbilevel.problems import Quadratic
from server.algorithms.own.aggitd_aq import mixed, preconditioned
from server.algorithms.own.aggitd_s import hedged
from tests import reference
from tests.agreement import agree, relative
from tests.problem_table import quadratic
from tests.runs import last_state, start, traced


@pytest.mark.parametrize(
    "options",
    [
        {"lower_step": None},
        {"lower_step": None, "upper_optimiser": "sgd", "upper_step": 0.1},
        {"lower_step": None, "lower_hedge": 0.2, "upper_vectors": "adam"},
        {"lower_step": None, "local_steps": 3, "lower_hedge": 0.5, "upper_limit": 0.3, "upper_beta1": 0.8},
    ],
)
def test_twenty_iterations_of_aggitd_s(options: dict[str, object]) -> None:
    problem = quadratic()
    x, y = start(problem)
    agree(
        traced(problem, "aggitd-s", 20, **options),
        reference.run("aggitd-s", problem, x.numpy(), y.numpy(), 20, dict(options)),
        1e-9,
    )


def test_twenty_iterations_of_aggitd_aq() -> None:
    problem = quadratic()
    x, y = start(problem)
    entries = reference.run("aggitd-aq", problem, x.numpy(), y.numpy(), 20, {})
    agree(traced(problem, "aggitd-aq", 20), entries, 1e-9)


def test_while_it_settles_it_mixes_half_of_the_points_ten_times_as_carefully() -> None:
    """The first rounds are those of m = 10 and reg = 0.1; afterwards it goes on with what it has kept of them."""
    problem = quadratic()
    careful = {"memory": 10, "regularisation": 0.1, "settling": 0}
    first, early = traced(problem, "aggitd-aq", 20), traced(problem, "aggitd-aq", 20, **careful)
    assert torch.equal(first.x, early.x)
    assert torch.equal(first.y, early.y)
    x, y = start(problem)
    options = {"memory": 4, "settling": 5}
    entries = reference.run("aggitd-aq", problem, x.numpy(), y.numpy(), 12, dict(options))
    agree(traced(problem, "aggitd-aq", 12, **options), entries, 1e-9)
    plain = reference.run("aggitd-aq", problem, x.numpy(), y.numpy(), 12, {"memory": 4, "settling": 12})
    assert relative(torch.from_numpy(entries[-1].x), torch.from_numpy(plain[-1].x)) > 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("condition", [7, 100, 1000])
@pytest.mark.parametrize("heterogeneity", [0.0, 0.3])
def test_the_probe_finds_the_largest_eigenvalue(condition: int, heterogeneity: float, seed: int) -> None:
    """Within a tenth after 30 rounds, and never above it; clients are of unlike sizes, so that the weights count."""
    problem = Quadratic(clients=6, dim_x=4, dim_y=30, mu=1 / condition, L=1.0, heterogeneity=heterogeneity, seed=seed)
    x, y = start(problem)
    data = problem.clients
    share = torch.from_numpy(np.repeat(data.weights / data.lower.sizes, data.lower.sizes))
    H = torch.einsum("e,eij->ij", share, data.lower.values["A"])
    largest = float(torch.linalg.eigvalsh(H)[-1])
    found = last_state(problem, "aggitd-s", x, y, 30, upper_limit=0.01).curvature
    assert 0.9 * largest <= found <= largest * (1 + 1e-12)


def test_the_factor_of_the_lower_step_by_hand() -> None:
    """Gradients that agree, stand across and turn, at r = 0.5; then its ends, and a gradient that has vanished."""
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    across = torch.tensor([0.0, 3.0], dtype=torch.float64)
    assert hedged(1.0, 2 * one, one, 0.5) == pytest.approx(1.6487212707)
    assert hedged(1.0, across, one, 0.5) == 1.0
    assert hedged(1.0, one, -7 * one, 0.5) == pytest.approx(0.6065306597)
    assert hedged(1.7, one, one, 0.5) == 1.8
    assert hedged(0.3, -one, one, 0.5) == 0.25
    assert hedged(1.3, 0 * one, one, 0.5) == 1.3


@pytest.mark.parametrize("condition", [7, 100, 1000])
def test_aggitd_aq_ends_at_the_solution(condition: int) -> None:
    problem = Quadratic(clients=5, dim_x=4, dim_y=8, mu=1 / condition, L=1.0, seed=3)
    found = traced(problem, "aggitd-aq", 400)
    assert relative(found.x, problem.solution()) < 1e-8


def test_the_operator_maps_the_products_of_probes_back_to_them() -> None:
    """B Y = S where every probe counts, as a Newton step has it; along what no probe has seen it is b0."""
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    H = q @ torch.diag(torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0, 4.0], dtype=torch.float64)) @ q.mT
    S = [torch.randn(6, dtype=torch.float64) for _ in range(3)]
    B = preconditioned(torch.eye(6, dtype=torch.float64), S, [H @ s for s in S], 1e-9, 0.25)
    assert torch.allclose(B, B.mT, atol=1e-12)
    for s in S:
        assert relative(B @ (H @ s), s) < 1e-10
    away = torch.linalg.svd(torch.stack([*S, H @ S[0], H @ S[1]]))[2][-1]  # of products and probes but one
    assert float((preconditioned(away, S[:2], [H @ s for s in S[:2]], 1e-9, 0.25) - 0.25 * away).norm()) < 1e-10
    assert torch.equal(preconditioned(torch.ones(2, 3), [], [], 0.1, 0.5), torch.full((2, 3), 0.5))


def test_mixing_two_points_of_a_line_finds_its_fixed_point() -> None:
    """F(z) = (3 - z) / 2 at z = 0 and 1: the secant's root is 3, and the damping of 1e-12 hides nothing."""
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert float(mixed(points, (3 - points) / 2, 1e-12)) == pytest.approx(3.0, abs=1e-9)
    assert float(mixed(points[:1], (3 - points[:1]) / 2, 0.1)) == pytest.approx(1.5)


def test_of_noise_it_says_so() -> None:
    with pytest.warns(UserWarning, match="aggitd-aq: mixing takes the noise of sampled clients and minibatches"):
        simulate(quadratic(), "aggitd-aq", iterations=1, clients_per_round=2, batch=1)
    simulate(quadratic(), "aggitd-aq", iterations=1, clients_per_round=5)


def test_a_run_says_so_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "own.toml"
    table = '[run]\niterations = 1\n{}[problem]\nname = "quadratic"\n[algorithms.aggitd-aq]\n'
    for name, more in (("noisy", "clients_per_round = 3\n"), ("quiet", "")):
        config.write_text(table.format(more))
        assert main(["run", str(config), "--out", str(tmp_path / name)]) == 0
        said = "aggitd-aq: mixing takes the noise of sampled clients for curvature" in capsys.readouterr().out
        assert said == (name == "noisy")

"""The spectral step: polar factors against singular values, the matrices of x by hand, and whole runs against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel import BadInput, simulate
from fedbilevel.data import federate
from fedbilevel.problem import Part
from fedbilevel.problems import HyperRepresentation
from server.kit.optimisers import Moments, moved
from server.kit.options import UpperOptions
from server.kit.spectral import Block, blocks, polar
from tests.problem_table import quadratic
from tests.reference import Dense, clients_of
from tests.runs import traced

DRAW = np.random.default_rng(3)


def matrix(rows: int, columns: int, singular: list[float]) -> np.ndarray:
    """A matrix with these singular values, and zeros."""
    u, _ = np.linalg.qr(DRAW.standard_normal((rows, len(singular))))
    v, _ = np.linalg.qr(DRAW.standard_normal((columns, len(singular))))
    return np.asarray(u @ np.diag(singular) @ v.T)


def factor(m: np.ndarray, rank: int) -> np.ndarray:
    u, _, vh = np.linalg.svd(m, full_matrices=False)
    return np.asarray(u[:, :rank] @ vh[:rank])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (30, 200)])
@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e15])
def test_polar_factors_are_those_of_the_singular_values(
    shape: tuple[int, int], dtype: torch.dtype, bound: float, scale: float
) -> None:
    """From 1 down to 1e-3 of the largest one."""
    singular = list(np.logspace(0, -3, min(shape)))
    given = torch.from_numpy(scale * matrix(*shape, singular)).to(dtype)
    found, nuclear = polar(given)
    assert found.dtype == dtype
    assert np.abs(found.numpy() - factor(given.double().numpy(), min(shape))).max() < bound
    assert nuclear == pytest.approx(scale * sum(singular), rel=1e-5 if dtype == torch.float32 else 1e-12)
    again, _ = polar(given.clone())
    assert torch.equal(found, again)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_polar_factors_of_nearly_singular_matrices(dtype: torch.dtype, bound: float) -> None:
    """Down to what the dtype can tell from 0: 1e-9 of the largest singular value, or 1e-5."""
    singular = list(np.logspace(0, -9 if dtype == torch.float64 else -5, 12))
    given = torch.from_numpy(matrix(12, 40, singular)).to(dtype)
    assert np.abs(polar(given)[0].numpy() - factor(given.double().numpy(), 12)).max() < bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_of_a_matrix_without_full_rank_the_factor_is_over_its_range(shape: tuple[int, int], dtype: torch.dtype) -> None:
    given = torch.from_numpy(matrix(*shape, [3.0, 2.0, 0.5])).to(dtype)
    found, nuclear = polar(given)
    assert np.abs(found.numpy() - factor(given.double().numpy(), 3)).max() < 1e-6
    assert torch.linalg.matrix_rank(found.double(), rtol=1e-3) == 3
    assert nuclear == pytest.approx(5.5, rel=1e-6)


def test_of_zeros_it_is_zero_and_of_a_vector_the_vector_by_its_length() -> None:
    found, nuclear = polar(torch.zeros(3, 5))
    assert torch.equal(found, torch.zeros(3, 5))
    assert nuclear == 0.0
    found, nuclear = polar(torch.tensor([[3.0], [-4.0]], dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx([0.6, -0.8])
    assert nuclear == pytest.approx(5.0)


# ---- the matrices of x ----


def test_a_bias_is_one_more_column() -> None:
    (block,) = blocks([Part("0.weight", (2, 3)), Part("0.bias", (2,))], 8)
    x = torch.arange(8.0)
    assert block.of(x).tolist() == [[0, 1, 2, 6], [3, 4, 5, 7]]
    assert torch.equal(block.flat(block.of(x)), x)


def test_where_the_outputs_are_the_columns_it_is_one_more_row() -> None:
    (block,) = blocks([Part("0.weight", (2, 3), outputs_last=True), Part("0.bias", (3,))], 9)
    x = torch.arange(9.0)
    assert block.of(x).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert torch.equal(block.flat(block.of(x)), x)


def test_kernels_are_flattened_and_what_is_no_bias_is_a_vector() -> None:
    parts = [Part("c.weight", (4, 2, 3, 3)), Part("n.weight", (4,)), Part("n.bias", (4,)), Part("c.weight", (5, 4))]
    assert blocks(parts, 72 + 8 + 20) == [
        Block(0, 4, 18),
        Block(72, 4, 1),
        Block(76, 4, 1),
        Block(80, 5, 4),
    ]
    assert blocks([("w", (3, 2)), ("b", (3,))], 9) == [Block(0, 3, 2), Block(6, 3, 1)]  # type: ignore[list-item]
    assert blocks([], 7) == [Block(0, 7, 1)]
    with pytest.raises(BadInput, match=r"x_shapes: got .*; allowed: shapes of 10 numbers together"):
        blocks([Part("w", (3, 3))], 10)


def test_networks_say_how_their_parameters_fall_into_matrices() -> None:
    data = federate("digits", clients=2)
    mlp = HyperRepresentation(data, hidden=[7, 5])
    size = len(mlp.initial(torch.Generator())[0])
    assert blocks(mlp.x_shapes, size) == [Block(0, 7, 64, 7), Block(455, 5, 7, 5)]
    conv = HyperRepresentation(data, network="conv", filters=6, blocks=2)
    assert blocks(conv.x_shapes, 60 + 330) == [Block(0, 9, 6, 6, True), Block(60, 54, 6, 6, True)]


# ---- steps ----


def test_a_step_by_hand() -> None:
    """W = diag(2, 1), rho = 0.25: no longer than 0.5. h = diag(3, -1): n = 4, Q = diag(1, -1); then b1 = 0.5."""
    layout, x0 = [Block(0, 2, 2)], torch.tensor([2.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    h = torch.tensor([3.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    o = UpperOptions(upper_optimiser="spectral", upper_step=0.05, upper_beta1=0.5, upper_limit=0.25)
    x1, moments = moved(x0, h, Moments(), o, layout)
    assert x1.tolist() == pytest.approx([1.8, 0.0, 0.0, 1.2])  # 0.05 * 4 = 0.2
    assert moments.lengths == pytest.approx((2.0,))
    # m = 0.5 * (0.5 h) + 0.5 * (3 h) = 1.75 h, by 0.75: n = 9.333, 0.4667
    x2, moments = moved(x1, 3 * h, moments, o, layout)
    assert (x1 - x2).tolist() == pytest.approx([0.05 * 4 * 1.75 / 0.75, 0.0, 0.0, -0.05 * 4 * 1.75 / 0.75])
    x3, _ = moved(x2, 100 * h, moments, o, layout)
    assert (x2 - x3).tolist() == pytest.approx([0.5, 0.0, 0.0, -0.5])  # of the start's norm, whatever x is now
    slower = o.model_copy(update={"upper_schedule": "inverse", "upper_period": 2})
    x4, _ = moved(x2, 100 * h, moments, slower, layout)
    assert (x2 - x4).tolist() == pytest.approx([0.25, 0.0, 0.0, -0.25])  # after two steps half of both


def test_vectors_by_hand_where_their_entries_step_as_adam_s() -> None:
    """The matrix as above; entries (3, 4), of rms 3.5355; rho = 0.2; the first direction of Adam is the sign."""
    layout = blocks([Part("w", (2, 2)), Part("s", (2,))], 6)
    x0 = torch.tensor([2.0, 0.0, 0.0, 1.0, 3.0, 4.0], dtype=torch.float64)
    h = torch.tensor([3.0, 0.0, 0.0, -1.0, 1e-5, -20.0], dtype=torch.float64)
    o = UpperOptions(upper_optimiser="spectral", upper_step=0.05, upper_vectors="adam", upper_beta2=0.5)
    x1, moments = moved(x0, h, Moments(), o, layout)
    entry = 0.2 * 12.5**0.5
    assert (x0 - x1).tolist() == pytest.approx([0.2, 0.0, 0.0, -0.2, entry, -entry], rel=2e-3)
    assert moments.lengths == pytest.approx((2.0, 12.5**0.5))
    # h turns in the last entry: m = (0.09 * -20 + 0.1 * 20) / 0.19, s = (0.25 * 400 + 0.5 * 400) / 0.75
    x2, _ = moved(x1, h * torch.tensor([1.0, 1, 1, 1, 1, -1]), moments, o, layout)
    assert float((x1 - x2)[5]) == pytest.approx(entry * (0.2 / 0.19) / 20, rel=1e-6)
    still, _ = moved(x0, h, Moments(), o.model_copy(update={"upper_step": 0.0}), layout)
    assert torch.equal(still, x0)
    zeros, _ = moved(torch.zeros_like(x0), h, Moments(), o, layout)
    assert zeros[4:].tolist() == pytest.approx([-0.2, 0.2], rel=2e-3)


def by_numpy(start: np.ndarray, directions: list[np.ndarray], cuts: list[tuple[int, int, int]], **o: float) -> Any:
    """The steps along given directions: matrices [rows, columns] with a bias behind each."""
    x, m = start.copy(), np.zeros_like(start)

    def held(z: np.ndarray, begin: int, rows: int, columns: int) -> np.ndarray:
        weight = z[begin : begin + rows * columns].reshape(rows, columns)
        return np.hstack([weight, z[begin + rows * columns : begin + rows * columns + rows][:, None]])

    longest = [o["rho"] * np.linalg.norm(held(x, *cut), 2) for cut in cuts]
    found = []
    for k, h in enumerate(directions, start=1):
        m = o["mom"] * m + (1 - o["mom"]) * h
        for (begin, rows, columns), limit in zip(cuts, longest, strict=True):
            u, s, vh = np.linalg.svd(held(m, begin, rows, columns) / (1 - o["mom"] ** k), full_matrices=False)
            kept = s > 1e-12 * s[0]
            step = min(o["alpha"] * s.sum(), limit) * u[:, kept] @ vh[kept]
            x[begin : begin + rows * columns] -= step[:, :-1].flatten()
            x[begin + rows * columns : begin + rows * columns + rows] -= step[:, -1]
        found.append(x.copy())
    return found


@pytest.mark.parametrize("name", ["aggitd-s", "simfbo"])
def test_runs_on_a_network_step_as_numpy_does(name: str) -> None:
    """20 iterations; the directions are the library's, which other tests hold against dense derivatives."""
    problem = HyperRepresentation(federate("digits", clients=4), hidden=[6, 5], activation="tanh", dtype=torch.float64)
    options = {} if name == "aggitd-s" else {"upper_optimiser": "spectral", "lower_step": 0.3}
    result = simulate(
        problem, name, iterations=20, seed=1, dtype="float64", trace=True, upper_step=2.0, upper_limit=0.1, **options
    )
    assert result.trace is not None
    start = problem.initial(torch.Generator().manual_seed(1))[0].double().numpy()
    directions = [entry.hypergradient.numpy() for entry in result.trace if entry.hypergradient is not None]
    expected = by_numpy(start, directions, [(0, 6, 64), (390, 5, 6)], alpha=2.0, rho=0.1, mom=0.9)
    for entry, x in zip(result.trace, expected, strict=True):
        assert np.linalg.norm(entry.x.numpy() - x) <= 1e-9 * np.linalg.norm(x)


def test_what_cannot_be_used() -> None:
    with pytest.raises(BadInput, match=r"upper_limit: got 0.0; allowed: a number above 0"):
        simulate(quadratic(), "aggitd", iterations=1, upper_optimiser="spectral", upper_limit=0.0)


# ---- the probe ----


def test_the_probe_finds_the_largest_eigenvalue() -> None:
    """Within 10 per cent after 30 rounds; y and v rest in the first two."""
    problem = quadratic()
    largest = float(np.linalg.eigvalsh(Dense.of(problem).A)[-1])
    result = traced(problem, "aggitd-s", 31, upper_step=0.0)
    assert result.trace is not None
    y = [entry.y for entry in result.trace]
    assert torch.equal(y[0], y[1])
    assert not torch.equal(y[1], y[2])
    # y moved by gy / L in the last iteration
    x = result.trace[-2].x.numpy()
    gy = sum(client.p * client.gy(x, y[-2].numpy()) for client in clients_of(problem))
    L = np.linalg.norm(gy) / float((y[-2] - y[-1]).norm())
    assert abs(L - largest) < 0.1 * largest

"""Conjugate gradients for many systems at once, and what is done where one is indefinite."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clients.solvers.conjugate_gradients import DOUBLINGS, conjugate_gradients, solve
from fedbilevel import derivatives
from tests.agreement import relative
from tests.dense_tasks import eye
from tests.problem_table import Head
from tests.runs import unseen


def systems() -> tuple[Tensor, Tensor]:
    """Five positive definite systems, one of them with right-hand side 0 and one whose right-hand side is easy."""
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(5, 7, 7, generator=draw, dtype=torch.float64)
    A = root @ root.mT + 0.5 * eye(7)
    rhs = torch.randn(5, 7, generator=draw, dtype=torch.float64) * torch.tensor([1, 1e-25, 0, 1e25, 1])[:, None]
    rhs[4] = torch.linalg.eigh(A[4])[1][:, 2]
    return A, rhs


def product(A: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: torch.einsum("bij,bj->bi", A, v)


def test_systems_are_solved_together_as_they_are_alone() -> None:
    A, rhs = systems()
    found = solve(product(A), rhs, steps=50, tolerance=1e-13, damping=1.0)
    expected = torch.linalg.solve(A, rhs)
    for b in (0, 1, 3, 4):
        assert relative(found.u[b], expected[b]) < 1e-11
        alone = solve(product(A[b : b + 1]), rhs[b : b + 1], steps=50, tolerance=1e-13, damping=1.0)
        # both leave a residual of at most 1e-13, of systems whose condition numbers are below 100
        assert relative(alone.u[0], found.u[b]) < 1e-11
    assert not found.u[2].any()
    assert not found.negative.any()
    assert not found.skipped.any()
    assert float(found.residual.max()) < 1e-12


def test_a_converged_system_no_longer_moves_and_residuals_are_those_reached() -> None:
    A, rhs = systems()
    calls: list[Tensor] = []

    def watched(v: Tensor) -> Tensor:
        calls.append(v)
        return product(A)(v)

    u, _ = conjugate_gradients(watched, rhs, steps=3, tolerance=1e-10)
    assert len(calls) == 3
    assert all(not direction[4].any() and not direction[2].any() for direction in calls[1:])
    assert relative(u[4], torch.linalg.solve(A[4], rhs[4])) < 1e-12
    found = solve(product(A), rhs, steps=3, tolerance=1e-10, damping=1.0)
    left = (rhs - product(A)(found.u)).norm(dim=-1) / torch.where(rhs.norm(dim=-1) == 0, 1.0, rhs.norm(dim=-1))
    # the atol: a residual that is nothing but rounding is some units of |A| |u| / |rhs|, at most the condition number
    assert torch.allclose(found.residual, left, rtol=1e-9, atol=1e-13)
    assert float(found.residual[0]) > 1e-3


def test_indefinite_systems_are_damped_or_left_out_and_say_so() -> None:
    A, rhs = systems()
    rhs[2] = 1.0
    A[0] -= 3 * eye(7)
    A[1, 6, 6], rhs[1] = -1e6, torch.tensor([1.0] * 6 + [1e-5])
    A[4] = -eye(7)
    found = solve(product(A), rhs, steps=50, tolerance=1e-13, damping=0.4)
    assert found.negative.tolist() == [True, True, False, False, True]
    assert found.skipped.tolist() == [False, True, False, False, False]
    for b in range(5):
        smallest = float(torch.linalg.eigvalsh(A[b])[0])
        added = 0.0 if smallest > 0 else next((0.4 * 2**k for k in range(DOUBLINGS) if smallest + 0.4 * 2**k > 0), None)
        if added is None:
            assert not found.u[b].any()
            assert float(found.residual[b]) == pytest.approx(1.0)
        else:
            assert float(found.added[b]) == pytest.approx(added)
            assert relative(found.u[b], torch.linalg.solve(A[b] + added * eye(7), rhs[b])) < 1e-9


def test_only_levels_of_damping_that_may_do_are_tried() -> None:
    """The curvature that stopped a system rules out the levels below it."""
    A, calls = torch.diag_embed(torch.tensor([[2.0, -100.0], [2.0, -0.1], [2.0, 3.0]], dtype=torch.float64)), 0

    def counted(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return product(A)(v)

    rhs = torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64)
    found = solve(counted, rhs, steps=10, tolerance=1e-12, damping=0.25)
    assert found.added.tolist() == pytest.approx([128.0, 0.25, 0.0])
    assert relative(found.u[:, 1], torch.tensor([1 / 28, 1 / 0.15, 1 / 3])) < 1e-6
    assert calls == 3  # as they stand, each with its level, and for the residuals


def test_curvature_beyond_the_numbers_is_not_taken_for_none() -> None:
    A = torch.tensor([[[0.0, 0.0], [0.0, -torch.finfo(torch.float64).max]]], dtype=torch.float64)
    found = solve(lambda v: 4 * product(A)(v), torch.tensor([[0.0, 1.0]], dtype=torch.float64), steps=5, tolerance=1e-9,
                  damping=1.0)  # fmt: skip
    assert found.negative.all()
    assert found.skipped.all()
    assert not found.u.any()


def test_hessian_products_at_one_point_are_those_taken_one_by_one() -> None:
    tasks, draw = unseen(Head(), 2), torch.Generator().manual_seed(3)
    y = torch.randn(4, len(tasks), 9, generator=draw, dtype=torch.float64)
    one, several = tasks.hessian(y[0]), tasks.hessian(y)
    for _ in range(2):
        v = torch.randn(*y.shape, generator=draw, dtype=torch.float64)
        expected = torch.stack([tasks.hvp(*each) for each in zip(y, v, strict=True)])
        assert relative(several(v), expected) < 1e-13
        assert relative(one(v[0]), expected[0]) < 1e-13
    assert relative(tasks.hessian(y[0, 0])(v[0]), tasks.hvp(y[0, 0], v[0])) < 1e-13


@pytest.mark.parametrize("loss", [lambda y: 3 * y.sum(-1), lambda y: torch.ones(2)])
def test_a_loss_without_curvature_has_a_hessian_of_zero(loss: Callable[[Tensor], Tensor]) -> None:
    assert not derivatives.hessian(loss, torch.ones(2, 5))(torch.ones(2, 5)).any()


def test_nan_is_not_hidden() -> None:
    A, rhs = systems()
    A[0, 0, 0] = math.nan
    found = solve(product(A), rhs, steps=10, tolerance=1e-10, damping=1.0)
    assert found.u[0].isnan().any()
    assert found.u[1:].isfinite().all()

"""The true lower solution of large problems: single products, a sketch of the Hessian, and the same solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev

from clients.held import Held
from fedbilevel.data import federate
from fedbilevel.problems import HyperRepresentation
from fedbilevel.problems.inspection import convert
from fedbilevel.problems.networks import thin
from server.evaluation import lower_level, solution
from server.evaluation.lower_level import LowerLevel, NoSolution
from server.evaluation.solution import Solver
from server.running.run import initial


@pytest.fixture(scope="module")
def problem() -> HyperRepresentation:
    """In float32, as a run would have it, with clients of unlike weights."""
    return HyperRepresentation(federate(clients=6, seed=1), hidden=[12], activation="tanh", l2=0.002)


@pytest.fixture(scope="module")
def point(problem: HyperRepresentation) -> tuple[Tensor, Tensor]:
    x, y = initial(problem, 3)
    return 1.5 * x, y


class Dense:
    """F, y*, v and grad F of the pooled problem in float64, with its Hessian written down by autograd."""

    def __init__(self, problem: HyperRepresentation, x: Tensor) -> None:
        self.wide, self.x = convert(problem, torch.float64), x.double()
        self.y = torch.zeros_like(initial(problem, 0)[1]).double()
        for _ in range(15):
            self.y = self.y - torch.linalg.solve(self.hessian(), grad(lambda y: self.mean("lower", self.x, y))(self.y))
        self.v = torch.linalg.solve(self.hessian(), grad(lambda y: self.mean("upper", self.x, y))(self.y))
        cross = grad(lambda x: grad(lambda y: self.mean("lower", x, y))(self.y) @ self.v)(self.x)
        self.gradient = grad(lambda x: self.mean("upper", x, self.y))(self.x) - cross
        self.value = float(self.mean("upper", self.x, self.y))

    def mean(self, level: str, x: Tensor, y: Tensor) -> Tensor:
        held = getattr(self.wide.clients, level)
        shares = torch.from_numpy(np.repeat(self.wide.clients.weights / held.sizes, held.sizes))
        losses: Tensor = getattr(self.wide, level)(x, y, self.wide.prepare(x, held.values))
        return (losses * shares).sum()

    def hessian(self) -> Tensor:
        return jacrev(grad(lambda y: self.mean("lower", self.x, y)))(self.y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("sketch", [100, 10**6], ids=["a part of the examples", "all of them"])
@pytest.mark.parametrize("dense", [3000, 0], ids=["sketched", "plain"])
def test_single_products_find_the_solution_in_double_precision(
    problem: HyperRepresentation,
    point: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    dense: int,
    sketch: int,
) -> None:
    monkeypatch.setattr(solution, "SMALL", 0)
    monkeypatch.setattr(lower_level, "DENSE", dense)
    monkeypatch.setattr(lower_level, "SKETCH", sketch)
    x, y = point
    expected = Dense(problem, x)
    found = Solver(problem, y).at(x, y)
    assert found.gradient.dtype == torch.float64
    slope = grad(lambda y: expected.mean("lower", expected.x, y))
    assert float(slope(found.y).norm()) <= 1e-8 * float(slope(torch.zeros_like(found.y)).norm())
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert relative(found.v, expected.v) < 1e-6
    assert relative(found.gradient, expected.gradient) < 1e-6
    # what is found beside it, in single precision, for a direction of the run
    beside = Solver(problem, y).gradient(x + 1e-3, found)
    assert relative(beside, Dense(problem, x + 1e-3).gradient) < 1e-4
    assert relative(found.gradient, Dense(problem, x + 1e-3).gradient) > 1e-3


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_a_sketch_saves_products(problem: HyperRepresentation, point: tuple[Tensor, Tensor]) -> None:
    x, y = point
    wide = convert(problem, torch.float64)
    held = Held.of(wide, np.arange(len(wide.clients)))
    taken = {}
    with torch.no_grad():
        for large in (False, True):
            level = LowerLevel(held, None, x.double(), y, large=large)
            level.minimiser(y, 1e-8)
            taken[large] = level._products
    assert taken[True] <= 0.6 * taken[False]


def test_the_sketch_is_the_hessian_on_every_kth_example(
    problem: HyperRepresentation, point: tuple[Tensor, Tensor]
) -> None:
    x, y = point
    wide = convert(problem, torch.float64)
    pooled = lower_level.together(Held.of(wide, np.arange(len(wide.clients))))
    expected = Dense(problem, x)
    expected.y = y.double() + 0.1
    everything = pooled.sketched_hessian(expected.x, expected.y, 10**6)
    assert relative(everything, expected.hessian()) < 1e-12
    part = pooled.sketched_hessian(expected.x, expected.y, 150)
    assert 1e-3 < relative(part, expected.hessian()) < 0.5
    assert float((part - part.mT).norm()) < 1e-12


def test_a_lower_level_that_is_concave_on_its_sketch_is_solved_without_one(
    problem: HyperRepresentation, point: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = point
    monkeypatch.setattr(solution, "SMALL", 0)
    original = lower_level.Cohort.sketched_hessian
    monkeypatch.setattr(lower_level.Cohort, "sketched_hessian", lambda *given: original(*given) - torch.eye(130))
    assert Solver(problem, y).at(x, y).value == pytest.approx(Dense(problem, x).value, rel=1e-9)


def test_what_single_precision_cannot_solve_is_solved_in_double(
    problem: HyperRepresentation, point: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every product in single precision says that the lower level is not convex."""
    x, y = point
    monkeypatch.setattr(solution, "SMALL", 0)
    solved = LowerLevel._solved

    def refuses(self: LowerLevel, pooled: object, at: Tensor, *rest: object) -> Tensor:
        if at.dtype == torch.float32:
            raise NoSolution("not in single precision")
        return solved(self, pooled, at, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LowerLevel, "_solved", refuses)
    solver = Solver(problem, y)
    found = solver.at(x, y)
    assert relative(found.gradient, Dense(problem, x).gradient) < 1e-6
    assert relative(solver.gradient(x + 1e-3, found), Dense(problem, x + 1e-3).gradient) < 1e-6


@pytest.mark.parametrize("n", [thin.LONG - 1, thin.LONG, thin.LONG + thin.BLOCK // 3])
def test_products_in_blocks_are_products(n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    weight, feature, cotangent = (torch.randn(*s, generator=draw).double() for s in ((3, 5), (n, 5), (3, n)))
    assert torch.allclose(thin.outputs(weight, feature), weight @ feature.T, rtol=1e-12, atol=1e-12)
    assert torch.allclose(thin.inputs(cotangent, feature), cotangent @ feature, rtol=1e-12, atol=1e-10)
    strided = cotangent.T.contiguous().T
    assert torch.allclose(thin.inputs(strided, feature), cotangent @ feature, rtol=1e-12, atol=1e-10)
    rows = weight.expand(2, -1, -1)
    assert thin.outputs(rows, feature[:9]).shape == (2, 3, 9)

"""What x is worth at the true lower solution: against dense solves and closed forms in numpy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import BadInput, ClientData, simulate
from fedbilevel.data import federate
from fedbilevel.problems import HyperRepresentation, Quadratic
from fedbilevel.problems.inspection import convert
from server.evaluation.lower_level import NoSolution
from server.evaluation.solution import SMALL, Solver, every, size
from server.running.run import initial

COLUMNS = ("value", "value_accuracy", "gradient_norm", "hypergradient_error")


class Opaque:
    """The same problem without its closed forms."""

    def __init__(self, problem: Quadratic) -> None:
        self.inner, self.clients = problem, problem.clients

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.inner.initial(generator)

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return self.inner.lower(x, y, examples)

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return self.inner.upper(x, y, examples)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {"test_accuracy": 0.25 + 0.0 * float(y.sum())}


def means(problem: Quadratic) -> dict[str, np.ndarray]:
    """sum_i p_i mean_e of every matrix, by a loop."""
    total: dict[str, np.ndarray] = {}
    for level in (problem.clients.lower, problem.clients.upper):
        for i, p in enumerate(problem.clients.weights):
            rows = slice(int(level.offsets[i]), int(level.offsets[i + 1]))
            own = {name: values[rows].double().numpy() for name, values in level.values.items()}
            if "C" in own:
                own["Cc"] = np.einsum("nij,nj->ni", own["C"], own["c"])
                own["cCc"] = np.einsum("ni,ni->n", own["Cc"], own["c"])
            for name, value in own.items():
                total[name] = total.get(name, 0.0) + p * value.mean(0)
    return total


def by_hand(problem: Quadratic, x: np.ndarray) -> tuple[float, np.ndarray]:
    """F(x) and grad F(x) by a dense solve in numpy."""
    m = means(problem)
    y = np.linalg.solve(m["A"], m["B"] @ x + m["b"])
    value = 0.5 * y @ m["C"] @ y - y @ m["Cc"] + 0.5 * m["cCc"] + m["d"] @ x + 0.5 * problem.rho * x @ x
    v = np.linalg.solve(m["A"], m["C"] @ y - m["Cc"])
    return float(value), m["d"] + problem.rho * x + m["B"].T @ v


@pytest.fixture(scope="module")
def quadratic() -> Quadratic:
    return Quadratic(clients=4, dim_x=3, dim_y=5, examples=(2, 4), weights=[0.2, 1.0, 0.7, 2.0], seed=5, mu=0.05)


@pytest.mark.parametrize("closed", [True, False])
def test_value_gradient_and_error_equal_a_dense_solve_at_every_row(quadratic: Quadratic, closed: bool) -> None:
    problem = quadratic if closed else Opaque(quadratic)
    result = simulate(
        problem, "f2sa", iterations=6, penalty=3.0, upper_step=0.1, dtype="float64", solution_every=1, trace=True
    )
    assert result.trace is not None
    points = [initial(quadratic, 0)[0], *(entry.x for entry in result.trace)]
    for k, row in enumerate(result.history):
        value, gradient = by_hand(quadratic, points[k].numpy())
        assert row["value"] == pytest.approx(value, rel=1e-9)
        assert row["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-8)
        if k == 0:
            assert row["hypergradient_error"] is None
            continue
        # the direction that led to this row was taken at the x before it
        used = by_hand(quadratic, points[k - 1].numpy())[1]
        h = result.trace[k - 1].hypergradient
        assert h is not None
        error = np.linalg.norm(h.numpy() - used) / np.linalg.norm(used)
        assert row["hypergradient_error"] == pytest.approx(error, rel=1e-6)
        assert row["value_accuracy"] == (None if closed else 0.25)


def test_the_accuracy_is_that_of_the_lower_solution_and_not_of_the_runs_y() -> None:
    """By closed forms and by a search: the measure tells the y that it was given."""

    class Told(Quadratic):
        def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
            return {"test_accuracy": float(y[1])}

    class Searched(Opaque):
        def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
            return {"test_accuracy": float(y[1])}

    known = Told(clients=3, dim_x=2, dim_y=3, seed=4)
    m, x = means(known), initial(known, 0)[0].numpy()
    for problem in (known, Searched(known)):
        row = simulate(problem, "joint", iterations=1, solution_every=1).history[0]
        assert row["value_accuracy"] == pytest.approx(np.linalg.solve(m["A"], m["B"] @ x + m["b"])[1], rel=1e-9)
        assert row["test_accuracy"] == pytest.approx(float(initial(known, 0)[1][1]), rel=1e-12)


def test_an_exact_hypergradient_has_no_error(quadratic: Quadratic) -> None:
    result = simulate(
        Opaque(quadratic), "aggitd", iterations=1, lower_rounds=300, lower_step=1.5, accounting="merged",
        dtype="float64", upper_step=0.1, solution_every=1,
    )  # fmt: skip
    assert float(str(result.history[-1]["hypergradient_error"])) < 1e-6


def test_a_float32_run_is_judged_in_float64() -> None:
    problem = HyperRepresentation(federate(clients=4, seed=0), hidden=[5], activation="tanh", l2=0.1)
    wide = convert(problem, torch.float64)
    result = simulate(problem, "memfbo", iterations=3, dtype="float32", solution_every=1, trace=True)
    assert result.trace is not None
    last = result.trace[-1].x.double()
    # a second implementation: Newton's method with the dense Hessian of the pooled loss
    shares = np.repeat(wide.clients.weights / wide.clients.lower.sizes, wide.clients.lower.sizes)
    prepared = wide.prepare(last, wide.clients.lower.values)
    y = torch.zeros_like(initial(wide, 0)[1])
    weights = torch.from_numpy(shares)

    def pooled(y: Tensor) -> Tensor:
        return (wide.lower(last, y, prepared) * weights).sum()

    for _ in range(12):
        y = y - torch.linalg.solve(torch.func.jacrev(torch.func.grad(pooled))(y), torch.func.grad(pooled)(y))
    upper = np.repeat(wide.clients.weights / wide.clients.upper.sizes, wide.clients.upper.sizes)
    losses = wide.upper(last, y, wide.prepare(last, wide.clients.upper.values))
    assert result.history[-1]["value"] == pytest.approx(float((losses * torch.from_numpy(upper)).sum()), rel=1e-10)
    assert result.history[-1]["value_accuracy"] == wide.evaluate(last, y)["test_accuracy"]


def test_it_is_looked_for_at_every_kth_evaluation_and_at_the_last(quadratic: Quadratic) -> None:
    rows = simulate(quadratic, "aggitd", iterations=8, solution_every=3).history
    assert [row["value"] is not None for row in rows] == [k % 3 == 0 or k == 8 for k in range(9)]
    rows = simulate(quadratic, "aggitd", iterations=3, solution_every=0).history
    assert not set(COLUMNS) & set(rows[0])


def test_the_default_depends_on_the_problem_alone(quadratic: Quadratic) -> None:
    x, y = initial(quadratic, 0)
    assert every(None, quadratic, x, y) == 1
    assert every(None, Opaque(quadratic), x, y) == 10
    examples = int(quadratic.clients.lower.sizes.sum() + quadratic.clients.upper.sizes.sum())
    assert size(quadratic, x, y) == examples * 8
    wide = torch.zeros(SMALL // examples + 1)
    assert every(None, Opaque(quadratic), wide, y) == 0
    assert every(4, Opaque(quadratic), wide, y) == 4


class Saddle(Opaque):
    """A lower level that is concave in one direction."""

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return super().lower(x, y, examples) - 4.0 * y[0] ** 2


class Flat(Opaque):
    """A lower level without a minimum: it falls for ever, and is convex."""

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return torch.exp(-y.sum()) * torch.ones(len(examples["b"]), dtype=y.dtype)


@pytest.mark.parametrize("kind", [Saddle, Flat])
def test_without_a_solution_the_cells_are_empty_and_it_is_said_once(quadratic: Quadratic, kind: type[Opaque]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = simulate(kind(quadratic), "fedavg-alternating", iterations=3, solution_every=1, lower_step=0.01).history
    assert all(row[column] is None for row in rows for column in COLUMNS)
    assert len([each for each in caught if "stay empty" in str(each.message)]) == 1


def test_a_solution_does_not_depend_on_where_its_search_begins(quadratic: Quadratic) -> None:
    x, y = initial(quadratic, 0)
    solver = Solver(Opaque(quadratic), y)
    here, there = solver.at(x, y), solver.at(x, 100.0 * torch.ones_like(y), torch.ones_like(y))
    assert here.value == pytest.approx(there.value, rel=1e-8)
    assert torch.allclose(here.gradient, there.gradient, rtol=1e-6)
    with pytest.raises(NoSolution, match="not strongly convex"):
        Solver(Saddle(quadratic), y).at(x, y)


def test_a_run_that_starts_at_the_solution_has_a_scale_still(quadratic: Quadratic) -> None:
    x, y = initial(quadratic, 0)
    start = quadratic.lower_solution(x)
    found = Solver(Opaque(quadratic), start).at(x, start)
    assert found.value == pytest.approx(by_hand(quadratic, x.numpy())[0], rel=1e-12)
    zero = torch.zeros_like(y)
    with_zero = Quadratic(clients=1, noise=0.0, seed=1)
    with_zero.clients.lower.values["b"].zero_()
    assert Solver(Opaque(with_zero), torch.zeros(8)).at(torch.zeros(5), torch.zeros(8)).y.norm() <= 1e-12
    assert Solver(Opaque(quadratic), zero).at(x, zero).value == pytest.approx(found.value, rel=1e-9)


def test_a_local_lower_level_has_no_such_columns() -> None:
    assert not set(COLUMNS) & set(simulate("quadratic_tasks", "maml", iterations=1).history[0])
    with pytest.raises(BadInput, match=r"^solution_every: got 2; allowed: 0 where the lower level is local"):
        simulate("quadratic_tasks", "maml", iterations=1, solution_every=2)


def test_it_is_not_counted_as_communication(quadratic: Quadratic) -> None:
    with_it, without = (simulate(Opaque(quadratic), "f2sa", iterations=3, solution_every=k) for k in (1, 0))
    assert with_it.communication == without.communication
    assert torch.equal(with_it.x, without.x)
    assert isinstance(with_it.history[0]["value"], float)
    assert isinstance(quadratic.clients, ClientData)


def test_a_solution_is_found_to_the_last_digits_also_where_the_loss_is_no_quadratic() -> None:
    """y^3 + y = x has one real root; F(x) = y*(x), so that F'(x) = 1 / (3 y^2 + 1)."""

    class Cubic:
        """g = y^4 / 4 + y^2 / 2 - x y and f = y, in four coordinates."""

        clients = ClientData([torch.zeros(1, 1, dtype=torch.float64)], [torch.zeros(1, 1, dtype=torch.float64)])

        def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
            return (y**4 / 4 + y**2 / 2 - x * y).sum() * torch.ones(len(examples), dtype=y.dtype)

        def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
            return y.sum() * torch.ones(len(examples), dtype=y.dtype)

    y0 = torch.tensor([0.1, -2.0, 1.0, 0.0], dtype=torch.float64)
    solver: Any = Solver(Cubic(), y0)  # type: ignore[arg-type]  # a solver needs no start and no evaluation
    for first in np.linspace(-6, 6, 6):
        x = np.array([first, 1.5 - first, first / 3, 2.0])
        roots = [np.roots([1, 0, 1, -each]) for each in x]
        y = np.array([float(each[np.abs(each.imag) < 1e-9].real[0]) for each in roots])
        found = solver.at(torch.from_numpy(x), y0)
        np.testing.assert_allclose(found.y, y, rtol=1e-11, atol=1e-13)
        assert found.value == pytest.approx(y.sum(), rel=1e-11, abs=1e-12)
        np.testing.assert_allclose(found.gradient, 1 / (3 * y**2 + 1), rtol=1e-10)


def test_where_the_direction_cannot_be_judged_the_whole_row_is_empty() -> None:
    """From x = -1, where there is no solution, to a point that has one: F is known there, but not what led to it."""

    class Turning:
        """g = x y^2 / 2 - y, convex where x > 0; f = y - 3 x, so that F(x) = 1/x - 3 x there."""

        clients = ClientData([torch.zeros(1, 1, dtype=torch.float64)], [torch.zeros(1, 1, dtype=torch.float64)])

        def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return torch.tensor([-1.0], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)

        def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
            return (0.5 * x * y**2 - y) * torch.ones(len(examples), dtype=y.dtype)

        def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
            return (y - 3 * x) * torch.ones(len(examples), dtype=y.dtype)

        def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
            return {}

    with pytest.warns(UserWarning, match="stay empty where that is so"):
        rows = simulate(
            Turning(), "fedavg-alternating", iterations=2, solution_every=1, upper_step=1.0, lower_step=0.0
        ).history
    assert [row["value"] for row in rows[:2]] == [None, None]
    assert [row["gradient_norm"] for row in rows[:2]] == [None, None]
    assert rows[2]["value"] == pytest.approx(1 / 5 - 15, rel=1e-9)  # x = -1, 2, 5 along fx = -3
    assert rows[2]["gradient_norm"] == pytest.approx(1 / 25 + 3, rel=1e-9)
    assert rows[2]["hypergradient_error"] == pytest.approx((3 + 1 / 4 - 3) / (3 + 1 / 4), rel=1e-9)


def test_an_error_relative_to_nothing_is_left_empty() -> None:
    """F does not depend on x, nor y* : grad F = 0 exactly, which no direction can be held against."""

    class Apart(Opaque):
        def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
            return 0.5 * ((y - 1) ** 2).sum() * torch.ones(len(examples["b"]), dtype=y.dtype)

        def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
            return (y.sum() ** 2) * torch.ones(len(examples["d"]), dtype=y.dtype)

    rows = simulate(
        Apart(Quadratic(clients=2, dim_x=2, dim_y=3)), "fedavg-alternating", iterations=1, solution_every=1
    ).history
    assert (rows[1]["gradient_norm"], rows[1]["hypergradient_error"]) == (0.0, None)
    assert rows[1]["value"] == pytest.approx(9.0, rel=1e-12)

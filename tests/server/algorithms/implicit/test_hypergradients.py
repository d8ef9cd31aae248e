"""Every hypergradient estimate against a dense solve, its truncation error, and the fixed points of the methods."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from clients.node import Setting
from fedbilevel import ClientData, Problem, simulate
from fedbilevel.data import federate
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problem import map_examples
from fedbilevel.problems import HyperRepresentation, Quadratic
from server.grids.engines import in_process
from server.kit.algorithm import find
from server.running.run import Result
from tests import reference
from tests.reference import Dense


def run(problem: Problem, name: str, iterations: int, **options: Any) -> Result:
    return simulate(problem, name, iterations=iterations, dtype="float64", trace=True, evaluate_every=10**9, **options)


def directions(result: Result) -> list[Tensor]:
    assert result.trace is not None
    found = [entry.hypergradient for entry in result.trace]
    return [h for h in found if h is not None]


def last_state(problem: Problem, name: str, x: Tensor, y: Tensor, iterations: int = 1, **options: Any) -> Any:
    """The whole state of an algorithm, with the vectors that a result does not show."""
    fed = Federation(in_process(problem, Setting()), Population.of(problem.clients))
    algorithm = find(name).make(options)
    state = algorithm.init(x, y)
    for k in range(iterations):
        fed.begin(k)
        state = algorithm.step(state, fed)
    return state


def relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def point(problem: Quadratic, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random x and y*(x) by a dense solve."""
    x = torch.randn(problem.dim_x, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.from_numpy(Dense.of(problem).lower_solution(x.numpy()))


QUADRATICS: list[dict[str, Any]] = [
    {"clients": 1, "dim_x": 1, "dim_y": 1, "examples": 2, "seed": 1},
    {"clients": 4, "dim_x": 3, "dim_y": 5, "weights": "size", "seed": 2},
    {"clients": 6, "dim_x": 7, "dim_y": 2, "weights": "uniform", "seed": 3},
    {"clients": 3, "dim_x": 4, "dim_y": 4, "weights": [5.0, 1.0, 0.2], "heterogeneity": 3.0, "seed": 4},
]


# ---- the closed forms of Quadratic ----


@pytest.mark.parametrize("parameters", QUADRATICS)
def test_closed_forms_of_the_quadratic_problem(parameters: dict[str, Any]) -> None:
    problem = Quadratic(**parameters)
    dense = Dense.of(problem)
    x, y = point(problem)
    eye = torch.eye(problem.dim_x, dtype=torch.float64)
    slopes = [(problem.value(x + 1e-3 * e) - problem.value(x - 1e-3 * e)) / 2e-3 for e in eye]
    assert relative(problem.hypergradient(x), slopes) < 1e-9
    assert relative(problem.hypergradient(x), dense.hypergradient(x.numpy())) < 1e-12
    elsewhere = y + 1.0
    assert relative(problem.hypergradient(x, elsewhere), dense.hypergradient(x.numpy(), elsewhere.numpy())) < 1e-12
    assert relative(problem.lower_solution(x), y) < 1e-12


@pytest.mark.parametrize("parameters", QUADRATICS)
def test_solutions_of_the_quadratic_problem_are_optima(parameters: dict[str, Any]) -> None:
    problem = Quadratic(**parameters)
    draw = torch.Generator().manual_seed(9)
    x = torch.randn(problem.dim_x, generator=draw, dtype=torch.float64)
    y = problem.lower_solution(x)
    lower, gradient = global_loss(problem, "lower", x, y), global_gradient_y(problem, "lower", x, y)
    assert float(gradient.norm()) < 1e-12 * (1 + float(y.norm()))
    best = problem.solution()
    assert float(problem.hypergradient(best).norm()) < 1e-11 * (1 + float(best.norm()))
    value = problem.value(best)
    assert abs(value - float(global_loss(problem, "upper", best, problem.lower_solution(best)))) < 1e-12 * abs(value)
    for _ in range(10):
        aside = torch.randn(problem.dim_y, generator=draw, dtype=torch.float64)
        assert float(global_loss(problem, "lower", x, y + 0.1 * aside)) > float(lower)
        aside = torch.randn(problem.dim_x, generator=draw, dtype=torch.float64)
        assert problem.value(best + 0.1 * aside) > value
    measures = problem.evaluate(best, problem.lower_solution(best))
    assert measures["distance"] < 1e-12
    assert measures["lower_distance"] < 1e-12
    assert measures["test_loss"] == value


def test_a_client_with_one_example_is_built_without_warnings() -> None:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        Quadratic(clients=2, examples=1)
    finally:
        torch.set_warn_always(before)


# ---- a dense solve on any problem ----


def global_loss(problem: Problem, level: str, x: Tensor, y: Tensor) -> Tensor:
    """sum_i p_i mean_e of the losses, client by client."""
    data = problem.clients
    ragged = getattr(data, level)
    total = torch.zeros((), dtype=torch.float64)
    for i, p in enumerate(data.weights):
        rows = slice(int(ragged.offsets[i]), int(ragged.offsets[i + 1]))
        examples = map_examples(lambda tensor, rows=rows: tensor[rows], ragged.values)
        if hasattr(problem, "prepare"):
            examples = problem.prepare(x, examples)
        total = total + float(p) * getattr(problem, level)(x, y, examples).mean()
    return total


def global_gradient_y(problem: Problem, level: str, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    y = y if y.requires_grad else y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(global_loss(problem, level, x, y), y, create_graph=create_graph)
    return gradient


def newton(problem: Problem, x: Tensor, y: Tensor) -> Tensor:
    for _ in range(30):
        gradient = global_gradient_y(problem, "lower", x, y)
        if float(gradient.norm()) < 1e-15:
            break
        H = hessian(lambda y: global_loss(problem, "lower", x, y), y)
        y = y - torch.linalg.solve(H, gradient)
    assert float(global_gradient_y(problem, "lower", x, y).norm()) < 1e-13
    return y


def dense_hypergradient(problem: Problem, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """agg(fx) - agg(J) [agg H]^-1 agg(fy), and agg H."""
    H = hessian(lambda y: global_loss(problem, "lower", x, y), y)
    start = y.clone().requires_grad_()
    J = jacobian(lambda x: global_gradient_y(problem, "lower", x, start, create_graph=True), x).T
    leaf = x.clone().requires_grad_()
    (fx,) = torch.autograd.grad(global_loss(problem, "upper", leaf, y), leaf, allow_unused=True)
    return fx - J @ torch.linalg.solve(H, global_gradient_y(problem, "upper", x, y)), H


@functools.cache
def digits(activation: Literal["relu", "tanh"], weights: str) -> HyperRepresentation:
    """Some of the digits on three unequal clients."""
    data = federate("digits", clients=12, parameters={"alpha": 0.5}, seed=5)
    some = np.array([0, 4, 7])
    three = ClientData(data.clients.lower.take(some), data.clients.upper.take(some), weights)
    return HyperRepresentation(replace(data, clients=three), [3], activation, l2=0.3, dtype=torch.float64)


@functools.cache
def digits_point(activation: Literal["relu", "tanh"], weights: str) -> tuple[Tensor, Tensor, Tensor, float, int]:
    """x, y*(x), the dense hypergradient, a Neumann step and a number of terms that suffice."""
    problem = digits(activation, weights)
    x, y = problem.initial(torch.Generator().manual_seed(3))
    y = newton(problem, x, y)
    h, H = dense_hypergradient(problem, x, y)
    eigenvalues = torch.linalg.eigvalsh(H)
    lam = float(1.9 / (eigenvalues[0] + eigenvalues[-1]))
    factor = float((1 - lam * eigenvalues).abs().max())
    return x, y, h, lam, int(np.ceil(np.log(1e-10) / np.log(factor)))


SUMS: list[tuple[str, dict[str, Any]]] = [
    ("aggitd", {"accounting": "merged"}),
    ("aggitd", {"accounting": "paper", "local_steps": 2, "upper_local_steps": 0}),
    ("fednest", {"accounting": "merged", "lower_rounds": 1}),
    ("fednest", {"lower_rounds": 2, "local_steps": 3}),
    ("fednest-sgd", {"lower_rounds": 1}),
]


@pytest.mark.parametrize(("name", "options"), SUMS)
@pytest.mark.parametrize("parameters", QUADRATICS)
def test_sums_equal_the_dense_solve_on_quadratics(
    name: str, options: dict[str, Any], parameters: dict[str, Any]
) -> None:
    problem = Quadratic(**parameters, mu=0.3)
    x, y = point(problem)
    terms = 60
    options = {"lower_rounds": terms, "neumann_terms": terms, **options}
    result = run(problem, name, 1, x0=x, y0=y, upper_step=0.1, lower_step=0.4, neumann_step=1.2, **options)
    expected = Dense.of(problem).hypergradient(x.numpy())
    assert relative(directions(result)[0], expected) < 1e-8
    assert relative(result.x, x.numpy() - 0.1 * expected) < 1e-8
    assert relative(result.y, y) < 1e-12


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
@pytest.mark.parametrize(("activation", "weights"), [("tanh", "size"), ("relu", "size"), ("tanh", "uniform")])
def test_sums_equal_the_dense_solve_on_digits(name: str, activation: str, weights: str) -> None:
    x, y, expected, lam, terms = digits_point(activation, weights)
    lower_rounds = terms if name == "aggitd" else 1
    options = {"lower_rounds": lower_rounds, "neumann_terms": terms, "lower_step": 0.1, "neumann_step": lam}
    result = run(digits(activation, weights), name, 1, x0=x, y0=y, upper_step=0.0, accounting="merged", **options)
    assert relative(directions(result)[0], expected) < 1e-8


def test_the_dense_solve_is_the_slope_of_the_upper_loss_on_digits() -> None:
    """F(x) = f(x, y*(x)) by Newton's method, differences along random directions."""
    x, y, h, _, _ = digits_point("tanh", "uniform")
    problem = digits("tanh", "uniform")
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        u = torch.randn(x.shape, generator=draw, dtype=torch.float64)
        u = u / u.norm()
        ends = [global_loss(problem, "upper", x + s * u, newton(problem, x + s * u, y)) for s in (1e-4, -1e-4)]
        assert abs(float(ends[0] - ends[1]) / 2e-4 - float(h @ u)) < 1e-6 * float(h.norm())


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
@pytest.mark.parametrize("parameters", QUADRATICS[1:])
def test_sampled_estimates_average_to_the_dense_solve(name: str, parameters: dict[str, Any]) -> None:
    """Over all Q, or all N', with y and x at rest."""
    problem = Quadratic(**parameters, mu=0.6)
    x, y = point(problem)
    terms = 24
    o = {"lower_rounds": terms if name == "aggitd" else 1, "neumann_terms": terms, "indices": list(range(terms))}
    steps = {"upper_step": 0.0, "lower_step": 0.4, "neumann_step": 1.25}
    result = run(problem, name, terms, x0=x, y0=y, estimator="sample", accounting="merged", **o, **steps)
    average = torch.stack(directions(result)).mean(0)
    assert relative(average, Dense.of(problem).hypergradient(x.numpy())) < 1e-8
    assert relative(directions(result)[0], average) > 1e-3


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_sampled_estimates_average_to_the_dense_solve_on_digits(name: str) -> None:
    """E over a few terms: the truncated Neumann sum of a dense Hessian."""
    x, y, full, lam, _ = digits_point("relu", "size")
    problem = digits("relu", "size")
    terms = 4
    o = {"lower_rounds": terms if name == "aggitd" else 1, "neumann_terms": terms, "indices": list(range(terms))}
    steps = {"upper_step": 0.0, "lower_step": 0.1, "neumann_step": lam}
    result = run(problem, name, terms, x0=x, y0=y, estimator="sample", accounting="merged", **o, **steps)
    average = torch.stack(directions(result)).mean(0)
    H = hessian(lambda y: global_loss(problem, "lower", x, y), y)
    fy = global_gradient_y(problem, "upper", x, y)
    v = lam * sum(torch.linalg.matrix_power(torch.eye(len(y)) - lam * H, n) @ fy for n in range(terms))
    leaf = x.clone().requires_grad_()
    (fx,) = torch.autograd.grad(global_loss(problem, "upper", leaf, y), leaf)
    slope = global_gradient_y(problem, "lower", leaf, y.clone().requires_grad_(), create_graph=True) @ v
    (Jv,) = torch.autograd.grad(slope, leaf)
    assert relative(average, fx - Jv) < 1e-10
    assert relative(average, full) > 1e-5


# ---- truncation errors ----


@pytest.mark.parametrize("terms", [1, 2, 5, 9])
@pytest.mark.parametrize("parameters", QUADRATICS)
def test_truncation_error_of_aggitd(terms: int, parameters: dict[str, Any]) -> None:
    """From y* and v = 0 the error of v is (I - lam H)^N v*, exactly."""
    problem, lam = Quadratic(**parameters), 0.7
    x, y = point(problem)
    dense = Dense.of(problem)
    state = last_state(problem, "aggitd", x, y, lower_rounds=terms, neumann_step=lam, lower_step=0.3)
    v = dense.v(y.numpy())
    error = np.linalg.matrix_power(np.eye(len(v)) - lam * dense.A, terms) @ v
    assert relative(v - state.v.numpy(), error) < 1e-11
    assert relative(state.hypergradient.numpy() - dense.hypergradient(x.numpy()), dense.cross(error)) < 1e-11


@pytest.mark.parametrize("terms", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("parameters", QUADRATICS)
def test_truncation_error_of_fednest(terms: int, parameters: dict[str, Any]) -> None:
    """At y* the sum n = 0..N leaves J H^-1 (I - lam H)^{N+1} fy, exactly."""
    problem, lam = Quadratic(**parameters), 0.7
    x, y = point(problem)
    dense = Dense.of(problem)
    result = run(problem, "fednest", 1, x0=x, y0=y, neumann_terms=terms, neumann_step=lam, lower_step=0.3)
    factor = np.linalg.matrix_power(np.eye(len(y)) - lam * dense.A, terms + 1)
    error = dense.cross(np.linalg.solve(dense.A, factor @ dense.fy(y.numpy())))
    assert relative(directions(result)[0].numpy() - dense.hypergradient(x.numpy()), error) < 1e-11


@pytest.mark.parametrize("local_steps", [1, 3])
def test_all_Q_average_to_the_sum_of_aggitd(local_steps: int) -> None:  # noqa: N802 - the paper's symbol
    """On one y trajectory, from a cold start: E over Q of lam N r is v_N."""
    problem, terms = Quadratic(**QUADRATICS[1]), 7
    x, y = problem.initial(torch.Generator().manual_seed(2))
    options = {"lower_rounds": terms, "neumann_step": 0.8, "lower_step": 0.5, "local_steps": local_steps}
    (expected,) = directions(run(problem, "aggitd", 1, x0=x, y0=y, **options))
    parts = [
        directions(run(problem, "aggitd", 1, x0=x, y0=y, estimator="sample", indices=[Q], **options))[0]
        for Q in range(terms)
    ]
    assert relative(torch.stack(parts).mean(0), expected) < 1e-12


def test_all_indices_of_fed_ihgp_average_to_the_sum_of_N_terms() -> None:  # noqa: N802 - the paper's symbol
    """E over N' = the N-term Neumann sum, n = 0..N-1: the fixed sum with one term less."""
    problem, terms = Quadratic(**QUADRATICS[3]), 7
    x, y = problem.initial(torch.Generator().manual_seed(2))
    options = {"neumann_step": 0.8, "lower_step": 0.5, "lower_rounds": 2}
    parts = [
        directions(
            run(problem, "fednest", 1, x0=x, y0=y, neumann_terms=terms, estimator="sample", indices=[n], **options)
        )[0]
        for n in range(terms)
    ]
    average = torch.stack(parts).mean(0)
    dense = Dense.of(problem)
    y_next = y.numpy()
    for _ in range(2):
        y_next = y_next - 0.5 * (dense.A @ y_next - dense.B @ x.numpy() - dense.b)
    factor = np.eye(len(y)) - 0.8 * dense.A
    p = 0.8 * sum(np.linalg.matrix_power(factor, n) @ dense.fy(y_next) for n in range(terms))
    assert relative(average, dense.d + dense.rho * x.numpy() - dense.cross(p)) < 1e-12
    (shorter,) = directions(run(problem, "fednest", 1, x0=x, y0=y, neumann_terms=terms - 1, **options))
    assert relative(average, shorter) < 1e-12


@pytest.mark.parametrize("terms", [1, 3])
def test_a_warm_start_removes_the_truncation_bias(terms: int) -> None:
    problem = Quadratic(clients=3, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, seed=6)
    options = {"lower_rounds": terms, "lower_step": 1.0, "upper_step": 0.1, "accounting": "merged"}
    best = problem.solution()
    cold = run(problem, "aggitd", 400, **options)
    warm = run(problem, "aggitd", 400, warm_start=True, **options)
    assert relative(warm.x, best) < 1e-9
    assert relative(cold.x, best) > 1e-3
    assert float(directions(cold)[-1].norm()) < 1e-9


def test_a_warm_start_begins_with_v_of_the_last_iteration() -> None:
    """At y* two iterations of N factors leave the error of 2N."""
    problem, lam = Quadratic(**QUADRATICS[1]), 0.7
    x, y = point(problem)
    dense = Dense.of(problem)
    options = {"lower_rounds": 3, "neumann_step": lam, "lower_step": 0.3, "upper_step": 0.0, "warm_start": True}
    state = last_state(problem, "aggitd", x, y, 2, **options)
    v = dense.v(y.numpy())
    error = np.linalg.matrix_power(np.eye(len(v)) - lam * dense.A, 6) @ v
    assert relative(v - state.v.numpy(), error) < 1e-11


# ---- many clients are the pooled problem ----


def pooled(problem: Quadratic) -> Quadratic:
    one = copy.copy(problem)
    one.clients = problem.clients.pooled()
    return one


GLOBAL: dict[str, dict[str, Any]] = {
    "aggitd": {"lower_rounds": 4},
    "fednest": {"lower_rounds": 2, "neumann_terms": 4},
    "fednest-sgd": {"lower_rounds": 2, "neumann_terms": 4},
    "bome": {"lower_rounds": 3},
    "f2sa": {"lower_rounds": 3},
    "memfbo": {},
    "fedavg-alternating": {"lower_rounds": 2},
    "joint": {},
}


@pytest.mark.parametrize("name", sorted(GLOBAL))
def test_clients_with_one_local_step_equal_the_pooled_problem(name: str) -> None:
    problem = Quadratic(clients=5, dim_x=3, dim_y=4, examples=(2, 6), seed=7)
    many, one = (
        run(each, name, 6, upper_step=0.1, lower_step=0.5, **GLOBAL[name]) for each in (problem, pooled(problem))
    )
    assert many.trace is not None
    assert one.trace is not None
    for k in range(6):
        assert relative(many.trace[k].x, one.trace[k].x) < 1e-9
        assert relative(many.trace[k].y, one.trace[k].y) < 1e-9
        assert relative(directions(many)[k], directions(one)[k]) < 1e-9


@pytest.mark.parametrize("name", ["aggitd", "fednest"])
def test_corrected_local_steps_have_the_fixed_point_of_the_pooled_problem(name: str) -> None:
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, seed=8)
    options = {"upper_step": 0.18, "lower_step": 0.4, "neumann_step": 1.0, "neumann_terms": 3, "lower_rounds": 3}
    many = run(problem, name, 110, local_steps=3, upper_local_steps=2, **options)
    one = run(pooled(problem), name, 200, accounting="merged", **options)
    assert many.trace is not None
    assert relative(many.trace[3].x, one.trace[3].x if one.trace else 0) > 1e-3
    assert relative(many.x, one.x) < 1e-9
    assert relative(many.y, one.y) < 1e-9


@pytest.mark.parametrize("name", ["lfednest", "lfednest-svrg"])
def test_local_hypergradients_are_biased_where_clients_differ(name: str) -> None:
    """As N grows: sum p_i (fx_i - J_i H_i^-1 fy_i) at the common y, far from the hypergradient."""
    problem = Quadratic(**QUADRATICS[1], mu=0.5)
    x, y = point(problem)
    options = {"x0": x, "y0": y, "neumann_terms": 40, "neumann_step": 1.0, "lower_step": 0.5}
    (h,) = directions(run(problem, name, 1, **options))
    local = sum(
        c.p * (c.fx(x.numpy(), y.numpy()) - c.cross(np.linalg.solve(c.A, c.fy(x.numpy(), y.numpy()))))
        for c in reference.clients_of(problem)
    )
    assert relative(h, local) < 1e-8
    expected = Dense.of(problem).hypergradient(x.numpy())
    assert relative(h, expected) > 0.01
    (one,) = directions(run(pooled(problem), name, 1, **options))
    assert relative(one, expected) < 1e-8


def test_the_bias_of_local_hypergradients_vanishes_with_identical_clients() -> None:
    biases = []
    for heterogeneity in (0.0, 0.1, 1.0):
        problem = Quadratic(clients=5, dim_x=3, dim_y=4, heterogeneity=heterogeneity, noise=0.0, mu=0.5, seed=9)
        x, y = point(problem)
        options = {"x0": x, "y0": y, "neumann_terms": 40, "neumann_step": 1.0, "lower_step": 0.5}
        (h,) = directions(run(problem, "lfednest", 1, **options))
        biases.append(relative(h, problem.hypergradient(x)))
    assert biases[0] < 1e-8
    assert 1e-4 < biases[1] < biases[2]


def test_lfednest_with_identical_clients_is_fednest_sgd() -> None:
    problem = Quadratic(clients=5, dim_x=3, dim_y=4, heterogeneity=0.0, noise=0.0, seed=9)
    options = {"lower_rounds": 2, "neumann_terms": 3, "local_steps": 3, "lower_step": 0.3}
    local, whole = run(problem, "lfednest", 5, **options), run(problem, "fednest-sgd", 5, **options)
    assert relative(local.x, whole.x) < 1e-12
    assert relative(local.y, whole.y) < 1e-12


# ---- first-order methods ----


@pytest.mark.parametrize("name", ["f2sa", "memfbo"])
def test_the_bias_of_penalty_methods_falls_as_one_over_the_penalty(name: str) -> None:
    problem = Quadratic(clients=3, dim_x=3, dim_y=4, mu=0.5, heterogeneity=0.5, seed=10)
    x, y = point(problem)
    dense = Dense.of(problem)
    penalties, errors, offsets = [1e1, 1e2, 1e3], [], []
    repeats = {"iterations": 1, "lower_rounds": 60} if name == "f2sa" else {"iterations": 60}
    for penalty in penalties:
        steps = {"upper_step": 0.0, "lower_step": 1.3, "penalised_lower_step": 2 / (1 + 1.5 * penalty)}
        state = last_state(problem, name, x, y, penalty=penalty, **repeats, **steps)
        errors.append(relative(state.hypergradient, dense.hypergradient(x.numpy())))
        offsets.append(relative(penalty * (state.z - state.y), dense.v(y.numpy())))
        assert relative(state.z, y) < 1e-12
    for bias in (errors, offsets):
        slope = np.polyfit(np.log(penalties), np.log(bias), 1)[0]
        assert -1.1 < slope < -0.9
        assert bias[-1] < 5e-3


def test_the_bias_of_bome_is_of_the_order_of_its_step() -> None:
    """With constant steps it circles near x* once the lower solution is close; averaged over the last third."""
    problem = Quadratic(clients=2, dim_x=2, dim_y=2, examples=2, mu=0.8, heterogeneity=0.5, rho=1.0, seed=11)
    best = problem.solution()
    sizes, biases = (0.08, 0.04, 0.02), []
    for step in sizes:
        steps = {"upper_step": step, "upper_level_lower_step": step, "lower_rounds": 3, "lower_step": 1.1}
        result = run(problem, "bome", round(6 / step), x0=best, y0=problem.lower_solution(best), **steps)
        assert result.trace is not None
        tail = result.trace[-len(result.trace) // 3 :]
        biases.append(float(np.mean([float((entry.x - best).norm()) for entry in tail])))
    assert biases[-1] < 0.01 * float(best.norm())
    assert 0.85 < np.polyfit(np.log(sizes), np.log(biases), 1)[0] < 1.15


# ---- drift ----


def test_fed_svrg_with_local_steps_has_the_fixed_point_of_the_lower_level() -> None:
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.4, seed=12)
    x, y = point(problem)
    far = y + 1.0
    options = {"upper_step": 0.0, "lower_step": 0.3, "local_steps": 4, "neumann_terms": 0, "lower_rounds": 60}
    assert relative(run(problem, "fednest", 1, x0=x, y0=far, **options).y, y) < 1e-10
    assert relative(run(problem, "fednest-sgd", 1, x0=x, y0=far, **options).y, y) > 1e-2
    one_step = {**options, "local_steps": 1}
    assert relative(run(problem, "fednest-sgd", 2, x0=x, y0=far, **one_step).y, y) < 1e-6


def test_fed_sgd_drifts_with_step_and_local_steps() -> None:
    """The fixed point lies O(beta (tau - 1)) from y*: doubling either doubles the distance, to first order."""
    problem = Quadratic(clients=4, dim_x=3, dim_y=4, mu=0.5, seed=12)
    x, y = point(problem)

    def drift(beta: float, tau: int) -> float:
        options = {"upper_step": 0.0, "lower_step": beta, "local_steps": tau, "neumann_terms": 0}
        rounds = round(24 / (beta * tau))
        return relative(run(problem, "fednest-sgd", 1, x0=x, y0=y, lower_rounds=rounds, **options).y, y)

    base = drift(0.02, 2)
    assert drift(0.02, 1) < 1e-12
    assert drift(0.04, 2) / base == pytest.approx(2, rel=0.08)
    assert drift(0.02, 3) / base == pytest.approx(2, rel=0.08)
    assert drift(0.02, 5) / base == pytest.approx(4, rel=0.12)

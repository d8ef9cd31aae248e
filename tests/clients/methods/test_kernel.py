"""Adaptation by the tangent kernel against flows by scipy, and meta-gradients against differences of dense losses."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor
from torch.func import jacrev

from clients.methods import kernel, methods
from clients.methods.tangent import divided, flow
from clients.tasks import TaskBatch
from fedbilevel import BadInput, simulate
from fedbilevel.errors import ClientFailed
from fedbilevel.problems.inspection import convert
from fedbilevel.problems.networks.classifier import Classifier
from fedbilevel.problems.tasks.few_shot import FewShot
from fedbilevel.problems.tasks.sinusoid import Sinusoid
from server.kit.algorithm import find
from server.running.estimate import estimate
from tests.agreement import relative
from tests.problem_table import CLASSES, DIM, Softmax, with_horizon
from tests.runs import drawn, meta_gradient, sampled_sets, settings, start, tasks_of, traced

NAMES = ["ntk-maml", "kernel-maml"]
NTK = {"initial_horizon": 1.7}
CURVES = {"clients": 2, "shots": 4, "queries": 3, "hidden": [5], "activation": "tanh"}


class Lines(Sinusoid):
    """Curves that are linear in the parameters: a cubic, and sines of the inputs."""

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(DIM, generator=generator, dtype=torch.float64)
        return x, x.clone()

    def outputs(self, y: Tensor, examples: Any) -> Tensor:
        t = examples["input"][:, 0]
        return torch.stack([torch.ones_like(t), t / 3, t.sin(), (t / 4) ** 3], -1) @ y


def of(part: Any, b: int) -> Any:
    return {key: t[b] for key, t in part.items()}


def carried(name: str, x: Tensor) -> Tensor:
    return with_horizon(x, NTK["initial_horizon"]) if name == "ntk-maml" else x


def options(name: str, **more: Any) -> dict[str, Any]:
    return {**(NTK if name == "ntk-maml" else {"proximal": 0.4}), **more}


def dense_loss(name: str, tasks: TaskBatch, b: int, z: Tensor, scale: float = 1.0) -> float:
    """The query loss from dense Jacobians; phi(K/n) from one matrix exponential, or an inverse."""
    problem: Any = tasks.problem
    support, query = of(tasks.tasks.support, b), of(tasks.tasks.query, b)
    y = z[:-1] if name == "ntk-maml" else z
    found = problem.outputs(y, support)
    n, labels = len(found), support["label"]
    Y = scale * np.eye(CLASSES)[labels.numpy()] if problem.kind == "classification" else labels.numpy()
    J, J_q = (jacrev(lambda y, s=s: problem.outputs(y, s).flatten())(y).numpy() for s in (support, query))
    K = J @ J.T / n
    if name == "ntk-maml":
        k = len(K)
        phi = expm(float(z[-1].exp()) * np.block([[-K, np.eye(k)], [np.zeros((k, 2 * k))]]))[:k, k:]
    else:
        phi = np.linalg.inv(K + 0.4 * np.eye(len(K)))
    moved = J_q @ J.T @ phi @ (Y - found.numpy()).flatten() / n
    out = problem.outputs(y, query) + torch.from_numpy(moved).view_as(problem.outputs(y, query))
    if problem.kind == "classification":
        return float(torch.nn.functional.cross_entropy(out, query["label"]))
    return float((out - query["label"]).square().mean())


def test_for_a_model_linear_in_x_adaptation_is_the_gradient_flow() -> None:
    """dy/dt = -grad L, L = |Y - f|^2 / 2n, by scipy; the meta-gradient is exp(-A T) grad f(y)."""
    problem = Lines(**CURVES)
    tasks, x = tasks_of(problem, 3)
    y = methods()["ntk-maml"].adapt(tasks, with_horizon(x, 1.7), settings("ntk-maml", **NTK)).y
    found = meta_gradient("ntk-maml", tasks, with_horizon(x, 1.7), **NTK)
    for b in range(len(tasks)):
        support, query = of(tasks.tasks.support, b), of(tasks.tasks.query, b)
        Phi, Phi_q = (jacrev(lambda y, s=s: problem.outputs(y, s))(x).numpy() for s in (support, query))
        A, rhs = Phi.T @ Phi / len(Phi), Phi.T @ support["label"].numpy() / len(Phi)
        exact = solve_ivp(
            lambda t, y, A=A, rhs=rhs: rhs - A @ y, (0, 1.7), x.numpy(), method="DOP853", rtol=1e-13, atol=1e-13
        ).y[:, -1]
        assert relative(y[b], exact) < 1e-10
        residual = Phi_q @ exact - query["label"].numpy()
        of_y = 2 * Phi_q.T @ residual / len(residual)
        assert relative(found[b, :-1], expm(-1.7 * A) @ of_y) < 1e-10
        assert float(found[b, -1]) == pytest.approx(1.7 * of_y @ (rhs - A @ exact), rel=1e-9)


@pytest.mark.parametrize("problem", [Softmax(2), Sinusoid(**CURVES)], ids=["classes", "curves"])
@pytest.mark.parametrize("name", NAMES)
def test_meta_gradients_are_those_of_central_differences(name: str, problem: Any) -> None:
    tasks, x = tasks_of(problem, 1, seed=3)
    z, h = carried(name, x), 1e-5
    found = meta_gradient(name, tasks, z, **options(name, label_scale=2.0))
    for b in range(len(tasks)):
        ends = [
            (dense_loss(name, tasks, b, z + s, 2.0) - dense_loss(name, tasks, b, z - s, 2.0)) / (2 * h)
            for s in h * torch.eye(len(z), dtype=z.dtype)
        ]
        assert relative(found[b], torch.tensor(ends)) < 1e-6
        assert float(found[b, -1]) == pytest.approx(ends[-1], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_rows_at_one_time_do_not_matter(name: str) -> None:
    tasks, x = tasks_of(Softmax(2), 3)
    whole, *others = (
        meta_gradient(name, tasks, carried(name, x), **options(name, jacobian_rows=rows)) for rows in (10_000, 18, 5, 1)
    )
    for other in others:
        assert relative(other, whole) < 1e-12
    assert find(name).options.model_fields["jacobian_rows"].default < 10_000


@pytest.mark.parametrize("name", NAMES)
def test_no_more_rows_are_made_at_one_time_than_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 tasks of 6 x 3 outputs: two tasks' at one time with 40 rows; of one task in parts with 10."""
    tasks, x = tasks_of(Softmax(5), 1)
    seen: list[tuple[int, int]] = []
    real = kernel.jacobian

    def watched(problem: Any, y: Tensor, examples: Any, rows: int) -> Any:
        seen.append((len(examples["label"]), rows))
        return real(problem, y, examples, rows)

    monkeypatch.setattr(kernel, "jacobian", watched)
    for rows, together in ((10_000, [5]), (40, [2, 2, 1]), (10, [1] * 5)):
        seen.clear()
        meta_gradient(name, tasks, carried(name, x), **options(name, jacobian_rows=rows))
        assert seen == [(many, rows) for many in together for _ in ("support", "query")]


@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_closed_forms_of_the_network_give_the_same(name: str, shots: int) -> None:
    """The convolutional network's, against automatic differentiation of the same; as many images a row or more."""
    problem: Any = convert(FewShot("digits", shots=shots, filters=4), torch.float64)
    tasks, x = tasks_of(problem, 2, seed=4)
    z = carried(name, x)
    found = meta_gradient(name, tasks, z, **options(name, label_scale=3.0))
    adapted = methods()[name].adapt(tasks, z, settings(name, **options(name)))
    del problem.outputs_jacobian
    assert relative(meta_gradient(name, tasks, z, **options(name, label_scale=3.0)), found) < 1e-9
    again = methods()[name].adapt(tasks, z, settings(name, **options(name)))
    assert relative(again.y, adapted.y) < 1e-10
    for level in ("lower", "upper"):
        problem.outputs_jacobian = Classifier(problem.network).jacobian
        with_forms = adapted.outputs(tasks, level)  # type: ignore[arg-type]  # a level
        del problem.outputs_jacobian
        assert relative(adapted.outputs(tasks, level), with_forms) < 1e-10  # type: ignore[arg-type]  # a level


def test_divided_differences_near_and_far_from_the_diagonal() -> None:
    """Against numbers of fifty digits."""

    def phi(w: Decimal, T: Decimal) -> Decimal:
        return (1 - (-w * T).exp()) / w

    def slope(a: Decimal, b: Decimal, T: Decimal) -> Decimal:
        if a != b:
            return (phi(a, T) - phi(b, T)) / (a - b)
        return ((-a * T).exp() * (1 + a * T) - 1) / a**2

    w = torch.tensor([1e-9, 1e-6, 0.019, 0.0190001, 0.11, 0.1100000001, 3.0, 3.0001, 500.0, 501.0], dtype=torch.float64)
    with localcontext() as context:
        context.prec = 50
        for T in (0.3, 1.8, 40.0):
            time = torch.tensor(T, dtype=torch.float64)
            found, values = divided(w, time), flow(w, time)
            for i, a in enumerate(map(Decimal, w.tolist())):
                assert float(values[i]) == pytest.approx(float(phi(a, Decimal(T))), rel=1e-12)
                for j, b in enumerate(map(Decimal, w.tolist())):
                    assert float(found[i, j]) == pytest.approx(float(slope(a, b, Decimal(T))), rel=1e-8)
    zero = torch.zeros(2, dtype=torch.float64)
    assert flow(zero, torch.tensor(2.0)).tolist() == [2.0, 2.0]
    assert divided(zero, torch.tensor(2.0)).flatten().tolist() == pytest.approx([-2.0] * 4)


def test_a_kernel_without_full_rank_has_its_gradient() -> None:
    """Fewer parameters than outputs, and an image twice: eigenvalues that are zero, and some that are equal."""
    problem = Lines(**{**CURVES, "shots": 9})
    tasks, x = tasks_of(problem, 1)
    for part in (tasks.tasks.support,):
        part["input"][:, 1] = part["input"][:, 0]  # type: ignore[call-overload, index]
    z, h = with_horizon(x, 1.7), 1e-5
    found = meta_gradient("ntk-maml", tasks, z, **NTK)
    ends = [
        (dense_loss("ntk-maml", tasks, 0, z + s) - dense_loss("ntk-maml", tasks, 0, z - s)) / (2 * h)
        for s in h * torch.eye(len(z), dtype=z.dtype)
    ]
    assert relative(found[0], torch.tensor(ends)) < 1e-6


def test_what_is_judged_is_the_linearised_network() -> None:
    """Its outputs f_x + J (y - x), on both sets, and their losses."""
    problem = Softmax(2)
    tasks, x = tasks_of(problem, 2)
    z = with_horizon(x, 1.7)
    adapted = methods()["ntk-maml"].adapt(tasks, z, settings("ntk-maml", **NTK))
    for b in range(len(tasks)):
        for level, part in (("lower", tasks.tasks.support), ("upper", tasks.tasks.query)):
            one = of(part, b)
            J = jacrev(lambda y, one=one: problem.outputs(y, one))(x)
            expected = problem.outputs(x, one) + J @ (adapted.y[b] - x)
            assert relative(adapted.outputs(tasks, level)[b], expected) < 1e-12  # type: ignore[arg-type]
            loss = torch.nn.functional.cross_entropy(expected, one["label"])
            assert float(adapted.losses(tasks, level)[b]) == pytest.approx(float(loss), rel=1e-12)  # type: ignore[arg-type]
        assert dense_loss("ntk-maml", tasks, b, z) == pytest.approx(float(adapted.losses(tasks, "upper")[b]), rel=1e-10)


def test_ntk_maml_runs_learns_and_keeps_what_it_does_not_learn() -> None:
    for problem in (Softmax(), Sinusoid(clients=4, hidden=[8], activation="tanh")):
        shared = {"iterations": 15, "upper_step": 0.02, "upper_optimiser": "adam", "evaluation_tasks": 12}
        result = simulate(problem, "ntk-maml", **NTK, **shared)
        first, last = result.history[0], result.history[-1]
        assert last["test_loss"] < first["test_loss"]  # type: ignore[operator]
        assert last["metric_horizon"] != first.get("metric_horizon")
        assert last["metric_query_loss"] > 0  # type: ignore[operator]
        still = simulate(problem, "ntk-maml", **NTK, **shared, learn_horizon=False)
        assert float(still.x[-1].exp()) == pytest.approx(1.7, rel=1e-12)
        assert float(result.x[-1].exp()) != pytest.approx(1.7, rel=1e-3)


def test_kernels_are_solved_in_double_precision_unless_told() -> None:
    exact_tasks, x = tasks_of(Softmax(2), 2)
    exact = meta_gradient("ntk-maml", exact_tasks, with_horizon(x, 1.7), **NTK)
    tasks = tasks_of(convert(Softmax(2), torch.float32), 2)[0]
    errors = []
    for dtype in ("float64", "run"):
        found = meta_gradient("ntk-maml", tasks, with_horizon(x, 1.7).float(), **NTK, solve_dtype=dtype)
        assert found.dtype == torch.float32
        errors.append(relative(found.double(), exact))
    assert errors[0] < 1e-5
    assert errors[1] < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_problems_without_labels_are_refused_with_those_that_fit(name: str) -> None:
    allowed = r"a problem whose tasks have labels, .*; for this problem one of a-maml, .*maml, memfbo, reptile"
    with pytest.raises(BadInput, match=f"algorithm: got '{name}'; allowed: {allowed}") as refused:
        simulate("quadratic_tasks", name, iterations=1)
    assert "comln" not in str(refused.value)
    with pytest.raises(BadInput, match=r"comln'; allowed: a problem whose network ends in .*ntk-maml"):
        simulate("sinusoid", "comln", iterations=1)


def test_options_that_cannot_be_used() -> None:
    with pytest.raises(BadInput, match="initial_horizon: got 0"):
        simulate(Softmax(), "ntk-maml", iterations=1, lower_step=0.0)
    for key, value in (("label_scale", 0.0), ("jacobian_rows", 0)):
        with pytest.raises(BadInput, match=f"options.{key}: got .*; allowed"):
            simulate(Softmax(), "ntk-maml", iterations=1, **{key: value})


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_in_the_estimate_of_memory(name: str) -> None:
    problem = Softmax()
    x, y = start(problem)

    def rows(many: int) -> float:
        chosen = {"jacobian_rows": many, "evaluation_tasks": 1, "tasks_per_client": 50}
        return estimate(problem, (x, y), find(name).parse(chosen), None).rows

    assert rows(3000) - rows(2000) > 1000 * 2 * len(x) * 8


# ---- weights of tasks ----


def test_the_pull_to_x_makes_it_ridge_regression_for_a_model_linear_in_x() -> None:
    """Argmin |Y - Phi y|^2 / 2n + lam |y - x|^2 / 2, which is iMAML's lower level, by its normal equations."""
    problem = Lines(**CURVES)
    tasks, x = tasks_of(problem, 2)
    y = methods()["kernel-maml"].adapt(tasks, x, settings("kernel-maml", proximal=0.4)).y
    for b in range(len(tasks)):
        support = of(tasks.tasks.support, b)
        Phi = jacrev(lambda y, support=support: problem.outputs(y, support))(x)
        system = Phi.T @ Phi / len(Phi) + 0.4 * torch.eye(DIM, dtype=x.dtype)
        expected = torch.linalg.solve(system, Phi.T @ support["label"] / len(Phi) + 0.4 * x)
        assert relative(y[b], expected) < 1e-12


def weighed(temperature: float, **more: Any) -> Any:
    own = {"proximal": 0.4, "tasks_per_client": 3, "clients_per_round": 2, "upper_step": 0.3, "seed": 7}
    return traced(Softmax(), "kernel-maml", 3, temperature=temperature, **own, **more)


@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("temperature", [0.2, 1.5, math.inf])
def test_tasks_weigh_as_the_exponential_of_their_losses(temperature: float, weighting: str) -> None:
    """H = sum_i p_i mean w grad / sum_i p_i mean w, from losses of dense Jacobians."""
    problem: Any = Softmax()
    result = weighed(temperature, weighting=weighting)
    x = start(problem, 7)[0]
    for k, clients in enumerate(sampled_sets(problem, 2, 3, 7)):
        batch = TaskBatch(problem, drawn(problem, clients, k, 3, seed=7), x)
        gradient = meta_gradient("kernel-maml", batch, x, proximal=0.4)
        losses = torch.tensor([dense_loss("kernel-maml", batch, b, x) for b in range(6)], dtype=x.dtype)
        p = torch.from_numpy(problem.clients.weights[clients]).repeat_interleave(3)
        w = p * torch.exp(losses / temperature)
        assert relative(result.trace[k].hypergradient, (w[:, None] * gradient).sum(0) / w.sum()) < 1e-10
        if math.isinf(temperature):
            mean = (p[:, None] * gradient).sum(0) / p.sum()
            assert relative(result.trace[k].hypergradient, mean) < 1e-12
        x = result.trace[k].x
    assert [entry.rounds for entry in result.trace] == [1, 1, 1]


def test_weights_beyond_the_numbers_end_the_run_in_one_line() -> None:
    said = r"client \d.*exp\(loss / temperature\) is beyond the numbers: its loss is .*take a higher temperature"
    with pytest.raises(ClientFailed, match=said):
        weighed(1e-4)
    with pytest.raises(BadInput, match=r"options.temperature: got 0\.0; allowed"):
        weighed(0.0)

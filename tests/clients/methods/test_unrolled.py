"""Meta-gradients of a local lower level against closed forms, autograd through the whole path, and second loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.methods import methods
from clients.tasks import TaskBatch
from experiments.cli import main
from fedbilevel import BadInput, ClientData, randomness, simulate
from fedbilevel.config.build import build
from fedbilevel.federation.ledger import Ledger
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problem import Ragged
from fedbilevel.problems.quadratic_adaptation import QuadraticAdaptation
from fedbilevel.problems.quadratic_tasks import QuadraticTasks
from fedbilevel.tasks import Tasks
from server.kit.algorithm import algorithms, find
from server.running.checkpoints import Checkpoint, Checkpoints
from server.running.run import Result
from tests.console import rows

M, D = 5, 4
WEIGHTS = [0.1, 0.5, 1.0, 2.0, 0.7]


def quadratics(**parameters: Any) -> QuadraticTasks:
    problem = QuadraticTasks(clients=M, dim=D, tasks=7, seed=3, **parameters)
    problem.clients = ClientData(problem.clients.lower, problem.clients.upper, WEIGHTS)
    return problem


def drawn(problem: Any, clients: Any, round: int, count: int, *, seed: int = 0, fixed: bool = False) -> Tasks:
    """The tasks that these clients draw in a round, client-major."""
    clients = np.asarray(clients)
    round, purpose = (0, "tasks to evaluate") if fixed else (round, "tasks")
    numbers = randomness.uniform(seed, clients, round, purpose, count * problem.draws)
    return problem.tasks(problem.clients.lower.take(clients), numbers.reshape(len(clients), count, problem.draws))


def meta_gradient(problem: Any, tasks: Tasks, x: Tensor, name: str, **options: Any) -> Tensor:
    """A method's meta-gradient of every task, with its algorithm's defaults for the options that are not given."""
    settings = find(name).parse(options).settings()  # type: ignore[attr-defined]  # of a local lower level
    return methods()[name].meta_gradient(TaskBatch(problem, tasks, x), x, settings)[0]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    return found.shape == expected.shape and float((found - expected).norm()) <= tolerance * float(expected.norm())


def exact(name: str, tasks: Tasks, x: Tensor, options: dict[str, Any]) -> Tensor:
    told = {"steps": options["local_steps"], "step": options["lower_step"]}
    if "truncation" in options:
        told["truncation"] = options["truncation"]
    gradient: Tensor = getattr(QuadraticAdaptation(tasks), name)(x, **told).gradient
    return gradient


# ---- a few-shot problem: a small network with a softmax over classes ----

INPUTS, HIDDEN, CLASSES, SHOTS, QUERIES = 3, 4, 3, 2, 3


class Softmax:
    """Three-way tasks: a client's inputs, of which a task takes some, under labels of the task's own."""

    draws = classes = CLASSES
    task_sizes = (SHOTS * CLASSES, QUERIES * CLASSES)
    kind = "classification"

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(5)
        inputs = torch.randn(M * 30, INPUTS, generator=draw, dtype=torch.float64)
        level = Ragged({"input": inputs}, np.arange(M + 1) * 30)
        self.clients = ClientData(level, level, WEIGHTS)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = (INPUTS + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
        x0 = 0.7 * torch.randn(size, generator=generator, dtype=torch.float64)
        return x0, x0.clone()

    def tasks(self, held: Ragged, draws: Any) -> Tasks:
        per_class = SHOTS + QUERIES
        first = held.offsets[:-1, None, None] + (draws * (30 - per_class)).astype(int)
        index = torch.from_numpy((first[..., None] + np.arange(per_class)).reshape(-1, CLASSES, per_class))
        labels = torch.arange(CLASSES)[None, :, None].expand(index.shape)
        parts = []
        for cut in (slice(None, SHOTS), slice(SHOTS, None)):
            chosen = held.values["input"][index[:, :, cut].flatten(1)]
            parts.append({"input": chosen, "label": labels[:, :, cut].flatten(1)})
        return Tasks(*parts)

    def test_tasks(self, count: int) -> Tasks:
        draws = randomness.uniform(99, np.arange(M), 0, "test", 4 * CLASSES).reshape(M, 4, CLASSES)
        return self.tasks(self.clients.lower, draws)[:count]

    def features(self, y: Tensor, inputs: Tensor) -> Tensor:
        W, b = y[: (INPUTS + 1) * HIDDEN].split([INPUTS * HIDDEN, HIDDEN])
        return torch.tanh(inputs @ W.view(INPUTS, HIDDEN) + b)

    def outputs(self, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        V, c = y[(INPUTS + 1) * HIDDEN :].split([HIDDEN * CLASSES, CLASSES])
        return self.features(y, examples["input"]) @ V.view(CLASSES, HIDDEN).T + c

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        logits = self.outputs(y, examples)
        return torch.logsumexp(logits, -1) - logits.gather(-1, examples["label"][:, None])[:, 0]

    upper = lower

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


def one(part: Any, b: int) -> Any:
    return {name: tensor[b] for name, tensor in part.items()}


def by_autograd(problem: Softmax, tasks: Tasks, x: Tensor, steps: int, step: float, truncation: int | None) -> Tensor:
    """The derivative of the query loss after K steps by torch.autograd, one task after another."""
    found = []
    for b in range(len(tasks)):
        leaf = x.clone().requires_grad_()
        y = leaf
        for k in range(steps):
            if truncation is not None and k == steps - truncation:
                y = leaf = y.detach().requires_grad_()
            loss = problem.lower(x, y, one(tasks.support, b)).mean()
            y = y - step * torch.autograd.grad(loss, y, create_graph=True)[0]
        found.append(torch.autograd.grad(problem.upper(x, y, one(tasks.query, b)).mean(), leaf)[0])
    return torch.stack(found)


# ---- exactness ----


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maml", {"local_steps": 1}),
        ("maml", {"local_steps": 8}),
        ("maml", {"local_steps": 8, "truncation": 3}),
        ("maml", {"local_steps": 2, "truncation": 5}),
        ("fomaml", {"local_steps": 6}),
        ("reptile", {"local_steps": 6}),
    ],
)
def test_meta_gradients_equal_the_closed_form(name: str, options: dict[str, Any]) -> None:
    problem, options = quadratics(), {"lower_step": 0.4, **options}
    tasks, x = drawn(problem, range(M), 2, 3), problem.initial(torch.Generator())[0]
    assert len(tasks) == 3 * M
    assert close(meta_gradient(problem, tasks, x, name, **options), exact(name, tasks, x, options))


@pytest.mark.parametrize("truncation", [None, 1, 4])
def test_maml_equals_autograd_through_the_whole_path(truncation: int | None) -> None:
    problem = Softmax()
    tasks, x = drawn(problem, range(M), 0, 2), problem.initial(torch.Generator().manual_seed(1))[0]
    found = meta_gradient(problem, tasks, x, "maml", local_steps=6, lower_step=0.5, truncation=truncation)
    expected = by_autograd(problem, tasks, x, 6, 0.5, truncation)
    assert close(found, expected)
    assert not close(found, meta_gradient(problem, tasks, x, "fomaml", local_steps=6, lower_step=0.5), 1e-2)


def test_first_order_methods_on_a_network_one_task_after_another() -> None:
    problem = Softmax()
    tasks, x = drawn(problem, range(M), 0, 2), problem.initial(torch.Generator().manual_seed(1))[0]
    first, way_back = [], []
    for b in range(len(tasks)):
        y = x.clone()
        for _ in range(4):
            y.requires_grad_()
            loss = problem.lower(x, y, one(tasks.support, b)).mean()
            y = (y - 0.3 * torch.autograd.grad(loss, y)[0]).detach()
        way_back.append(x - y)
        y.requires_grad_()
        first.append(torch.autograd.grad(problem.upper(x, y, one(tasks.query, b)).mean(), y)[0])
    options = {"local_steps": 4, "lower_step": 0.3}
    assert close(meta_gradient(problem, tasks, x, "fomaml", **options), torch.stack(first))
    assert close(meta_gradient(problem, tasks, x, "reptile", **options), torch.stack(way_back))


@pytest.mark.parametrize("name", sorted(algorithms("local")))
def test_a_batch_of_tasks_equals_one_task_at_a_time(name: str) -> None:
    problem = Softmax()
    tasks = drawn(problem, range(M), 0, 3)
    x0 = problem.initial(torch.Generator().manual_seed(2))[0]
    x = find(name).make({}).init(x0, x0).x
    together = meta_gradient(problem, tasks, x, name)
    alone = torch.cat([meta_gradient(problem, tasks[b : b + 1], x, name) for b in range(len(tasks))])
    assert together.shape == (3 * M, len(x))
    assert close(together, alone, 1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maml", {}),
        ("maml", {"truncation": 2}),
        ("maml", {"truncation": 9}),
        ("fomaml", {}),
        ("reptile", {}),
        ("memfbo", {}),
        ("bome", {"lower_rounds": 3}),
    ],
)
def test_the_work_that_is_charged_is_the_work_that_is_done(name: str, options: dict[str, Any]) -> None:
    """Gradients of a support and of a query example; a Hessian product counts two."""
    problem, done = Softmax(), {"lower": 0, "upper": 0}

    class Counting(TaskBatch):
        def gradient(self, level: Any, y: Tensor) -> Tensor:
            done[level] += 1
            return super().gradient(level, y)

        def hvp(self, y: Tensor, v: Tensor) -> Tensor:
            done["lower"] += 2
            return super().hvp(y, v)

    x = problem.initial(torch.Generator().manual_seed(2))[0]
    settings = find(name).parse({"local_steps": 4, **options}).settings()  # type: ignore[attr-defined]  # of tasks
    methods()[name].meta_gradient(Counting(problem, drawn(problem, [0], 0, 1), x), x, settings)
    assert methods()[name].passes(settings) == (done["lower"], done["upper"])


def test_closed_forms_are_the_derivatives_of_the_query_loss() -> None:
    """Each gradient against autograd through the closed form of y, and each y against what defines it."""
    problem = quadratics()
    tasks, x = drawn(problem, range(M), 0, 2), problem.initial(torch.Generator())[0]
    own = QuadraticAdaptation(tasks)

    def query(y: Tensor) -> Tensor:
        r = y - own.c
        return 0.5 * torch.einsum("bi,bij,bj->b", r, own.C, r)

    def slope(y: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", own.A, y - own.a)

    log_s = torch.linspace(-1, 1, D, dtype=torch.float64)
    found = {
        "maml": lambda x: own.maml(x[:, :D], steps=5, step=0.3),
        "flow": lambda x: own.flow(x[:, :D], time=2.0),
        "imaml": lambda x: own.imaml(x[:, :D], proximal=0.7),
        "ibaml": lambda x: own.ibaml_map(x[:, :D], x[:, D:]),
    }
    start = torch.cat([x, log_s]).expand(len(tasks), -1).clone().requires_grad_()
    for name, closed in found.items():
        adapted = closed(start)
        expected = torch.autograd.grad(query(adapted.y).sum(), start)[0][:, : adapted.gradient.shape[1]]
        assert close(adapted.gradient.detach(), expected), name
    y = x.expand(len(tasks), -1)
    for _ in range(5):
        y = y - 0.3 * slope(y)
    assert close(own.maml(x, steps=5, step=0.3).y, y)
    assert close(own.imaml(x, proximal=0.7).y, x - slope(own.imaml(x, proximal=0.7).y) / 0.7)
    posterior = own.ibaml_map(x, log_s)
    assert close(posterior.y, x - log_s.exp() * slope(posterior.y))
    fine = own.maml(x, steps=200_000, step=1e-5)
    flow = own.flow(x, time=2.0)
    assert close(fine.y, flow.y, 1e-5)
    assert close(fine.gradient, flow.gradient, 1e-5)
    later, earlier = (query(own.flow(x, time=2.0 + h).y) for h in (1e-5, -1e-5))
    assert close(own.flow_time_gradient(x, time=2.0), (later - earlier) / 2e-5, 1e-8)


# ---- the first-order penalty methods ----

PROXIMAL = {"proximal": 0.8, "lower_step": 0.5}


def matched(penalty: float) -> dict[str, Any]:
    """Steps that suit eigenvalues in [0.2, 1] of A and C."""
    return {**PROXIMAL, "penalty": penalty, "penalised_lower_step": 2 / (2.8 * penalty + 1.2)}


def test_memfbo_tends_to_the_implicit_gradient_as_the_penalty_grows() -> None:
    problem = quadratics()
    tasks, x = drawn(problem, range(M), 0, 3), problem.initial(torch.Generator())[0]
    own, errors = QuadraticAdaptation(tasks), []
    implicit = own.imaml(x, proximal=0.8).gradient
    for penalty in (1e2, 1e3, 1e4):
        found = meta_gradient(problem, tasks, x, "memfbo", local_steps=80, **matched(penalty))
        assert close(found, own.penalty(x, proximal=0.8, penalty=penalty).gradient, 1e-8)
        errors.append(float((found - implicit).norm() / implicit.norm()))
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.05)


def test_memfbo_moves_along_the_x_gradient_of_the_penalty() -> None:
    """Against a central difference of lam (g(x, y) - g(x, z)) in x, y and z held where plain loops leave them."""
    problem, penalty = Softmax(), 7.0
    tasks, x = drawn(problem, range(M), 0, 1), problem.initial(torch.Generator().manual_seed(1))[0]
    options = {"local_steps": 4, "penalty": penalty, "proximal": 0.8, "lower_step": 0.2}
    found = meta_gradient(problem, tasks, x, "memfbo", **options)
    for b in range(len(tasks)):
        support, query = one(tasks.support, b), one(tasks.query, b)

        def g(x: Tensor, y: Tensor, support: Any = support) -> Tensor:
            return problem.lower(x, y, support).mean() + 0.4 * (y - x).square().sum()

        def f(y: Tensor, query: Any = query) -> Tensor:
            return problem.upper(x, y, query).mean()

        y = z = x
        for _ in range(4):
            y, z = y.detach().requires_grad_(), z.detach().requires_grad_()
            y = y - 0.2 / 8 * torch.autograd.grad(f(y) + penalty * g(x, y), y)[0]
            z = z - 0.2 * torch.autograd.grad(g(x, z), z)[0]
        y, z, h = y.detach(), z.detach(), 1e-5
        steps = h * torch.eye(len(x), dtype=x.dtype)
        ends = [penalty * (g(x + s, y) - g(x + s, z) - g(x - s, y) + g(x - s, z)) / (2 * h) for s in steps]
        assert close(found[b], torch.stack(ends), 1e-7)


def bome_by_hand(
    problem: Any, tasks: Tasks, x: Tensor, *, K: int, T: int, xi: float, beta: float, eta: float, proximal: float
) -> Tensor:
    """BOME on y alone, one task after another, gradients by torch.autograd."""
    found = []
    for b in range(len(tasks)):

        def slope(level: str, y: Tensor, b: int = b) -> Tensor:
            y = y.detach().requires_grad_()
            examples = one(tasks.support if level == "lower" else tasks.query, b)
            return torch.autograd.grad(getattr(problem, level)(x, y, examples).mean(), y)[0]

        def g_slope(y: Tensor, slope: Any = slope) -> Tensor:
            return torch.as_tensor(slope("lower", y) + proximal * (y - x))

        y = x
        for k in range(K + 1):
            fy, gy = slope("upper", y), g_slope(y)
            mult = max(eta * float(gy @ gy) - float(fy @ gy), 0.0) / float(gy @ gy)
            if k < K:
                y = y - xi * (fy + mult * gy)
        yh = y
        for _ in range(T):
            yh = yh - beta * g_slope(yh)
        found.append(mult * (-proximal * (y - x) + proximal * (yh - x)))
    return torch.stack(found)


def test_bome_equals_a_second_implementation() -> None:
    problem = Softmax()
    tasks, x = drawn(problem, range(M), 0, 1), problem.initial(torch.Generator().manual_seed(1))[0]
    options = {"local_steps": 6, "lower_rounds": 3, "upper_level_lower_step": 0.2, "lower_step": 0.4, "barrier": 0.6}
    found = meta_gradient(problem, tasks, x, "bome", proximal=0.8, **options)
    assert close(found, bome_by_hand(problem, tasks, x, K=6, T=3, xi=0.2, beta=0.4, eta=0.6, proximal=0.8))


def test_the_bias_of_bome_falls_with_its_step() -> None:
    problem = quadratics()
    tasks, x = drawn(problem, range(M), 0, 1), problem.initial(torch.Generator())[0]
    implicit, errors = QuadraticAdaptation(tasks).imaml(x, proximal=0.8).gradient, []
    for step in (0.1, 0.003):
        options = {"local_steps": round(7 / step), "lower_rounds": 5, "upper_level_lower_step": step, **PROXIMAL}
        found = meta_gradient(problem, tasks, x, "bome", **options)
        errors.append(float((found - implicit).norm() / implicit.norm()))
    assert errors[0] < 0.3
    assert errors[1] < 0.03


def test_a_vanishing_lower_gradient_leaves_no_multiplier() -> None:
    """At a task that x solves already, gy = 0: BOME's multiplier is 0 by definition, and x does not move."""
    problem = quadratics(heterogeneity=0.0, spread=0.0)
    tasks, x = drawn(problem, range(M), 0, 1), torch.zeros(D, dtype=torch.float64)
    assert torch.equal(meta_gradient(problem, tasks, x, "bome"), torch.zeros(M, D, dtype=torch.float64))


# ---- through the federation ----


def sampled_sets(problem: Any, size: int | None, iterations: int, seed: int = 0) -> list[Any]:
    fed = Federation(lambda request: [], Population.of(problem.clients), seed=seed, clients_per_round=size)
    sets = []
    for k in range(iterations):
        fed.begin(k)
        sets.append(fed.sampled)
    return sets


@pytest.mark.parametrize("weighting", ["normalised", "unbiased"])
@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile"])
def test_runs_equal_the_closed_form(name: str, size: int | None, weighting: Any) -> None:
    """X -= alpha sum_S w_i mean_tasks h, w_i = p_i / sum_S p_j or (m/|S|) p_i."""
    problem, count, steps = quadratics(), 3, {"lower_step": 0.4, "local_steps": 4}
    result = simulate(
        problem,
        name,
        iterations=4,
        seed=7,
        clients_per_round=size,
        weighting=weighting,
        tasks_per_client=count,
        upper_step=0.3,
        trace=True,
        **steps,
    )
    x = problem.initial(torch.Generator().manual_seed(7))[0]
    assert result.trace is not None
    for k, (clients, entry) in enumerate(zip(sampled_sets(problem, size, 4, 7), result.trace, strict=True)):
        p = torch.from_numpy(problem.clients.weights[clients])
        w = p / p.sum() if weighting == "normalised" else p * M / len(p)
        h = w @ exact(name, drawn(problem, clients, k, count, seed=7), x, steps).view(len(p), count, D).mean(1)
        assert entry.hypergradient is not None
        assert close(entry.hypergradient, h)
        x = x - 0.3 * h
        assert close(entry.x, x)


@pytest.mark.parametrize("name", sorted(algorithms("local")))
def test_runs_do_not_depend_on_the_number_of_workers(name: str) -> None:
    def run(workers: int) -> Result:
        return simulate(Softmax(), name, iterations=3, clients_per_round=4, workers=workers, trace=True)

    alone = run(1)
    for other in (run(2), run(3)):
        assert close(other.x, alone.x, 1e-12)
        for ours, theirs in zip(alone.history, other.history, strict=True):
            for key in ours.keys() - {"wall_seconds"}:
                number = isinstance(ours[key], float)
                assert theirs[key] == (pytest.approx(ours[key], rel=1e-12) if number else ours[key])


@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile", "memfbo", "bome"])
def test_one_round_carries_one_vector_each_way(name: str) -> None:
    result = simulate(quadratics(), name, iterations=3, clients_per_round=2, local_steps=3, trace=True)
    assert result.trace is not None
    assert [entry.rounds for entry in result.trace] == [1, 1, 1]
    sent = {key: value for key, value in result.communication.items() if key != "simulated_seconds"}
    assert sent == {
        "rounds": 3,
        "messages": 3 * 2 * 2,
        "vectors_down": 3 * 2,
        "vectors_up": 3 * 2,
        "downlink_bytes": 3 * 2 * D * 8,
        "uplink_bytes": 3 * 2 * D * 8,
    }


def test_reports_reach_the_history_and_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    method = methods()["maml"]
    original = type(method).meta_gradient

    def telling(self: Any, tasks: TaskBatch, x: Tensor, o: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        return original(self, tasks, x, o)[0], (tasks.gradient("lower", tasks.spread(x)).norm(dim=-1),)

    quiet = simulate(quadratics(), "maml", iterations=2, seed=7)
    monkeypatch.setattr(type(method), "meta_gradient", telling)
    monkeypatch.setattr(type(method), "reports", ("slope",))
    result = simulate(quadratics(), "maml", iterations=2, seed=7, trace=True)
    assert result.communication == quiet.communication
    assert torch.equal(result.x, quiet.x)
    assert result.trace is not None
    problem, x = quadratics(), result.trace[0].x
    own = QuadraticAdaptation(drawn(problem, range(M), 1, 4, seed=7))
    norms = torch.einsum("bij,bj->bi", own.A, x - own.a).norm(dim=-1).view(M, 4).mean(1)
    expected = float(torch.from_numpy(problem.clients.weights) @ norms)
    assert "metric_slope" not in result.history[0]
    assert result.history[-1]["metric_slope"] == pytest.approx(expected, rel=1e-12)


def test_evaluations_are_of_adapted_parameters() -> None:
    problem = quadratics()
    result = simulate(problem, "maml", iterations=1, local_steps=3, lower_step=0.4, evaluation_tasks=150, seed=7)
    own = QuadraticAdaptation(drawn(problem, range(M), 0, 4, seed=7, fixed=True))
    y = own.maml(result.x, steps=3, step=0.4).y

    def quadratic(matrix: Tensor, r: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,bij,bj->b", r, matrix, r)

    p, row = torch.from_numpy(problem.clients.weights), result.history[-1]
    assert row["upper_loss"] == pytest.approx(float(p @ quadratic(own.C, y - own.c).view(M, 4).mean(1)), rel=1e-12)
    assert row["lower_loss"] == pytest.approx(float(p @ quadratic(own.A, y - own.a).view(M, 4).mean(1)), rel=1e-12)
    unseen = QuadraticAdaptation(problem.test_tasks(150))
    losses = quadratic(unseen.C, unseen.maml(result.x, steps=3, step=0.4).y - unseen.c)
    assert row["test_loss"] == pytest.approx(float(losses.mean()), rel=1e-12)
    assert row["metric_test_interval"] == pytest.approx(1.96 * float(losses.std()) / 150**0.5, rel=1e-12)


def test_float32_stays_near_float64_and_batch_sizes_do_not_matter() -> None:
    options: dict[str, Any] = {"iterations": 5, "local_steps": 4, "upper_step": 0.3}
    for name in ("maml", "reptile", "memfbo", "bome"):
        double = simulate(quadratics(), name, dtype="float64", **options)
        single = simulate(quadratics(), name, dtype="float32", **options)
        assert single.x.dtype == torch.float32
        assert close(single.x.double(), double.x, 2e-5)
        assert single.communication["uplink_bytes"] * 2 == double.communication["uplink_bytes"]
        batches = simulate(quadratics(), name, dtype="float64", batch=2, gradient_batch=3, **options)
        assert torch.equal(batches.x, double.x)


def test_adam_on_the_server_is_that_of_torch() -> None:
    problem, steps = quadratics(), {"lower_step": 0.4, "local_steps": 4}
    result = simulate(problem, "maml", iterations=6, upper_optimiser="adam", upper_step=0.05, trace=True, **steps)
    x = problem.initial(torch.Generator().manual_seed(0))[0].requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    p = torch.from_numpy(problem.clients.weights)
    assert result.trace is not None
    for k, entry in enumerate(result.trace):
        x.grad = p @ exact("maml", drawn(problem, range(M), k, 4), x.detach(), steps).view(M, 4, D).mean(1)
        optimiser.step()
        assert close(entry.x, x.detach())


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_servers_step_halves(optimiser: str) -> None:
    """Against torch's optimiser under an exponential schedule; without halving it stays."""
    problem, steps = quadratics(), {"lower_step": 0.4, "local_steps": 4}
    settings = {"iterations": 5, "upper_optimiser": optimiser, "upper_step": 0.05, "trace": True, **steps}
    result = simulate(problem, "maml", upper_halving=3, **settings)
    x = problem.initial(torch.Generator().manual_seed(0))[0].requires_grad_()
    torchs = (torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam)([x], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(torchs, 0.5 ** (1 / 3))
    assert result.trace is not None
    for entry in result.trace:
        x.grad = entry.hypergradient
        torchs.step()
        schedule.step()
        assert close(entry.x, x.detach())
    plain = simulate(problem, "maml", **settings)
    assert close(plain.trace[0].x, result.trace[0].x)
    assert not close(plain.trace[1].x, result.trace[1].x)
    with pytest.raises(BadInput, match="upper_halving"):
        simulate(problem, "maml", upper_halving=0, **settings)


# ---- going on ----

CONFIG = """
[run]
seeds = [0]
iterations = 6
evaluate_every = 1
dtype = "float64"
clients_per_round = 3
[problem]
name = "quadratic_tasks"
clients = 5
[options]
upper_optimiser = "adam"
upper_halving = 4
tasks_per_client = 2
[algorithms.maml]
truncation = 2
[algorithms.memfbo]
local_steps = 3
"""


def test_an_interrupted_run_goes_on_with_its_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import server.running.experiment
    from experiments.progress import Lines

    monkeypatch.setattr(server.running.experiment, "WRITE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG)
    assert main(["run", "config.toml", "--out", "whole"]) == 0
    left = [4]

    def stop(self: Any, job: Any, iteration: int, rounds: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    for moment in (4, 9):
        left[0] = moment
        out = f"stopped{moment}"
        with monkeypatch.context() as patch:
            patch.setattr(Lines, "stepped", stop)
            assert main(["run", "config.toml", "--out", out]) == 130
        assert rows(out) != rows("whole")
        assert main(["resume", out]) == 0
        assert rows(out) == rows("whole")


def test_a_state_with_moments_and_a_report_is_kept_exactly(tmp_path: Path) -> None:
    for name in ("maml", "memfbo", "bome"):
        x = torch.randn(D, dtype=torch.float64)
        first = find(name).make({}).init(x, x.clone())
        changed = {"first": x + 1, "second": x * x, "steps": 3, "report": {"slope": 0.1}, "hypergradient": -x}
        state = type(first)(**{**vars(first), **changed})
        kept = Checkpoints(tmp_path)
        kept.save(name, Checkpoint(state, 3, 0.5, Ledger().totals()))
        found = kept.load(name, first)
        assert found is not None
        for key, value in vars(state).items():
            held = getattr(found.state, key)
            assert torch.equal(held, value) if isinstance(value, Tensor) else held == value


# ---- what cannot be used ----


@pytest.mark.parametrize("steps", [[1, 2, 3, 4, 5], {"epochs": 2}, {"low": 1, "high": 3}])
@pytest.mark.parametrize("name", ["memfbo", "bome"])
def test_local_steps_on_tasks_are_one_number(name: str, steps: Any) -> None:
    with pytest.raises(BadInput, match=r"options\.local_steps: .*allowed: an integer of at least 1 where"):
        simulate(quadratics(), name, iterations=1, local_steps=steps)
    result = simulate(build("quadratic", {"clients": M}, data=None, dtype=None), name, iterations=1, local_steps=steps)  # type: ignore[arg-type]  # it takes no data
    assert result.communication["rounds"] == (1 if name == "memfbo" else 6)


def test_decreasing_steps_are_refused_where_no_iteration_is_counted() -> None:
    with pytest.raises(BadInput, match=r"options\.step_decay: got 0\.5; allowed: 0"):
        simulate(quadratics(), "bome", iterations=1, step_decay=0.5)


def test_an_algorithm_of_the_other_family_is_refused_with_those_that_fit() -> None:
    with pytest.raises(BadInput, match=r"local lower level one of .*bome.*fomaml, .*maml.*memfbo.*reptile"):
        simulate(quadratics(), "aggitd", iterations=1)
    with pytest.raises(BadInput, match=r"global lower level one of aggitd, bome.*memfbo"):
        simulate("quadratic", "maml", iterations=1)

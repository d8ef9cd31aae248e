"""Derivatives against finite differences and dense autodiff, and every operation against a plain loop over clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.func import vmap

from clients.cohort import Cohort, Draw, Held
from clients.node import Node, Setting
from clients.operations import OPERATIONS as ALL
from fedbilevel import ClientData, derivatives, simulate
from fedbilevel.data import FederatedData, federate
from fedbilevel.federation.messages import Request
from fedbilevel.problem import leaves, map_examples
from fedbilevel.problems import HyperRepresentation, Quadratic
from server.kit.algorithm import algorithms

LEVELS: tuple[derivatives.Level, derivatives.Level] = ("lower", "upper")
Structure = Literal["tensor", "tuple", "dict"]
OPERATIONS = {name: operation for name, operation in ALL.items() if not operation.tasks}
"""Those of a global lower level."""


class Curved:
    """Losses that are nonlinear in x and y together; examples are a tensor, a tuple or a dict (lower, upper alike)."""

    dim_x, dim_y = 3, 4

    def __init__(self, structure: Structure, sizes: tuple[tuple[int, int], ...] = ((2, 3), (5, 1), (4, 4))) -> None:
        draw = torch.Generator().manual_seed(1)
        self.structure = structure
        self.mix = torch.randn(4, 3, generator=draw, dtype=torch.float64)
        examples = [[self._examples(n, draw) for n in pair] for pair in sizes]
        self.clients = ClientData([pair[0] for pair in examples], [pair[1] for pair in examples], "size")

    def _examples(self, n: int, draw: torch.Generator) -> Any:
        a, b = (torch.randn(n, d, generator=draw, dtype=torch.float64) for d in (4, 1))
        joined: dict[Structure, Any] = {"tensor": torch.cat([a, b], 1), "tuple": (a, b[:, 0]), "dict": {"a": a, "b": b}}
        return joined[self.structure]

    def _read(self, examples: Any) -> tuple[Tensor, Tensor]:
        if self.structure == "tensor":
            return examples[:, :4], examples[:, 4]
        if self.structure == "tuple":
            return examples[0], examples[1]
        return examples["a"], examples["b"][:, 0]

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        a, b = self._read(examples)
        inner = a @ y + torch.tanh(a @ (self.mix @ x))
        return torch.log(torch.cosh(inner - b)) * torch.exp(0.3 * x[0]) + 0.2 * (y @ y) + 0.1 * (y**4).sum()

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        a, b = self._read(examples)
        return torch.sin(a @ y) * x.sum() + 0.5 * (b - y.sum() * x[1]) ** 2 + 0.05 * (x @ x)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


class Prepared(Curved):
    """The same with what does not depend on y computed by `prepare`."""

    def prepare(self, x: Tensor, examples: Any) -> dict[str, Tensor]:
        a, b = self._read(examples)
        return {"a": a, "b": b, "shift": torch.tanh(a @ (self.mix @ x))}

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        inner = examples["a"] @ y + examples["shift"]
        smooth = torch.log(torch.cosh(inner - examples["b"])) * torch.exp(0.3 * x[0])
        return smooth + 0.2 * (y @ y) + 0.1 * (y**4).sum()

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        a, b = examples["a"], examples["b"]
        return torch.sin(a @ y) * x.sum() + 0.5 * (b - y.sum() * x[1]) ** 2 + 0.05 * (x @ x)


def small_digits(hidden: tuple[int, ...], activation: Any) -> HyperRepresentation:
    """Three unequal clients, few features."""
    data = federate("digits", clients=40, parameters={"alpha": 0.5}, seed=5)
    some = np.argsort(data.clients.lower.sizes, kind="stable")[[0, 13, 26]]
    three = ClientData(data.clients.lower.take(some), data.clients.upper.take(some), "size")

    def fewer(examples: Any) -> Any:
        return {"input": examples["input"][:, 18:46:4].double(), "label": examples["label"]}

    for level in (three.lower, three.upper):
        object.__setattr__(level, "values", fewer(level.values))
    test = data.x_test.reshape(len(data.x_test), -1)[:, 18:46:4]
    few: FederatedData = replace(data, clients=three, x_test=test, features=test.shape[1])
    return HyperRepresentation(few, list(hidden), activation, l2=0.05, dtype=torch.float64)


class Plain:
    """A problem without its closed forms; whether it keeps `prepare` is a choice."""

    def __init__(self, problem: Any) -> None:
        self.clients, self.initial, self.evaluate = problem.clients, problem.initial, problem.evaluate
        self.lower, self.upper, self.prepare = problem.lower, problem.upper, problem.prepare


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


# ---- the closed forms of HyperRepresentation ----

NETWORKS = [((3,), "tanh"), ((3,), "relu"), ((4, 3), "tanh"), ((4, 3), "relu"), ((4, 5, 2), "tanh")]


@pytest.mark.parametrize(("hidden", "activation"), NETWORKS)
def test_closed_forms_equal_autodiff_at_one_point(hidden: tuple[int, ...], activation: str) -> None:
    problem = small_digits(hidden, activation)
    plain = Plain(problem)
    x, y = problem.initial(torch.Generator().manual_seed(2))
    x, y, v = x + 0.1 * randn(*x.shape, seed=6), randn(*y.shape, seed=3), randn(*y.shape, seed=4)
    for level in LEVELS:
        examples = getattr(problem.clients, level).values
        n = len(examples["label"])
        weights = torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        prepared = problem.prepare(x, examples)
        dy, dx = (
            [f(p, level, x, y, *given, weights) for p in (problem, plain)]
            for f, given in ((derivatives.gradient_y, (prepared,)), (derivatives.gradient_x, (examples, prepared)))
        )
        near(dy[0], dy[1], 1e-12)
        near(dx[0], dx[1], 1e-12)
        if level == "lower":
            curved = [derivatives.hvp(p, x, y, v, prepared, weights) for p in (problem, plain)]
            near(curved[0], curved[1], 1e-12)
            crossed = [derivatives.cross_vjp(p, x, y, v, examples, prepared, weights) for p in (problem, plain)]
            near(crossed[0], crossed[1], 1e-12)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("hidden", "activation"), NETWORKS[1:3])
def test_closed_forms_in_y_take_leading_dimensions(
    hidden: tuple[int, ...], activation: str, leading: tuple[int, ...]
) -> None:
    problem, n = small_digits(hidden, activation), 7
    x, y = problem.initial(torch.Generator().manual_seed(2))
    y, v = randn(*leading, len(y), seed=3), randn(*leading, len(y), seed=4)
    weights = torch.rand(*leading, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows = torch.randint(len(problem.clients.lower.values["label"]), (*leading, n), generator=torch.Generator())
    prepared = map_examples(lambda tensor: tensor[rows], problem.prepare(x, problem.clients.lower.values))

    def loss(y: Tensor, feature: Tensor, label: Tensor, w: Tensor, level: str) -> Tensor:
        total: Tensor = (getattr(problem, level)(x, y, {"feature": feature, "label": label}) * w).sum()
        return total

    def batched(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        for _ in leading:
            function = vmap(function)
        return function

    arguments = (prepared["feature"], prepared["label"], weights)
    lower = torch.func.grad(lambda y, f, l, w: loss(y, f, l, w, "lower"))
    upper = torch.func.grad(lambda y, f, l, w: loss(y, f, l, w, "upper"))
    second = torch.func.grad(lambda y, v, f, l, w: lower(y, f, l, w) @ v)
    near(problem.lower_gradient(x, y, prepared, weights), batched(lower)(y, *arguments), 1e-12)
    near(problem.upper_gradient_y(x, y, prepared, weights), batched(upper)(y, *arguments), 1e-12)
    near(problem.lower_hvp(x, y, v, prepared, weights), batched(second)(y, v, *arguments), 1e-12)
    for anchor in (v, v.flatten()[: v.shape[-1]]):
        difference = batched(lower)(y, *arguments) - batched(lower)(anchor.expand_as(y), *arguments)
        near(problem.lower_gradient_difference(x, y, anchor, prepared, weights), difference, 1e-12)


# ---- derivatives.py ----

PROBLEMS: dict[str, Callable[[], Any]] = {
    "quadratic": lambda: Quadratic(clients=3, dim_x=3, dim_y=4, examples=(2, 5), seed=3),
    "tensor": lambda: Curved("tensor"),
    "tuple": lambda: Curved("tuple"),
    "dict": lambda: Curved("dict"),
    "prepared": lambda: Prepared("dict"),
    "digits": lambda: Plain(small_digits((3,), "tanh")),
    "closed": lambda: small_digits((3,), "relu"),
}


def weighted(problem: Any, level: str, x: Tensor, y: Tensor, examples: Any, weights: Tensor) -> Tensor:
    """The weighted loss of some examples."""
    if hasattr(problem, "prepare"):
        examples = problem.prepare(x, examples)
    total: Tensor = (getattr(problem, level)(x, y, examples) * weights).sum()
    return total


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    return torch.stack(
        [(function(at + step * e) - function(at - step * e)) / (2 * step) for e in torch.eye(len(at)).double()]
    )


@pytest.mark.parametrize("name", sorted(PROBLEMS))
@pytest.mark.parametrize("level", LEVELS)
def test_derivatives_equal_dense_autodiff_and_finite_differences(name: str, level: derivatives.Level) -> None:
    problem = PROBLEMS[name]()
    x, y = problem.initial(torch.Generator().manual_seed(0))
    x, y, v = x + 0.3 * randn(len(x), seed=1), y + 0.3 * randn(len(y), seed=2), randn(len(y), seed=3)
    ragged = getattr(problem.clients, level)
    n = int(ragged.offsets[-1])
    weights = torch.rand(n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    examples = ragged.values
    prepared = derivatives.prepare(problem, x, examples)

    def at(x: Tensor, y: Tensor) -> Tensor:
        return weighted(problem, level, x, y, examples, weights)

    near(derivatives.losses(problem, level, x, y, prepared, weights), at(x, y), 1e-14)
    gradient_y = derivatives.gradient_y(problem, level, x, y, prepared, weights)
    gradient_x = derivatives.gradient_x(problem, level, x, y, examples, prepared, weights)
    near(gradient_y, differences(lambda y: at(x, y), y), 1e-7)
    if name != "closed":
        near(gradient_x, differences(lambda x: at(x, y), x), 1e-7)
    near(gradient_y, jacobian(lambda y: at(x, y), y), 1e-12)
    near(gradient_x, jacobian(lambda x: at(x, y), x), 1e-12)
    if level == "lower":
        H = hessian(lambda y: at(x, y), y)
        near(derivatives.hvp(problem, x, y, v, prepared, weights), H @ v, 1e-11)
        leaf = y.clone().requires_grad_()

        def slope(x: Tensor) -> Tensor:
            (g,) = torch.autograd.grad(at(x, leaf), leaf, create_graph=True)
            return g

        J = jacobian(slope, x).T
        assert J.shape == (len(x), len(y))
        near(derivatives.cross_vjp(problem, x, y, v, examples, prepared, weights), J @ v, 1e-11)


@pytest.mark.parametrize("name", sorted(PROBLEMS))
@pytest.mark.parametrize("common", ["x", "y", "both", "neither"])
def test_rows_equal_one_call_per_row(name: str, common: str) -> None:
    """One loss per row, at a point of its own or at a common one."""
    problem, S, b = PROBLEMS[name](), 4, 3
    dx, dy = (len(each) for each in problem.initial(torch.Generator().manual_seed(0)))
    xs, ys, vs = 0.3 * randn(S, dx, seed=1), 0.3 * randn(S, dy, seed=2), randn(S, dy, seed=3)
    x = xs[0] if common in ("x", "both") else xs
    y = ys[0] if common in ("y", "both") else ys
    weights = torch.rand(S, b, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for level in LEVELS:
        ragged = getattr(problem.clients, level)
        index = torch.randint(int(ragged.offsets[-1]), (S, b), generator=torch.Generator().manual_seed(5))
        examples = map_examples(lambda tensor, index=index: tensor[index], ragged.values)
        flat = derivatives.prepare(problem, x, ragged.values) if x.ndim == 1 else None
        prepared = (
            derivatives.prepare(problem, x, examples)
            if flat is None
            else map_examples(lambda tensor, index=index: tensor[index], flat)
        )
        together = [
            derivatives.losses(problem, level, x, y, prepared, weights),
            derivatives.gradient_y(problem, level, x, y, prepared, weights),
            derivatives.gradient_x(problem, level, x, y, examples, prepared, weights),
        ]
        if level == "lower":
            together.append(derivatives.hvp(problem, x, y, vs, prepared, weights))
            together.append(derivatives.cross_vjp(problem, x, y, vs, examples, prepared, weights))
        for s in range(S):
            x_s, y_s = x if x.ndim == 1 else x[s], y if y.ndim == 1 else y[s]
            own = map_examples(lambda tensor, s=s: tensor[s], examples)
            ready = derivatives.prepare(problem, x_s, own)
            alone = [
                derivatives.losses(problem, level, x_s, y_s, ready, weights[s]),
                derivatives.gradient_y(problem, level, x_s, y_s, ready, weights[s]),
                derivatives.gradient_x(problem, level, x_s, y_s, own, ready, weights[s]),
            ]
            if level == "lower":
                alone.append(derivatives.hvp(problem, x_s, y_s, vs[s], ready, weights[s]))
                alone.append(derivatives.cross_vjp(problem, x_s, y_s, vs[s], own, ready, weights[s]))
            for many, single in zip(together, alone, strict=True):
                near(many[s], single, 1e-11)


# ---- operations: a batch of clients against a loop over clients ----

VALUES: dict[str, Any] = {
    "neumann_step": 0.4,
    "lower_step": 0.2,
    "upper_step": 0.1,
    "auxiliary_step": 0.15,
    "neumann_terms": 3,
    "index": None,
    "penalty": 2.5,
    "lower_weight": 0.7,
}
SPECS: list[Any] = [1, 3, {"epochs": 2}, {"low": 1, "high": 4}]
SETTINGS = {
    "full": Setting(seed=3),
    "batch 2": Setting(seed=3, batch=2),
    "batch 2, gradient batch 3": Setting(seed=3, batch=2, gradient_batch=3),
    "batch 100": Setting(seed=3, batch=100, gradient_batch=100),
}


def ask(name: str, problem: Any, spec: Any, clients: list[int], **values: Any) -> Request:
    """A request with random vectors for whatever the operation reads."""
    operation = OPERATIONS[name]
    x0, y0 = problem.initial(torch.Generator().manual_seed(0))
    dx, dy = len(x0), len(y0)
    sizes = {"x": dx, "hypergradient": dx}
    tensors = {key: 0.3 * randn(sizes.get(key, dy), seed=50 + k) for k, key in enumerate(operation.reads)}
    options = {key: values.get(key, VALUES.get(key, spec)) for key in operation.options}
    return Request((name,), np.array(clients), tensors, {key: k for k, key in enumerate(tensors)}, options, 2, 9)


def loop(problem: Any, request: Request, setting: Setting) -> list[Tensor]:
    """Sum p_i u_i, client by client, each in a cohort of its own."""
    (name,) = request.operations
    totals: list[Tensor] = []
    draw = Draw(setting.seed, request.round, name, setting.batch, setting.gradient_batch)
    for i in request.clients:
        cohort = Cohort(Held.of(problem, np.array([i])), draw, pooled=False)
        outputs = OPERATIONS[name](cohort, request.tensors, request.options)
        parts = [float(problem.clients.weights[i]) * (u[0] if u.ndim == 2 else u).double() for u in outputs]
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    return totals


@pytest.mark.parametrize("setting", sorted(SETTINGS))
@pytest.mark.parametrize("problem_name", ["quadratic", "tuple", "prepared", "closed"])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_equal_a_loop_over_clients(name: str, problem_name: str, setting: str) -> None:
    """Pooled or in rows, ragged sizes, minibatches that do not divide them, unequal local steps."""
    problem = PROBLEMS[problem_name]()
    specs = SPECS if OPERATIONS[name].steps else [1]
    for spec in specs:
        for values in ({}, {"index": 2}) if "index" in OPERATIONS[name].options else ({},):
            for clients in ([0, 1, 2], [0, 2]):
                request = ask(name, problem, spec, clients, **values)
                reply = Node(problem, SETTINGS[setting]).answer(request)
                assert reply.weight == pytest.approx(float(problem.clients.weights[clients].sum()))
                expected = loop(problem, request, SETTINGS[setting])
                assert len(reply.sums) == 1
                for found, wanted in zip(reply.sums[0], expected, strict=True):
                    assert found.dtype == torch.float64
                    assert found.shape == wanted.shape
                    assert float((found - wanted).norm()) <= 1e-12 * (1 + float(wanted.norm()))


def test_an_operation_that_says_it_is_linear_is() -> None:
    """The pooled row is used where it may be: one local step, or none; never where a client's own path matters."""
    for operation in OPERATIONS.values():
        options = {**VALUES, "local_steps": 1, "upper_local_steps": 1}
        assert operation.linear(options) == (operation.name != "local_hypergradient_steps")
        if operation.steps:
            assert not operation.linear({**options, operation.steps: 2})
            assert not operation.linear({**options, operation.steps: [1, 1, 2]})


@pytest.mark.parametrize("gradient_batch", [None, 3])
@pytest.mark.parametrize("closed", [False, True])
def test_answers_do_not_depend_on_what_was_asked_before(closed: bool, gradient_batch: int | None) -> None:
    """What was prepared for one x, or for some rows, or gathered for one set, is never used for another."""
    problem = small_digits((3,), "tanh") if closed else Prepared("dict")
    setting = Setting(seed=3, batch=2, gradient_batch=gradient_batch)
    node = Node(problem, setting)
    for clients in ([0, 1, 2], [1], [2], [0, 2], [0, 1]):
        requests = [ask(name, problem, 2, clients) for name in sorted(OPERATIONS)]
        moved = [replace(r, tensors={key: t + 0.1 for key, t in r.tensors.items()}) for r in requests]
        later = [replace(r, tensors=requests[0].tensors | r.tensors, round=10) for r in requests]
        for request in [*requests, *moved, *requests, *later]:
            fresh, again = Node(problem, setting).answer(request), node.answer(request)
            for a, b in zip(again.sums[0], fresh.sums[0], strict=True):
                assert torch.equal(a, b)


def test_rows_prepared_for_one_minibatch_are_not_used_for_another() -> None:
    problem = Prepared("dict")
    made = Cohort(Held.of(problem, np.arange(3)), Draw(3, 0, "walk", 2), pooled=False)
    xs, ys = 0.3 * randn(3, 3, seed=1), 0.3 * randn(3, 4, seed=2)
    found = [made.lower_gradient(xs, ys, batch) for batch in made.batches(3, torch.float64, "lower")]
    again = [made.lower_gradient(xs.clone(), ys, batch) for batch in made.batches(3, torch.float64, "lower")]
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], found[1])


class OneClient:
    """Derivatives of one client's losses over some of its examples, by plain automatic differentiation."""

    def __init__(self, problem: Curved, step: dict[str, list[int]]) -> None:
        self.problem = problem
        self.examples = {}
        for level, rows in step.items():
            values = getattr(problem.clients, level).values
            self.examples[level] = map_examples(lambda tensor, rows=rows: tensor[rows], values)

    def _grad(self, level: str, x: Tensor, y: Tensor, by: str) -> Tensor:
        points = {"x": x.clone().requires_grad_(), "y": y.clone().requires_grad_()}
        loss = getattr(self.problem, level)(points["x"], points["y"], self.examples[level]).mean()
        (gradient,) = torch.autograd.grad(loss, points[by])
        return gradient

    def fx(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("upper", x, y, "x")

    def fy(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("upper", x, y, "y")

    def gx(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("lower", x, y, "x")

    def gy(self, x: Tensor, y: Tensor) -> Tensor:
        return self._grad("lower", x, y, "y")

    def products(self, x: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`J v` and `H v`."""
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss = self.problem.lower(x, y, self.examples["lower"]).mean()
        (slope,) = torch.autograd.grad(loss, y, create_graph=True)
        return torch.autograd.grad(slope @ v, (x, y))


def walked(name: str, steps: list[OneClient], v: Any, o: Any) -> list[Tensor]:
    """What one client sends up, from the recurrences: one minibatch per step, v the vectors received."""
    x, y = v["x"], v["y"]
    beta, alpha = o.get("lower_step", 0.0), o.get("upper_step", 0.0)
    sums = [torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(y)]
    z = v.get("z", y)
    for at in steps:
        if name == "svrg_steps":
            y = y - beta * (at.gy(x, y) - at.gy(x, v["y"]) + v["gradient"])
        elif name == "sgd_steps":
            y = y - beta * at.gy(x, y)
        elif name == "outer_steps":
            x = x - alpha * (at.fx(x, y) - at.fx(v["x"], y) + v["hypergradient"])
        elif name == "direct_steps":
            x = x - alpha * at.fx(x, y)
        elif name == "local_hypergradient_steps":
            lam, N, index = o["neumann_step"], o["neumann_terms"], o["index"]
            p = at.fy(x, y)
            terms = [p]
            for _ in range(N):
                p = p - lam * at.products(x, y, p)[1]
                terms.append(p)
            p = lam * torch.stack(terms).sum(0) if index is None else lam * N * terms[index]
            x = x - alpha * (at.fx(x, y) - at.products(x, y, p)[0])
        elif name == "joint_steps":
            weight = o["lower_weight"]
            dx, dy = at.fx(x, y) + weight * at.gx(x, y), at.fy(x, y) + weight * at.gy(x, y)
            x, y = x - alpha * dx, y - beta * dy
        else:
            lam = o["penalty"]
            dx = at.fx(x, y) + lam * (at.gx(x, y) - at.gx(x, z))
            dy, dz = at.fy(x, y) + lam * at.gy(x, y), at.gy(x, z)
            sums = [total + each for total, each in zip(sums, (dx, dy, dz), strict=True)]
            x, y, z = x - alpha * dx, y - beta * dy, z - o["auxiliary_step"] * dz
    up = {"svrg_steps": [y], "sgd_steps": [y], "joint_steps": [x, y], "penalty_steps": [t / len(steps) for t in sums]}
    return up.get(name, [x])


WALKS: dict[str, tuple[derivatives.Level, ...]] = {
    "svrg_steps": ("lower",),
    "sgd_steps": ("lower",),
    "outer_steps": ("upper",),
    "direct_steps": ("upper",),
    "local_hypergradient_steps": ("upper", "lower"),
    "joint_steps": ("lower", "upper"),
    "penalty_steps": ("lower", "upper"),
}


@pytest.mark.parametrize("spec", [1, 3, {"epochs": 2}], ids=str)
@pytest.mark.parametrize("name", sorted(WALKS))
def test_every_derivative_of_a_local_step_sees_its_minibatch(name: str, spec: Any) -> None:
    problem, setting = Curved("tuple"), Setting(seed=2, batch=2, gradient_batch=1)
    for values in ({}, {"index": 2}) if name == "local_hypergradient_steps" else ({},):
        request = ask(name, problem, spec, [0, 1, 2], **values)
        totals: list[Tensor] = []
        for i in range(3):
            alone = Cohort(Held.of(problem, np.array([i])), Draw(2, request.round, name, 2, 1), pooled=False)
            steps = []
            for batch in alone.batches(spec, torch.float64, *WALKS[name]):
                step = {}
                for level, rows in batch.rows.items():
                    assert rows.index is not None
                    start = int(getattr(problem.clients, level).offsets[i])
                    step[level] = (rows.index[0][rows.weights[0] > 0] + start).tolist()
                steps.append(step)
            up = walked(name, [OneClient(problem, step) for step in steps], request.tensors, request.options)
            parts = [float(problem.clients.weights[i]) * each for each in up]
            totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
        for found, wanted in zip(Node(problem, setting).answer(request).sums[0], totals, strict=True):
            near(found, wanted, 1e-12)


def test_every_operation_with_local_steps_is_walked_here() -> None:
    assert set(WALKS) == {name for name, operation in OPERATIONS.items() if operation.steps}


class Direct:
    """A problem as two bare losses: no closed form, nothing prepared."""

    def __init__(self, problem: HyperRepresentation) -> None:
        self.problem, self.clients = problem, problem.clients
        self.initial, self.evaluate = problem.initial, problem.evaluate

    def lower(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return self.problem.lower(x, y, self.problem.prepare(x, examples))

    def upper(self, x: Tensor, y: Tensor, examples: Any) -> Tensor:
        return self.problem.upper(x, y, self.problem.prepare(x, examples))


@pytest.mark.parametrize("batch", ["full", 5])
@pytest.mark.parametrize("name", sorted(algorithms("global")))
def test_closed_forms_and_prepared_features_change_no_run(name: str, batch: Any) -> None:
    problem = small_digits((3,), "tanh")
    options = {"lower_rounds": 2, "neumann_terms": 2, "local_steps": 2, "upper_local_steps": 2, "upper_step": 0.5}
    settings = {"iterations": 3, "seed": 1, "batch": batch, "gradient_batch": 7, "clients_per_round": 2}
    closed, bare = (simulate(each, name, **settings, **options) for each in (problem, Direct(problem)))
    near(closed.x, bare.x, 1e-11)
    near(closed.y, bare.y, 1e-11)
    for a, b in zip(closed.history, bare.history, strict=True):
        for loss in ("lower_loss", "upper_loss"):
            assert a[loss] == pytest.approx(b[loss], rel=1e-11)


# ---- which examples ----


class Counting:
    """g and f of example e are <e, y> and <e, x>, with e a row of the identity: gradients show the weights."""

    def __init__(self, lower: tuple[int, ...], upper: tuple[int, ...]) -> None:
        def rows(sizes: tuple[int, ...]) -> list[Tensor]:
            return list(torch.eye(sum(sizes), dtype=torch.float64).split(list(sizes)))

        self.sizes, self.dims = {"lower": lower, "upper": upper}, (sum(upper), sum(lower))
        self.clients = ClientData(rows(lower), rows(upper), "uniform")

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.dims[0], dtype=torch.float64), torch.zeros(self.dims[1], dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ y

    def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return examples @ x

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


COUNTING = Counting((1, 4, 7, 5), (3, 2, 6, 1))


def cohort(clients: list[int], **draw: Any) -> Cohort:
    settings = {"seed": 4, "round": 6, "purpose": "walk", **draw}
    return Cohort(Held.of(COUNTING, np.array(clients)), Draw(**settings), pooled=False)


def walk(clients: list[int], spec: Any, levels: tuple[derivatives.Level, ...], **draw: Any) -> list[list[Tensor]]:
    """Per step and level the gradient of <e, y> or <e, x>: the weight of every example, [clients, examples]."""
    made = cohort(clients, **draw)
    x, y = COUNTING.initial(torch.Generator())
    steps = []
    for batch in made.batches(spec, torch.float64, *levels):
        of = {"lower": made.lower_gradient, "upper": made.upper_gradient_x}
        steps.append([batch.keep(of[level](x, y, batch)) for level in levels])
    return steps


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("level", LEVELS)
def test_every_epoch_visits_every_example_once(batch: int, level: derivatives.Level) -> None:
    """Minibatches of the batch size, the last of an epoch short; equal weights within one."""
    clients, epochs = [0, 1, 2, 3], 3
    steps = walk(clients, {"epochs": epochs}, (level,), batch=batch)
    sizes = COUNTING.sizes[level]
    offsets = np.cumsum([0, *sizes])
    for i in clients:
        own = slice(int(offsets[i]), int(offsets[i + 1]))
        per_epoch = -(-sizes[i] // batch)
        rows = torch.stack([step[0][i] for step in steps])
        assert float(rows[:, : own.start].abs().sum() + rows[:, own.stop :].abs().sum()) == 0
        assert float(rows[epochs * per_epoch :].abs().sum()) == 0
        orders = []
        for epoch in range(epochs):
            visited = rows[epoch * per_epoch : (epoch + 1) * per_epoch, own]
            seen = (visited > 0).sum(1)
            assert seen.tolist() == [batch] * (per_epoch - 1) + [sizes[i] - batch * (per_epoch - 1)]
            assert (visited > 0).sum(0).tolist() == [1] * sizes[i]
            assert torch.allclose(visited, (visited > 0).double() / seen[:, None])
            orders.append(visited.argmax(0).tolist())
        if batch == 2 and sizes[i] > 4:
            assert len({tuple(order) for order in orders}) > 1


def test_a_full_batch_weighs_every_example_of_the_client_equally() -> None:
    ((rows,),) = walk([1, 3], 1, ("lower",))
    expected = torch.zeros(2, 17, dtype=torch.float64)
    expected[0, 1:5], expected[1, 12:] = 1 / 4, 1 / 5
    assert torch.allclose(rows, expected)


def test_both_levels_are_walked_through_at_once() -> None:
    """Local steps count epochs of the level named first; the other starts anew when it is through."""
    steps = walk([1, 2], {"epochs": 1}, ("upper", "lower"), batch=2)
    assert len(steps) == 3
    client = [[(rows[1] > 0).nonzero().flatten().tolist() for rows in step] for step in steps]
    assert sorted(row for upper, _ in client for row in upper) == list(range(5, 11))
    lower = [row for _, rows in client for row in rows]
    assert len(lower) == len(set(lower)) == 6
    assert set(lower) < set(range(5, 12))
    first = [[(rows[0] > 0).nonzero().flatten().tolist() for rows in step] for step in steps]
    assert [bool(upper) for upper, _ in first] == [True, False, False]


@pytest.mark.parametrize("spec", [5, {"epochs": 2}, {"low": 1, "high": 6}], ids=str)
def test_minibatches_do_not_depend_on_the_grouping_of_clients(spec: Any) -> None:
    whole = walk([0, 1, 2, 3], spec, ("lower", "upper"), batch=2)
    for clients in ([0], [1], [2], [3], [1, 3], [0, 1, 2]):
        part = walk(clients, spec, ("lower", "upper"), batch=2)
        assert len(part) <= len(whole)
        for k, step in enumerate(whole):
            for level in (0, 1):
                expected = step[level][clients]
                found = part[k][level] if k < len(part) else torch.zeros_like(expected)
                assert torch.equal(found, expected)


def test_minibatches_differ_by_seed_round_and_operation_only() -> None:
    def rows(**draw: Any) -> Tensor:
        return torch.stack([step[0] for step in walk([0, 1, 2, 3], 4, ("lower",), batch=2, **draw)])

    assert torch.equal(rows(), rows())
    for other in ({"seed": 5}, {"round": 7}, {"purpose": "other"}):
        assert not torch.equal(rows(), rows(**other))


def test_gradient_batches_are_drawn_without_replacement_and_once_per_operation() -> None:
    made = cohort([0, 1, 2, 3], gradient_batch=3)
    x, y = COUNTING.initial(torch.Generator())
    rows = made.lower_gradient(x, y)
    assert torch.equal(rows, made.lower_gradient(x, y + 1))
    for i, size in enumerate(COUNTING.sizes["lower"]):
        taken = rows[i][rows[i] > 0]
        assert torch.allclose(taken, torch.full((min(size, 3),), 1 / min(size, 3)).double())
    pooled = Cohort(made.held, made.draw, pooled=True).lower_gradient(x, y)
    near(pooled, rows.mean(0), 1e-14)
    visits = torch.zeros(17)
    for k in range(600):
        visits += cohort([2], gradient_batch=3, round=k).lower_gradient(x, y)[0] > 0
    assert float(visits[5:12].sum()) == 1800
    assert float(((visits[5:12] - 1800 / 7) ** 2 / (1800 / 7)).sum()) < 22.5


@pytest.mark.parametrize("name", ["svrg_steps", "outer_steps"])
def test_both_gradients_of_a_corrected_step_see_the_same_minibatch(name: str) -> None:
    """Linear losses: the difference of two gradients on one minibatch is zero, so that tau steps follow the mean."""
    request = ask(name, COUNTING, 5, [0, 1, 2, 3])
    reply = Node(COUNTING, Setting(seed=1, batch=2)).answer(request)
    start, direction, step = ("y", "gradient", 0.2) if name == "svrg_steps" else ("x", "hypergradient", 0.1)
    near(reply.sums[0][0], request.tensors[start] - 5 * step * request.tensors[direction], 1e-14)


@pytest.mark.parametrize("name", ["penalty_hypergradient", "bome_directions", "penalty_steps"])
def test_both_gradients_of_a_penalty_difference_see_the_same_minibatch(name: str) -> None:
    """At z = y the difference is zero whatever the penalty; on two minibatches it would not be."""
    problem = Curved("dict")
    setting = Setting(seed=1, batch=2, gradient_batch=2)
    request = ask(name, problem, 1, [0, 1, 2])
    other = "yh" if name == "bome_directions" else "z"
    tensors = {**request.tensors, other: request.tensors["y"].clone()}
    sums = []
    for penalty in (1.0, 1e9):
        options = {**request.options, "penalty": penalty} if name != "bome_directions" else request.options
        sums.append(Node(problem, setting).answer(replace(request, tensors=tensors, options=options)).sums[0])
    if name == "bome_directions":
        assert float(sums[0][2].norm()) == 0
    else:
        assert torch.equal(sums[0][0], sums[1][0])


def test_leaves_come_in_a_fixed_order() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert [t is u for t, u in zip(leaves({"a": a, "b": (b, a)}), [a, b, a], strict=True)] == [True] * 3

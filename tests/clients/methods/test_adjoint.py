"""A-MAML and COMLN against closed forms, solves of the sensitivity equations by scipy, and autograd through solvers."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch.func import grad, jacrev
from torch.nn.functional import cross_entropy

from clients.cohort import Cohort, Draw, Held
from clients.methods import methods
from clients.methods.stability import UnstableFlow, curvature
from clients.tasks import TaskBatch
from fedbilevel import simulate
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.problem import ClientData
from fedbilevel.problems.quadratic_tasks import QuadraticTasks
from fedbilevel.tasks import Tasks
from server.kit.algorithm import find
from server.running.run import initial

IN, WIDTH, CLASSES, SHOTS, QUERIES = 3, 4, 3, 2, 3
BODY, HEAD = WIDTH * IN, CLASSES * (WIDTH + 1)


class Softmax:
    """A tanh layer and a linear softmax head: parameters (body [4, 3], weight [3, 4], bias [3])."""

    draws, task_sizes, kind, classes = 1, (SHOTS * CLASSES, QUERIES * CLASSES), "classification", CLASSES

    def __init__(self, scale: float = 1.0) -> None:
        rows = [torch.arange(4.0, dtype=torch.float64) + 10 * client for client in range(2)]
        self.clients, self.scale = ClientData(rows, rows), scale

    def initial(self, generator):
        x = 0.5 * torch.randn(BODY + HEAD, generator=generator, dtype=torch.float64)
        return x, x.clone()

    def _set(self, keys, shots):
        sets, dtype = [], self.clients.lower.values.dtype
        for key in keys:
            g = torch.Generator().manual_seed(int(key))
            centres = torch.randn(CLASSES, IN, generator=g, dtype=torch.float64)
            label = torch.arange(CLASSES).repeat_interleave(shots)
            noise = torch.randn(len(label), IN, generator=g, dtype=torch.float64)
            sets.append(((self.scale * (centres[label] + 0.7 * noise)).to(dtype), label))
        return {"input": torch.stack([s[0] for s in sets]), "label": torch.stack([s[1] for s in sets])}

    def tasks(self, held, draws):
        keys = (1000 * draws[:, :, 0]).astype(int).ravel()
        return Tasks(self._set(keys, SHOTS), self._set(keys, QUERIES))

    def test_tasks(self, count):
        keys = [5000 + k for k in range(count)]
        return Tasks(self._set(keys, SHOTS), self._set(keys, QUERIES))

    def features(self, y, inputs):
        return torch.tanh(inputs @ y[:BODY].view(WIDTH, IN).mT)

    def outputs(self, y, examples):
        weight, bias = y[BODY:-CLASSES].view(CLASSES, WIDTH), y[-CLASSES:]
        return self.features(y, examples["input"]) @ weight.mT + bias

    def lower(self, x, y, examples):
        right = examples["label"].unsqueeze(-1) == torch.arange(CLASSES)
        return -(torch.log_softmax(self.outputs(y, examples), -1) * right).sum(-1)

    upper = lower

    def evaluate(self, x, y):
        return {}


class Quartic(QuadraticTasks):
    """L' = u + u^3 at u = y - 1."""

    def lower(self, x, y, examples):
        return ((y - 1) ** 2 / 2 + (y - 1) ** 4 / 4).sum().expand(1)


def drawn(problem, count=2, seed=3):
    """A batch of tasks of all clients, and a start."""
    cohort = Cohort(Held.of(problem, np.arange(len(problem.clients))), Draw(seed, 0, "meta_gradient"), pooled=False)
    x, _ = initial(problem, seed)
    return cohort.tasks(x, count), x


def settings(name, **options):
    return find(name).parse(options).settings()


def meta(name, batch, x, **options):
    with torch.no_grad():
        return methods()[name].meta_gradient(batch, x, settings(name, **options))[0]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


# ---- references ----


def exact_quadratic(batch, x, T):
    """exp(-A T) C (y(T) - c) with y(T) = a + exp(-A T) (x - a)."""
    found = []
    for b in range(len(batch)):
        A, a = (batch.tasks.support[k][b, 0].numpy() for k in "Aa")
        C, c = (batch.tasks.query[k][b, 0].numpy() for k in "Cc")
        flow = expm(-A * T)
        found.append(flow.T @ C @ (a + flow @ (x.numpy() - a) - c))
    return torch.from_numpy(np.stack(found))


def task_losses(problem, batch, b):
    def loss(part):
        examples = {k: v[b] for k, v in part.items()}
        return lambda y: cross_entropy(problem.outputs(y, examples), examples["label"])

    return loss(batch.tasks.support), loss(batch.tasks.query)


def exact_softmax(problem, batch, x, T):
    """The sensitivity dy(T)/dx [d, d] by scipy, against which grad f(y(T)) is multiplied."""
    found = []
    d = len(x)
    for b in range(len(batch)):
        lower, upper = task_losses(problem, batch, b)
        slope, second = grad(lower), jacrev(grad(lower))

        def rate(t, state, slope=slope, second=second):
            y, P = torch.from_numpy(state[:d].copy()), torch.from_numpy(state[d:].reshape(d, d).copy())
            return np.concatenate([-slope(y).numpy(), -(second(y) @ P).numpy().ravel()])

        start = np.concatenate([x.numpy(), np.eye(d).ravel()])
        end = solve_ivp(rate, (0, T), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        found.append(torch.from_numpy(end[d:].reshape(d, d).T @ grad(upper)(torch.from_numpy(end[:d])).numpy()))
    return torch.stack(found)


@pytest.fixture(scope="module")
def softmax():
    problem = Softmax()
    batch, x = drawn(problem)
    return problem, batch, x, exact_softmax(problem, batch, x, 2.0)


# ---- A-MAML ----


@pytest.mark.parametrize("make", [QuadraticTasks, Softmax])
@pytest.mark.parametrize("steps", [1, 7])
def test_euler_steps_are_maml_to_rounding(make, steps):
    batch, x = drawn(make())
    expected = meta("maml", batch, x, local_steps=steps, lower_step=0.3)
    same = meta("a-maml", batch, x, solver="euler", local_steps=steps, lower_step=0.3)
    other = meta("a-maml", batch, x, solver="euler", ode_steps=steps, horizon=0.3 * steps, local_steps=50)
    assert relative(same, expected) < 1e-12
    assert relative(other, expected) < 1e-12


def test_midpoint_is_autograd_through_its_own_steps():
    problem = Softmax()
    batch, x = drawn(problem)
    found = meta("a-maml", batch, x, solver="midpoint", ode_steps=4, horizon=3.0)
    for b in range(len(batch)):
        lower, upper = task_losses(problem, batch, b)

        def through(x, lower=lower, upper=upper):
            for _ in range(4):
                x = x - 0.75 * grad(lower)(x - 0.375 * grad(lower)(x))
            return upper(x)

        assert relative(found[b], grad(through)(x)) < 1e-12


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize("adjoint", ["stored", "backward"])
def test_quadratic_meta_gradients_are_the_matrix_exponential(solver, adjoint):
    batch, x = drawn(QuadraticTasks(clients=3, dim=5))
    for T in (0.5, 4.0):
        found = meta("a-maml", batch, x, solver=solver, horizon=T, ode_steps=60, adjoint=adjoint, rtol=1e-9, atol=1e-10)
        assert relative(found, exact_quadratic(batch, x, T)) < 1e-6


def test_softmax_meta_gradients_are_the_sensitivity_equation(softmax):
    _, batch, x, expected = softmax
    assert relative(meta("a-maml", batch, x, horizon=2.0, ode_steps=40), expected) < 1e-6
    tight = meta("a-maml", batch, x, horizon=2.0, solver="dopri5", rtol=1e-9, atol=1e-10)
    assert relative(tight, expected) < 1e-6


def order(error):
    """The slope of log error against log step over three halvings."""
    errors = [error(steps) for steps in (8, 16, 32, 64)]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_order_of_convergence(softmax, solver, expected):
    _, batch, x, exact = softmax
    found = order(lambda n: relative(meta("a-maml", batch, x, solver=solver, horizon=2.0, ode_steps=n), exact))
    assert found[-1] == pytest.approx(expected, abs=0.2)
    batch, x = drawn(QuadraticTasks(clients=3, dim=5))
    exact = exact_quadratic(batch, x, 4.0)
    found = order(lambda n: relative(meta("a-maml", batch, x, solver=solver, horizon=4.0, ode_steps=n), exact))
    assert found[-1] == pytest.approx(expected, abs=0.2)


def test_stored_states_stay_exact_where_running_backwards_breaks_down():
    """Here u(T)^2 = u^2 e / (1 + u^2 (1 - e)), e = exp(-2T), and dy(T)/dx = L'(y(T)) / L'(x)."""
    batch, x = drawn(Quartic(clients=1, dim=3), count=1)

    def error(adjoint, T, steps):
        u, e = x - 1, math.exp(-2 * T)
        end = u * (e / (1 + u**2 * (1 - e))).sqrt()
        expected = batch.gradient("upper", 1 + end) * (end + end**3) / (u + u**3)
        return relative(meta("a-maml", batch, x, adjoint=adjoint, horizon=T, ode_steps=steps), expected)

    assert error("stored", 40.0, 400) < 1e-4
    assert error("backward", 12.0, 144) < 1e-4
    assert not error("backward", 40.0, 240) < 0.1


def test_running_backwards_warns_before_it_runs():
    with pytest.warns(UserWarning, match='adjoint = "backward".*exp.curvature . T'):
        simulate("quadratic_tasks", "a-maml", iterations=1, adjoint="backward", evaluation_tasks=5)


def test_a_flow_of_no_length_is_the_start():
    batch, x = drawn(QuadraticTasks())
    for solver in ("rk4", "euler", "dopri5"):
        found = meta("a-maml", batch, x, solver=solver, lower_step=0.0)
        assert torch.allclose(found, batch.gradient("upper", x), rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["rk4", "euler", "midpoint", "dopri5"])
def test_dtype_is_kept(dtype, solver):
    result = simulate("quadratic_tasks", "a-maml", iterations=2, dtype=dtype, solver=solver, evaluation_tasks=5)
    assert result.x.dtype == dtype
    assert all(math.isfinite(row["test_loss"]) for row in result.history)


@pytest.mark.parametrize(
    ("solver", "adjoint"), [(s, a) for s in ("euler", "midpoint", "rk4") for a in ("stored", "backward")]
)
def test_passes_are_what_is_differentiated(monkeypatch, solver, adjoint):
    counts = {"lower": 0.0, "upper": 0.0}
    real, product = TaskBatch.gradient, TaskBatch.hvp

    def gradient(self, level, y):
        counts[level] += 1
        return real(self, level, y)

    def hvp(self, y, v):
        counts["lower"] += 2
        return product(self, y, v)

    monkeypatch.setattr(TaskBatch, "gradient", gradient)
    monkeypatch.setattr(TaskBatch, "hvp", hvp)
    batch, x = drawn(QuadraticTasks())
    o = settings("a-maml", solver=solver, adjoint=adjoint, ode_steps=6)
    methods()["a-maml"].meta_gradient(batch, x, o)
    assert (counts["lower"], counts["upper"]) == methods()["a-maml"].passes(o)


# ---- steps that are too long ----


@pytest.mark.parametrize(("solver", "limit"), [("euler", 2.0), ("midpoint", 2.0), ("rk4", 2.785)])
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_unstable_steps_are_refused_with_the_stable_bound(solver, limit, steps):
    problem = QuadraticTasks(clients=3, dim=5, mu=0.1, L=1.2)
    batch, x = drawn(problem)
    largest = float(torch.linalg.eigvalsh(batch.tasks.support["A"]).max())
    with pytest.raises(UnstableFlow) as refused:
        meta("a-maml", batch, x, solver=solver, horizon=5.0 * steps, ode_steps=steps)
    said = str(refused.value)
    assert f"step h = 5 of the {solver} flow is unstable" in said
    bound = float(re.search(r"stable below ([\d.]+);", said)[1])
    assert bound == pytest.approx(limit / largest, rel=0.1)
    # just below the bound it runs, and what adapts says the same
    meta("a-maml", batch, x, solver=solver, horizon=0.95 * limit / largest * steps, ode_steps=steps)
    with pytest.raises(UnstableFlow, match="stable below"):
        methods()["a-maml"].adapt(batch, x, settings("a-maml", solver=solver, horizon=5.0 * steps, ode_steps=steps))


def test_a_flow_that_leaves_the_finite_numbers_is_refused_whatever_the_curvature():
    class Cliff(QuadraticTasks):
        def lower(self, x, y, examples):
            return torch.where(y > 0, y * y, torch.inf * y).sum().expand(1)

    batch, x = drawn(Cliff(dim=2))
    with pytest.raises(UnstableFlow, match="leaves the finite numbers"):
        meta("a-maml", batch, x.abs() + 1, horizon=2.4, ode_steps=2, solver="euler")


def test_the_run_ends_with_the_bound_in_one_line():
    with pytest.raises(ClientFailed, match=r"client \d.*step h = 5 of the rk4 flow is unstable.* stable below \d\.\d"):
        simulate("quadratic_tasks", "a-maml", iterations=3, horizon=25.0)


def test_curvature_is_the_largest_eigenvalue_also_where_a_negative_one_is_larger():
    class Saddle(QuadraticTasks):
        def lower(self, x, y, examples):
            scale = torch.linspace(-3.0, 1.5, self.dim, dtype=y.dtype)
            return (0.5 * scale * y * y).sum().expand(1)

    batch, x = drawn(Saddle(dim=4))
    assert torch.allclose(curvature(batch, batch.spread(x), batch.spread(x)), torch.tensor(1.5).double(), rtol=0.05)


def test_a_slope_that_may_grow_is_no_instability():
    """Away from a saddle |grad L| grows, and the flow is right all the same."""

    class Saddle(QuadraticTasks):
        def lower(self, x, y, examples):
            return (torch.tensor([-1.0, 0.5, 0.5], dtype=y.dtype) * y * y / 2).sum().expand(1)

    batch, x = drawn(Saddle(dim=3))
    found = methods()["a-maml"].adapt(batch, x, settings("a-maml", horizon=2.0, ode_steps=40)).y
    exact = x * torch.exp(-2.0 * torch.tensor([-1.0, 0.5, 0.5], dtype=x.dtype))
    assert torch.allclose(found, exact.expand_as(found), rtol=1e-5)


# ---- COMLN ----


def with_horizon(x, T):
    return torch.cat([x, x.new_tensor([math.log(T)])])


def through_head(problem, batch, x, steps=250):
    """Autograd in (parameters, log T) through so many classical RK4 steps of the head's weights, task by task."""
    found = []
    for b in range(len(batch)):
        lower, upper = task_losses(problem, batch, b)

        def loss(x, lower=lower, upper=upper):
            body, w, h = x[:BODY], x[BODY:-1], x[-1].exp() / steps
            slope = grad(lambda w: lower(torch.cat([body, w])))
            for _ in range(steps):
                k1 = slope(w)
                k2 = slope(w - h / 2 * k1)
                k3 = slope(w - h / 2 * k2)
                w = w - h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(w - h * k3))
            return upper(torch.cat([body, w]))

        found.append(grad(loss)(x))
    return torch.stack(found)


def test_comln_is_autograd_through_an_accurate_solve_of_the_head():
    problem = Softmax()
    batch, x = drawn(problem, count=1)
    x = with_horizon(x, 3.0)
    expected = through_head(problem, batch, x)
    for options in ({"ode_steps": 200}, {"solver": "dopri5", "rtol": 1e-10, "atol": 1e-12}):
        found = meta("comln", batch, x, initial_horizon=3.0, **options)
        assert relative(found, expected) < 1e-8
        assert torch.allclose(found[:, -1], expected[:, -1], rtol=1e-8)
    fixed = meta("comln", batch, x, initial_horizon=3.0, ode_steps=200, learn_horizon=False)
    assert torch.equal(fixed[:, -1], torch.zeros_like(fixed[:, -1]))
    assert relative(fixed[:, :-1], expected[:, :-1]) < 1e-8


def test_comln_learns_the_horizon_along_the_product_of_the_two_gradients():
    problem = Softmax()
    batch, x = drawn(problem)
    found = meta("comln", batch, with_horizon(x, 2.0), initial_horizon=2.0, ode_steps=200)[:, -1]
    o = settings("comln", initial_horizon=2.0, ode_steps=200)
    y = methods()["comln"].adapt(batch, with_horizon(x, 2.0), o).y
    product = (batch.gradient("lower", y) * batch.gradient("upper", y))[:, BODY:].sum(1)
    assert torch.allclose(found, -2.0 * product, rtol=1e-10)


def test_comln_adapts_the_head_by_its_gradient_flow():
    problem = Softmax()
    batch, x = drawn(problem)
    y = methods()["comln"].adapt(batch, with_horizon(x, 2.5), settings("comln", ode_steps=100, initial_horizon=2.5)).y
    for b in range(len(batch)):
        lower, _ = task_losses(problem, batch, b)

        def rate(t, w, lower=lower):
            return -grad(lower)(torch.cat([x[:BODY], torch.from_numpy(w.copy())])).numpy()[BODY:]

        exact = solve_ivp(rate, (0, 2.5), x[BODY:].numpy(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        assert torch.equal(y[b, :BODY], x[:BODY])
        assert np.allclose(y[b, BODY:].numpy(), exact, rtol=1e-8, atol=1e-10)


def test_comln_keeps_the_length_of_its_steps_as_the_horizon_grows():
    """Twice the horizon in steps of the same length is the flow of twice as many steps."""
    batch, x = drawn(Softmax())
    grown = meta("comln", batch, with_horizon(x, 2.0), initial_horizon=1.0, ode_steps=5)
    given = meta("comln", batch, with_horizon(x, 2.0), initial_horizon=2.0, ode_steps=10)
    coarse = meta("comln", batch, with_horizon(x, 2.0), initial_horizon=2.0, ode_steps=5)
    assert torch.equal(grown, given)
    assert not torch.allclose(grown, coarse, rtol=1e-9)


@pytest.mark.parametrize(("step", "share"), [(0.5, 0.0), (5.0, 1.0)])
def test_steps_too_long_may_be_reported_and_the_gradient_is_that_of_the_steps_made(step, share):
    flat = QuadraticTasks(clients=3, mu=0.9, L=1.0)
    common = {"iterations": 1, "lower_step": step, "local_steps": 3, "trace": True, "upper_step": 0.0, "seed": 2}
    maml = simulate(flat, "maml", **common)
    euler = simulate(flat, "a-maml", solver="euler", unstable="report", **common)
    assert euler.history[-1]["metric_unstable"] == share
    expected = maml.trace[0].hypergradient
    assert torch.allclose(euler.trace[0].hypergradient, expected, rtol=1e-12, atol=0)
    if share:
        with pytest.raises(ClientFailed, match="unstable"):
            simulate(flat, "a-maml", solver="euler", **common)
    else:
        strict = simulate(flat, "a-maml", solver="euler", **common)
        assert torch.equal(strict.trace[0].hypergradient, euler.trace[0].hypergradient)


def test_comln_refuses_unstable_steps_and_horizons_without_end():
    batch, x = drawn(Softmax(scale=20.0))
    with pytest.raises(UnstableFlow, match=r"of the rk4 flow is unstable.*stable below"):
        meta("comln", batch, with_horizon(x, 4000.0), initial_horizon=4000.0, ode_steps=10)
    with pytest.raises(UnstableFlow, match="learned horizon"):
        meta("comln", batch, with_horizon(x, 1e9), initial_horizon=1.0)


def test_comln_runs_and_learns():
    result = simulate(
        Softmax(), "comln", iterations=20, upper_step=0.3, initial_horizon=1.0, ode_steps=5, evaluation_tasks=20
    )
    assert result.x.shape == (BODY + HEAD + 1,)
    assert result.history[-1]["test_loss"] < result.history[0]["test_loss"]
    assert result.history[-1]["metric_horizon"] != result.history[1]["metric_horizon"]
    still = simulate(Softmax(), "comln", iterations=2, initial_horizon=1.5, learn_horizon=False, evaluation_tasks=5)
    assert float(still.x[-1].exp()) == pytest.approx(1.5, rel=1e-14)


def test_comln_in_single_precision():
    result = simulate(Softmax(), "comln", iterations=2, dtype="float32", evaluation_tasks=5)
    assert result.x.dtype == torch.float32


def test_comln_does_not_depend_on_the_number_of_workers():
    one, two = (simulate(Softmax(), "comln", iterations=2, evaluation_tasks=5, workers=w).x for w in (1, 2))
    assert torch.allclose(one, two, rtol=1e-13)


def test_problems_without_a_softmax_head_are_refused():
    with pytest.raises(
        BadInput, match="algorithm: got 'comln'; allowed: a problem whose network ends in a linear soft"
    ):
        simulate("quadratic_tasks", "comln", iterations=1)
    with pytest.raises(BadInput, match="global lower level one of aggitd"):
        simulate("quadratic", "a-maml", iterations=1)
    with pytest.raises(BadInput, match="initial_horizon: got 0"):
        simulate(Softmax(), "comln", iterations=1, lower_step=0.0)


def test_a_flow_that_ends_a_run_is_a_failed_run():
    assert issubclass(UnstableFlow, RunFailed)
    rows = []
    with pytest.raises(RunFailed, match=r"iteration \d+: .*unstable") as failed:
        simulate(Quartic(), "a-maml", iterations=9, upper_step=90.0, evaluation_tasks=5, observe=rows.append)
    assert list(failed.value.history) == rows
    assert rows

"""What the single-loop methods converge to, how they relate to each other, and how much variance they take away."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.operations.single_loop import simultaneous_steps, variance_reduced_steps
from fedbilevel import BadInput, ClientData, randomness, simulate
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problems import Quadratic
from server.kit.algorithm import algorithms, find
from tests.agreement import relative
from tests.algorithm_table.row import TAU
from tests.differentiable import small_digits
from tests.federations import in_process_of
from tests.problem_table import quadratic
from tests.reference import Client, Dense, clients_of
from tests.reference.single_loop import direction
from tests.runs import silent, start, traced

STEPS = {"upper_step": 0.2, "lower_step": 0.3, "neumann_step": 0.4}
QUICK = {"upper_step": 0.1, "lower_step": 1.0, "neumann_step": 1.0}
"""Steps with which single loops reach the solution of `smooth` in a hundred iterations."""


def smooth() -> Quadratic:
    """Five unlike clients, well conditioned on both levels."""
    weights = [0.1, 0.5, 1.0, 2.0, 0.7]
    return Quadratic(
        clients=5, dim_x=2, dim_y=3, examples=2, mu=0.6, rho=2.0, heterogeneity=0.6, weights=weights, seed=0
    )


def optimum(problem: Quadratic, weights: Any) -> np.ndarray:
    """x* of the problem with these weights of the clients: grad F is affine in x, so it is a linear system."""
    other = copy.copy(problem)
    other.clients = ClientData(problem.clients.lower, problem.clients.upper, weights)
    dense = Dense.of(other)
    zero = np.zeros(problem.dim_x)
    h0 = dense.hypergradient(zero)
    columns = [dense.hypergradient(e) - h0 for e in np.eye(problem.dim_x)]
    return np.linalg.solve(np.stack(columns, axis=1), -h0)


def test_with_unequal_steps_simfbo_solves_a_reweighted_problem_and_shrofbo_the_right_one() -> None:
    """Clients that stand still (their own steps are 0): the server's sums are weighed by p_i tau_i, ShroFBO's not."""
    problem = smooth()
    p, tau = problem.clients.weights, np.array(TAU)
    right, reweighted = optimum(problem, p), optimum(problem, p * tau)
    assert relative(right, reweighted) > 1e-2
    still = {"upper_step": 0.0, "lower_step": 0.0, "neumann_step": 0.0, "local_steps": TAU}
    server = {"upper_server_step": 0.1, "lower_server_step": 1.0, "neumann_server_step": 1.0}
    per_step = {key: value / float(p @ tau) for key, value in server.items()}
    found = traced(problem, "simfbo", 120, **still, **per_step).x
    assert relative(found, reweighted) < 1e-6
    assert relative(found, right) > 1e-2
    assert relative(traced(problem, "shrofbo", 120, **still, **per_step).x, right) < 1e-6


@pytest.mark.slow
@pytest.mark.beside
def test_small_local_steps_drift_by_as_much_as_they_are_long() -> None:
    """With steps of their own, clients drift from the same two solutions, in proportion to the steps."""
    problem = smooth()
    p, tau = problem.clients.weights, np.array(TAU)
    wanted = {"simfbo": optimum(problem, p * tau), "shrofbo": optimum(problem, p)}
    for name, x in wanted.items():
        off = []
        for size in (0.16, 0.08):
            steps = {"upper_step": size / 8, "lower_step": size, "neumann_step": size, "local_steps": TAU}
            off.append(relative(traced(problem, name, round(14 / size), **steps).x, x))
        assert 1e-4 < off[0] < 0.1
        assert off[1] / off[0] == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("tau", [1, 4, TAU])
@pytest.mark.parametrize("sampling", [{}, {"clients_per_round": 3, "weighting": "unbiased"}], ids=["all", "some"])
def test_fedbio_is_simfbo_with_the_local_steps_on_the_server(tau: Any, sampling: dict[str, Any]) -> None:
    options = {**STEPS, "local_steps": tau, **sampling}
    one, other = (traced(quadratic(), name, 8, **options) for name in ("fedbio", "simfbo"))
    assert one.trace is not None
    assert other.trace is not None
    for a, b in zip(one.trace, other.trace, strict=True):
        assert relative(a.x, b.x) < 1e-12
        assert relative(a.y, b.y) < 1e-12


def test_aggitd_warm_with_one_round_is_simfbo_gauss_seidel() -> None:
    """N = 1, warm: y and v make SimFBO's steps, and x the one of the next round: from the new y and v (and old x).

    So SimFBO whose x stands still for a round gives AggITD's direction: x_{k+1} = x_k - alpha h(x_k, y_{k+1}, v_{k+1}).
    """
    problem = quadratic()
    x, y = start(problem)
    v = torch.zeros_like(y)
    aggitd = traced(problem, "aggitd", 6, **STEPS, lower_rounds=1, warm_start=True, accounting="merged")
    assert aggitd.trace is not None
    dense = Dense.of(problem)
    for entry in aggitd.trace:
        # SimFBO's steps of y and v, at the point before
        gy = dense.A @ y.numpy() - dense.B @ x.numpy() - dense.b
        dv = dense.A @ v.numpy() - dense.fy(y.numpy())
        y, v = y - 0.3 * torch.from_numpy(gy), v - 0.4 * torch.from_numpy(dv)
        h = dense.d + dense.rho * x.numpy() - dense.cross(v.numpy())  # at (x, y+, v+): Gauss-Seidel
        assert entry.hypergradient is not None
        assert relative(entry.hypergradient, h) < 1e-12
        x = x - 0.2 * torch.from_numpy(h)
        assert relative(entry.x, x) < 1e-12
        assert relative(entry.y, y) < 1e-12
    simfbo = traced(problem, "simfbo", 6, **STEPS)
    assert simfbo.trace is not None
    assert relative(simfbo.trace[0].y, aggitd.trace[0].y) < 1e-12  # the first step of y is the same
    assert relative(simfbo.trace[0].x, aggitd.trace[0].x) > 1e-3  # that of x is Jacobi's there: at (y0, v0)


@pytest.mark.parametrize("name", ["simfbo", "shrofbo", "fedbio", "fedbioacc", "br-fedbi"])
def test_single_loops_reach_the_solution(name: str) -> None:
    problem = smooth()
    found = traced(problem, name, 200, **QUICK)
    assert relative(found.x, optimum(problem, problem.clients.weights)) < 1e-9


def test_momenta_and_page_reach_the_solution_too() -> None:
    """PAGE even on minibatches: its estimates' noise falls with the steps."""
    problem = smooth()
    wanted = optimum(problem, problem.clients.weights)
    slow = {"upper_step": 0.05, "lower_step": 0.5, "neumann_step": 0.5}
    momentum = traced(problem, "br-fedbi", 350, **slow, variant="momentum", momentum=0.5)
    assert relative(momentum.x, wanted) < 1e-8
    page = traced(problem, "br-fedbi", 350, **slow, variant="page", gradient_batch=1, page_probability=0.5)
    assert relative(page.x, wanted) < 1e-8


def test_the_radius_holds_v() -> None:
    problem = quadratic()
    free, held = (traced(problem, "simfbo", 50, **STEPS, radius=radius) for radius in (None, 0.1))
    assert relative(free.x, held.x) > 1e-2
    same = traced(problem, "simfbo", 50, **STEPS, radius=1e6)
    assert torch.equal(same.x, free.x)


# ---- variance ----


@pytest.mark.slow
@pytest.mark.beside
def test_the_variance_reduced_direction_has_at_most_half_the_variance() -> None:
    """Over 200 draws of the minibatches of an iteration, at one point that moves little, after 12 iterations."""
    problem = small_digits((3,), "tanh")
    x, y = problem.initial(torch.Generator().manual_seed(0))
    y = y + 0.1
    v = 0.1 * torch.ones_like(y)
    steps = {"upper_step": 1e-3, "lower_step": 1e-3, "neumann_step": 1e-3, "local_steps": 1}
    plain, reduced = [], []
    for draw in range(200):
        fed = Federation(in_process_of(problem, seed=draw, batch=2), Population.of(problem.clients), seed=draw, batch=2)
        z: tuple[Tensor, ...] = (x, y, v)
        m: tuple[Tensor, ...] | None = None
        for k in range(12):
            fed.begin(k)
            if m is None:
                after = fed.mean(simultaneous_steps, x=z[0], y=z[1], v=z[2], **steps)
                m = tuple((a - b) / 1e-3 for a, b in zip(z, after, strict=True))
                first = m
            named = dict(zip(("x", "y", "v", "mx", "my", "mv"), (*z, *m), strict=True))
            after = fed.mean(variance_reduced_steps, **named, **steps, momentum_decay=0.1)
            z, m = after[:3], after[3:]
        plain.append(torch.cat(first))
        reduced.append(torch.cat(m))
    spread = [float(torch.stack(each).var(0).sum()) for each in (plain, reduced)]
    assert spread[1] <= 0.5 * spread[0]


def test_page_on_full_batches_is_the_plain_method_whatever_the_coin() -> None:
    problem = quadratic()
    plain = traced(problem, "br-fedbi", 6, **STEPS)
    for chance in (0.01, 1.0):
        page = traced(problem, "br-fedbi", 6, **STEPS, variant="page", page_probability=chance)
        assert relative(page.x, plain.x) < 1e-12
    noisy = traced(problem, "br-fedbi", 6, **STEPS, gradient_batch=1)
    whole = traced(problem, "br-fedbi", 6, **STEPS, gradient_batch=1, variant="page", page_probability=1.0)
    assert relative(noisy.x, plain.x) > 1e-3
    assert relative(whole.x, plain.x) < 1e-12  # all examples, though minibatches are of one


def test_the_coin_of_page_falls_as_often_as_it_should_and_anew_in_every_iteration() -> None:
    """Of 1000 iterations p of them are full, to four deviations; the first one is; and every seed has its own coin."""

    class Listening(Federation):
        """Asks nobody, and notes whether directions would be full."""

        def mean(self, *operations: Any, **arguments: Any) -> Any:
            fallen.append(arguments["full"])
            return (zero, zero, zero, {0: zero})

    zero, found = torch.zeros(1), []
    for chance, seed in ((0.3, 0), (0.3, 1), (0.7, 1)):
        fallen: list[bool] = []
        fed = Listening(silent(quadratic()).exchange, Population.of(quadratic().clients), seed=seed)
        page = find("br-fedbi").make({"variant": "page", "page_probability": chance})
        state = page.init(zero, zero)
        for k in range(1000):
            fed.begin(k)
            state = page.step(state, fed)
        assert fallen[0]
        assert abs(sum(fallen) - 1000 * chance) < 4 * (1000 * 0.3 * 0.7) ** 0.5
        assert 0.3 < np.mean(np.array(fallen[1:]) == np.array(fallen[:-1])) < 0.7  # of independent ones 0.58
        found.append(fallen)
    assert abs(sum(a == b for a, b in zip(*found[:2], strict=True)) - 580) < 4 * (1000 * 0.58 * 0.42) ** 0.5


def test_page_between_full_directions_by_hand() -> None:
    """G + D(z; B) - D(z_old; B), on the minibatches that the clients draw, which are keyed by the round."""
    problem = quadratic()
    x0, y0 = start(problem)
    result = traced(problem, "br-fedbi", 3, **STEPS, variant="page", page_probability=1e-9, gradient_batch=1)
    assert result.trace is not None
    clients = clients_of(problem)
    z = np.concatenate([x0.numpy(), y0.numpy(), np.zeros(len(y0))])
    dx, dy = len(x0), len(y0)
    eta = np.repeat([0.2, 0.3, 0.4], [dx, dy, dy])
    before, g = z, {}
    for k, entry in enumerate(result.trace):
        for i, client in enumerate(clients):
            if k == 0:
                g[i] = direction(client, z[:dx], z[dx : dx + dy], z[dx + dy :])
            else:
                one = seen(problem, i, k)
                new, old = (direction(one, p[:dx], p[dx : dx + dy], p[dx + dy :]) for p in (z, before))
                g[i] = g[i] + new - old
        before = z
        z = z - eta * sum(client.p * g[i] for i, client in enumerate(clients))
        assert relative(entry.x, z[:dx]) < 1e-12
        assert relative(entry.y, z[dx : dx + dy]) < 1e-12


def seen(problem: Quadratic, client: int, round: int) -> Client:
    """The losses of the one example of each level that a client draws in a round."""
    data = problem.clients
    place = {}
    for level in ("lower", "upper"):
        held = getattr(data, level)
        sizes = held.sizes[[client]]
        order = randomness.permutations(0, np.array([client]), round, f"page_directions {level}", sizes)
        place[level] = int(held.offsets[client]) + int(order[0, 0])
    A, B, b = (data.lower.values[name][place["lower"]].double().numpy() for name in ("A", "B", "b"))
    C, c, d = (data.upper.values[name][place["upper"]].double().numpy() for name in ("C", "c", "d"))
    return Client(1.0, A, B, b, C, C @ c, d, problem.rho)


# ---- what cannot be used ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"coefficients": [1.0, 2.0], "local_steps": 3},
            "options.coefficients: got '2 numbers'; allowed: one per local step, 3",
        ),
        (
            {"coefficients": [1.0, 2.0], "local_steps": 1},
            "options.coefficients: got '2 numbers'; allowed: one per local step, 1",
        ),
        (
            {"coefficients": [[1.0]] * 4},
            "options.coefficients: got '4 lists'; allowed: one list for each of the 5 clients",
        ),
        (
            {"coefficients": [[1.0]] * 4 + [[1.0, 1.0]]},
            r"options.coefficients\[4\]: got '2 numbers'; allowed: one per local step, 1",
        ),
        ({"coefficients": []}, "coefficients"),
        ({"coefficients": [0.0]}, "coefficients"),
        ({"radius": 0.0}, "radius: got 0.0; allowed: a number above 0"),
    ],
)
@pytest.mark.parametrize("name", ["simfbo", "shrofbo"])
def test_coefficients_and_radii_that_cannot_be_used(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        simulate(quadratic(), name, iterations=1, **options)


def test_every_single_loop_method_takes_one_round() -> None:
    names = [name for name, entry in algorithms("global").items() if entry.family == "single_loop"]
    assert len(names) == 5
    for name in names:
        assert simulate(quadratic(), name, iterations=3).communication["rounds"] == 3

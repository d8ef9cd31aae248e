"""How long clients compute: what every operation declares to differentiate, against a count of its formula by hand.

Messages take no time and a client differentiates one example a second, so that a round takes as many seconds as its
busiest client differentiates examples; a product with a second derivative counts two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clients import cohort
from clients.node import Node, Setting
from clients.operations import OPERATIONS as ALL
from fedbilevel import simulate
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Network, Systems
from fedbilevel.problems import Quadratic
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from fedbilevel.tasks import Tasks
from server.grids.engines import in_process
from tests.differentiable import Curved
from tests.operations import OPERATIONS, VALUES, ask

SYSTEMS = Systems(network=Network(downlink_mbps=1e15, uplink_mbps=1e15, latency_ms=0.0, examples_per_second=1.0))
F, G = 100, 7
"""Examples on the upper and on the lower level of the busiest client: how often each is seen can be read off a sum."""
PROBLEM = Curved("tuple", ((G, F), (2, 5)))


# Per operation: options beside VALUES (neumann_terms is 3), gradients of g, and of f, each with the product's two.
BY_HAND: list[tuple[str, dict[str, Any], int, int]] = [
    ("lower_gradient", {}, 1, 0),  # gy
    ("upper_gradient_y", {}, 0, 1),  # fy
    ("upper_gradient_x", {}, 0, 1),  # fx
    ("neumann_factor", {}, 2, 0),  # H r
    ("linear_system_step", {}, 2, 1),  # H v, fy
    ("hypergradient", {}, 2, 1),  # fx, J v
    ("losses", {}, 1, 1),
    ("svrg_steps", {"local_steps": 1}, 0, 0),  # along what was sent
    ("svrg_steps", {"local_steps": 3}, 3 * 2, 0),  # gy at y_i and at y
    ("svrg_steps", {"local_steps": [3, 9]}, 3 * 2, 0),  # the busiest client makes three steps
    ("sgd_steps", {"local_steps": 1}, 1, 0),
    ("sgd_steps", {"local_steps": 4}, 4, 0),
    ("outer_steps", {"upper_local_steps": 1}, 0, 0),
    ("outer_steps", {"upper_local_steps": 3}, 0, 3 * 2),  # fx at x_i and at x
    ("direct_steps", {"upper_local_steps": 1}, 0, 1),
    ("direct_steps", {"upper_local_steps": 3}, 0, 3),
    ("local_hypergradient_steps", {"upper_local_steps": 1}, 3 * 2 + 2, 2),  # three H p and J p; fy and fx
    ("local_hypergradient_steps", {"upper_local_steps": 2}, 2 * (3 * 2 + 2), 2 * 2),
    ("local_hypergradient_steps", {"upper_local_steps": 2, "index": 1}, 2 * (2 + 2), 2 * 2),
    ("joint_steps", {"local_steps": 1}, 2, 2),  # gx, gy; fx, fy
    ("joint_steps", {"local_steps": 3}, 3 * 2, 3 * 2),
    ("bome_directions", {}, 3, 2),  # gx and gy at y, gx at yh; fx, fy
    ("penalty_gradients", {}, 2, 1),  # gy at y and at z; fy
    ("penalty_hypergradient", {}, 2, 1),  # gx at y and at z; fx
    ("penalty_steps", {"local_steps": 1}, 4, 2),  # gx and gy, at y and at z; fx, fy
    ("penalty_steps", {"local_steps": 3}, 3 * 4, 3 * 2),
    ("single_loop_directions", {}, 5, 2),  # gy, H v, J v; fx, fy
    ("probed_directions", {}, 7, 2),  # and H d
    ("hessian_product", {}, 2, 0),
    ("lower_level_steps", {"local_steps": 1}, 3, 1),  # gy, H v; fy
    ("lower_level_steps", {"local_steps": 3}, 3 * 3, 3),
    ("single_loop_steps", {"local_steps": 1}, 5, 2),
    ("single_loop_steps", {"local_steps": 3}, 3 * 5, 3 * 2),
    ("simultaneous_steps", {"local_steps": 3}, 3 * 5, 3 * 2),
    ("variance_reduced_steps", {"local_steps": 1}, 2 * 5, 2 * 2),  # at the new point and at the old
    ("first_variance_reduced_steps", {"local_steps": 3}, 3 * 2 * 5, 3 * 2 * 2),
    ("momentum_directions", {}, 5, 2),
    ("page_directions", {"full": True}, 5, 2),
    ("page_directions", {"full": False}, 2 * 5, 2 * 2),
    ("lower_gradients", {}, 2, 0),  # gy at each of two samples
    ("values_at_samples", {}, 2, 2 * 2),  # gx; f, fx
    ("field", {}, 0, 2),  # fx, fy
    ("descent_ascent_steps", {"local_steps": 1}, 0, 2),
    ("descent_ascent_steps", {"local_steps": 3}, 0, 3 * 2),
    ("tracked_steps", {"local_steps": 1}, 0, 0),  # along what was sent
    ("tracked_steps", {"local_steps": 3}, 0, 3 * 2 * 2),  # at z_i and at z
]


def options_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {key: given.get(key, VALUES.get(key)) for key in ALL[name].options}


def kept(name: str) -> dict[str, Any]:
    """What both clients have kept, where an operation keeps something."""
    asked = ask(name, PROBLEM, 1, [0, 2]).own
    return {key: dict(enumerate(each.rows)) for key, each in asked.items()}


@pytest.mark.parametrize(("name", "given", "lower", "upper"), BY_HAND)
def test_simulated_seconds_are_the_examples_of_the_busiest_client(
    name: str, given: dict[str, Any], lower: int, upper: int
) -> None:
    fed = Federation(in_process(PROBLEM, Setting()), Population.of(PROBLEM.clients), systems=SYSTEMS)
    fed.begin(0)
    tensors = ask(name, PROBLEM, 1, [0, 1]).tensors
    fed.mean(ALL[name], **tensors, **options_of(name, given), **kept(name))
    assert fed.ledger.simulated_seconds == pytest.approx(lower * G + upper * F, rel=1e-9, abs=1e-6)
    if "local_steps" not in given and "upper_local_steps" not in given:  # as many of every client
        sizes = PROBLEM.clients.lower.sizes.sum(), PROBLEM.clients.upper.sizes.sum()
        assert fed.ledger.gradient_evaluations == lower * sizes[0] + upper * sizes[1]


def test_every_operation_of_a_global_lower_level_is_counted_by_hand() -> None:
    assert {name for name, *_ in BY_HAND} == set(OPERATIONS)


@pytest.mark.parametrize(("name", "given", "lower", "upper"), BY_HAND)
def test_an_operation_differentiates_as_often_as_it_is_counted(
    name: str, given: dict[str, Any], lower: int, upper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of a derivative is for all clients at once; where those of fewer steps wait, it is as long."""
    done = {"lower": 0, "upper": 0}
    kinds = {"gradient_y": 1, "gradient_x": 1, "gradient_difference": 2, "hvp": 2, "cross_vjp": 2, "cross_vjp_sum": 2}
    kinds["lower_derivatives"] = 5  # a gradient and two products, whatever they share

    def counted(what: str, times: int) -> Any:
        original = getattr(cohort.derivatives, what)

        def count(problem: Any, *arguments: Any) -> torch.Tensor:
            done[arguments[0] if isinstance(arguments[0], str) else "lower"] += times
            return original(problem, *arguments)

        return count

    patched = {what: counted(what, times) for what, times in {**kinds, "losses": 1}.items()}
    view = type("View", (), {**vars(cohort.derivatives), **{k: staticmethod(v) for k, v in patched.items()}})
    monkeypatch.setattr(cohort, "derivatives", view)
    alike = {key: 3 if value == [3, 9] else value for key, value in given.items()}
    request = ask(name, PROBLEM, 1, [0, 2] if ALL[name].keeps else [0, 1], **alike)
    request = replace(request, clients=np.array([0, 1]))
    Node(PROBLEM, Setting()).answer(request)
    assert done == {"lower": lower, "upper": upper}


SIZES = Quadratic(clients=2, examples=6)
"""Six examples of each level on each of two clients."""


@pytest.mark.parametrize(
    ("name", "options", "lower", "upper"),
    [
        ("joint", {"local_steps": 2}, 2 * 2, 2 * 2),
        ("memfbo", {"local_steps": 3}, 3 * 4, 3 * 2),
        # gy, fy; gy, H v, fy; fx, J v; single steps are along what was sent
        ("aggitd", {"lower_rounds": 2}, 1 + 1 + 2 + 2, 1 + 1 + 1),
        # the second iteration's first round is a step of the linear system, from the first's v
        ("aggitd", {"lower_rounds": 2, "warm_start": True}, 1 + 1 + 2 + 2, 1 + 1 + 1),
        ("fedavg-alternating", {"lower_rounds": 2, "local_steps": 2, "upper_local_steps": 3}, 2 * 2, 3),
        ("f2sa", {"lower_rounds": 2}, 2 * 2 + 2, 2 + 1),
        ("bome", {"lower_rounds": 2}, 2 + 3, 2),
    ],
)
def test_simulated_seconds_of_a_run(name: str, options: dict[str, Any], lower: int, upper: int) -> None:
    result = simulate(SIZES, name, iterations=2, systems=SYSTEMS, **options)
    extra = 2 if options.get("warm_start") else 0
    seconds = [row["simulated_seconds"] for row in result.history]
    per_iteration = 6 * (lower + upper)
    assert seconds == pytest.approx([0, per_iteration, 2 * per_iteration + 6 * extra], rel=1e-9, abs=1e-6)


def test_minibatches_take_the_time_of_the_examples_that_they_hold() -> None:
    """Joint's steps see minibatches of 4, of both levels: two epochs of six lower examples are four steps."""
    options: dict[str, Any] = {"iterations": 1, "systems": SYSTEMS, "batch": 4, "local_steps": {"epochs": 2}}
    result = simulate(SIZES, "joint", **options)
    assert result.history[-1]["simulated_seconds"] == pytest.approx(4 * (2 * 4 + 2 * 4), rel=1e-9)
    # f2sa makes no local steps: a round of 2 x 3 + 1 x 3, and another
    options = {"iterations": 1, "systems": SYSTEMS, "batch": 4, "gradient_batch": 3, "lower_rounds": 1}
    result = simulate(SIZES, "f2sa", **options)
    assert result.history[-1]["simulated_seconds"] == pytest.approx(2 * (2 * 3 + 1 * 3), rel=1e-9)


def test_full_directions_of_page_take_the_time_of_all_examples() -> None:
    """5 x 6 + 2 x 6; between them twice 5 x 2 + 2 x 2. At first nobody has an estimate to go on from."""
    options: dict[str, Any] = {"variant": "page", "gradient_batch": 2, "iterations": 2, "systems": SYSTEMS}
    for chance, per_iteration in ((1.0, [42, 42]), (1e-9, [42, 28])):
        rows = simulate(SIZES, "br-fedbi", page_probability=chance, **options).history
        seconds = [row["simulated_seconds"] for row in rows]
        assert seconds == pytest.approx([0, *np.cumsum(per_iteration)], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "option", "steps", "per_step"),
    [
        ("sgd_steps", "local_steps", 2, 7),
        ("svrg_steps", "local_steps", 2, 2 * 7),
        ("joint_steps", "local_steps", 2, 2 * 7 + 2 * 10),
        ("penalty_steps", "local_steps", 2, 4 * 7 + 2 * 10),
        ("outer_steps", "upper_local_steps", 20, 2 * 10),
        ("direct_steps", "upper_local_steps", 20, 10),
        ("descent_ascent_steps", "local_steps", 20, 2 * 10),
        ("tracked_steps", "local_steps", 20, 4 * 10),
        ("local_hypergradient_steps", "upper_local_steps", 20, 8 * 7 + 2 * 10),
    ],
)
def test_epochs_count_the_examples_of_the_level_that_is_walked_through(
    name: str, option: str, steps: int, per_step: int
) -> None:
    """Minibatches of ten: two epochs of seven lower examples are two steps, of a hundred upper ones twenty."""
    population = Population.of(PROBLEM.clients)
    fed = Federation(in_process(PROBLEM, Setting(batch=10)), population, systems=SYSTEMS, batch=10)
    fed.begin(0)
    fed.mean(ALL[name], **ask(name, PROBLEM, 1, [0, 1]).tensors, **options_of(name, {option: {"epochs": 2}}))
    assert fed.ledger.simulated_seconds == pytest.approx(steps * per_step, rel=1e-9)


def test_a_client_adapts_to_all_of_its_tasks() -> None:
    """MAML with two inner steps: two gradients and two Hessian products of a support, one gradient of a query set."""

    class Larger(QuadraticTasks):
        task_sizes = (5, 11)

        @staticmethod
        def _split(pool: Any, index: torch.Tensor) -> Tasks:
            one = QuadraticTasks._split(pool, index)
            both = zip((one.support, one.query), (5, 11), strict=True)
            return Tasks(*({name: t.repeat_interleave(n, 1) for name, t in part.items()} for part, n in both))

    options: dict[str, Any] = {"local_steps": 2, "tasks_per_client": 3, "evaluation_tasks": 1}
    result = simulate(Larger(clients=2), "maml", iterations=2, systems=SYSTEMS, **options)
    seconds = [row["simulated_seconds"] for row in result.history]
    one = 3 * (5 * (2 + 2 * 2) + 11)
    assert seconds == pytest.approx([0, one, 2 * one], rel=1e-9, abs=1e-6)

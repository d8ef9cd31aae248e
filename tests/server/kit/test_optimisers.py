"""The server's step along a direction: by hand, against torch, in every algorithm, and after an interruption."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedbilevel import BadInput, simulate
from server.kit import optimisers
from server.kit.algorithm import Algorithm, State, find, optimised
from server.kit.optimisers import SCHEDULES, Moments, moved, scheduled
from server.kit.options import UpperOptions
from tests import reference
from tests.agreement import agree, relative
from tests.algorithm_table import SHARED
from tests.algorithm_table.row import STEPS
from tests.problem_table import problem_for, quadratic
from tests.runs import start, traced

OPTIMISERS = ("momentum", "adam", "adamomentum", "yogi", "spectral")
H = [2.0, -1.0, 3.0]
"""Directions of three steps in one dimension."""


def steps(**options: Any) -> list[float]:
    """X after each of the steps along H from x = 1."""
    o = UpperOptions(upper_step=0.5, **options)
    x, moments, found = torch.tensor([1.0], dtype=torch.float64), Moments(), []
    for h in H:
        x, moments = moved(x, torch.tensor([h], dtype=torch.float64), moments, o)
        found.append(float(x))
    return found


def test_momentum_by_hand() -> None:
    """M = 2, then 0.5 * 2 - 1 = 0, then 3."""
    assert steps(upper_optimiser="momentum", upper_beta1=0.5) == pytest.approx([0.0, 0.0, -1.5], abs=1e-15)


def test_the_constants_unless_given_are_those_of_the_papers() -> None:
    """b1 = 0.9, b2 = 0.999, eps = 1e-8, which directions as small as eps show; AdaMomentum has eps below the root."""
    h1, h2 = 3e-8, -1e-8
    o, x = UpperOptions(upper_step=0.5, upper_optimiser="adam"), torch.zeros(1, dtype=torch.float64)
    x1, moments = moved(x, torch.tensor([h1], dtype=torch.float64), Moments(), o)
    x2, _ = moved(x1, torch.tensor([h2], dtype=torch.float64), moments, o)
    assert float(x1) == pytest.approx(-0.5 * h1 / (h1 + 1e-8), rel=1e-12)
    m, s = (0.09 * h1 + 0.1 * h2) / 0.19, (0.000999 * h1**2 + 0.001 * h2**2) / 0.001999
    assert float(x2 - x1) == pytest.approx(-0.5 * m / (math.sqrt(s) + 1e-8), rel=1e-10)
    assert UpperOptions().upper_step == 0.1


HALVES = {"upper_beta1": 0.5, "upper_beta2": 0.5, "upper_epsilon": 0.25}
"""m is 1, then 0, then 1.5; the corrections 1 - b^t are 0.5, 0.75 and 0.875."""


def test_adam_by_hand() -> None:
    """S is 2, then 1 + 0.5, then 0.75 + 4.5."""
    expected, x = [], 1.0
    for m, s, c in ((1.0, 2.0, 0.5), (0.0, 1.5, 0.75), (1.5, 5.25, 0.875)):
        x -= 0.5 * (m / c) / (math.sqrt(s / c) + 0.25)
        expected.append(x)
    assert steps(upper_optimiser="adam", **HALVES) == pytest.approx(expected, rel=1e-14)


def test_adamomentum_by_hand() -> None:
    """The momentum is squared: s = 0.5 * 1 + 0.25 = 0.75, then 0.375 + 0 + 0.25, then 0.3125 + 1.125 + 0.25."""
    expected, x = [], 1.0
    for m, s, c in ((1.0, 0.75, 0.5), (0.0, 0.625, 0.75), (1.5, 1.6875, 0.875)):
        x -= 0.5 * (m / c) / math.sqrt(s / c)
        expected.append(x)
    assert steps(upper_optimiser="adamomentum", **HALVES) == pytest.approx(expected, rel=1e-14)


def test_yogi_by_hand() -> None:
    """S rises by (1 - b2) h^2 where it is below h^2, and falls where it is above: 2, then 2 - 0.5, then 1.5 + 4.5."""
    expected, x = [], 1.0
    for m, s, c in ((1.0, 2.0, 0.5), (0.0, 1.5, 0.75), (1.5, 6.0, 0.875)):
        x -= 0.5 * (m / c) / (math.sqrt(s / c) + 0.25)
        expected.append(x)
    assert steps(upper_optimiser="yogi", **HALVES) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("options", "torchs"),
    [
        ({"upper_optimiser": "momentum", "upper_beta1": 0.8}, lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.8)),
        (
            {"upper_optimiser": "adam", "upper_beta1": 0.7, "upper_beta2": 0.9, "upper_weight_decay": 0.3},
            lambda p: torch.optim.AdamW(p, lr=0.5, betas=(0.7, 0.9), weight_decay=0.3),
        ),
        ({"upper_weight_decay": 0.3}, lambda p: torch.optim.SGD(p, lr=0.5, weight_decay=0.3)),
    ],
    ids=["momentum", "adam with decoupled decay", "sgd with decay"],
)
def test_what_torch_has_is_that_of_torch(options: dict[str, Any], torchs: Any) -> None:
    parameter = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimiser, expected = torchs([parameter]), []
    for h in H:
        parameter.grad = torch.tensor([h], dtype=torch.float64)
        optimiser.step()
        expected.append(float(parameter.detach()))
    assert steps(**options) == pytest.approx(expected, rel=1e-12)


def test_schedules_by_hand() -> None:
    def factors(at: list[int], **options: Any) -> list[float]:
        return [scheduled(UpperOptions(**options), t) for t in at]

    assert factors([0, 5, 500]) == [1.0, 1.0, 1.0]
    assert factors([0, 2, 4, 8], upper_schedule="halving", upper_period=4) == pytest.approx([1, 0.5**0.5, 0.5, 0.25])
    assert factors([0, 1, 2, 4, 9], upper_schedule="cosine", upper_period=4) == pytest.approx(
        [1.0, (1 + 0.5**0.5) / 2, 0.5, 0.0, 0.0], abs=1e-15
    )
    assert factors([0, 3, 8], upper_schedule="inverse_sqrt") == pytest.approx([1.0, 1 / 2, 1 / 3])
    assert factors([0, 30, 80], upper_schedule="inverse_sqrt", upper_period=10) == pytest.approx([1.0, 1 / 2, 1 / 3])


def test_a_period_is_needed_by_some_schedules_and_taken_by_all_but_one() -> None:
    for schedule in ("halving", "cosine", "inverse_sqrt"):
        UpperOptions(upper_schedule=schedule, upper_period=3).hold()
    for schedule in ("constant", "inverse_sqrt"):
        UpperOptions(upper_schedule=schedule).hold()


# ---- in algorithms ----


def test_plain_steps_change_nothing() -> None:
    algorithm: Algorithm[State] = Algorithm(State, lambda state, fed: state, lambda index: 1)
    assert optimised(algorithm, UpperOptions()) is algorithm
    assert optimised(algorithm, UpperOptions(upper_beta1=0.3, upper_epsilon=1.0)) is algorithm
    assert optimised(algorithm, UpperOptions(upper_weight_decay=0.1)) is not algorithm


@pytest.mark.parametrize("optimiser", ["sgd", *OPTIMISERS])
@pytest.mark.parametrize("name", sorted(name for name in SHARED if issubclass(find(name).options, UpperOptions)))
def test_every_algorithm_steps_by_the_servers_optimiser(name: str, optimiser: str) -> None:
    """Against the second implementation: its direction, and its own optimiser; rounds and bytes are as ever."""
    problem = problem_for(name)
    schedule = {"upper_schedule": "halving", "upper_period": 3, "upper_weight_decay": 0.1}
    server = {"upper_optimiser": optimiser, "upper_epsilon": 0.01, **schedule}
    options = {**STEPS, **SHARED[name].cases[0], **server}
    x, y = start(problem)
    result = traced(problem, name, 3, **options)
    agree(result, reference.run(name, problem, x.numpy(), y.numpy(), 3, options), 1e-9)
    plain = traced(problem, name, 3, **{**STEPS, **SHARED[name].cases[0]})
    assert plain.communication == result.communication
    assert relative(plain.x, result.x) > 1e-3


def test_a_step_of_no_length_stays_one() -> None:
    problem = quadratic()
    x, _ = start(problem)
    for optimiser in OPTIMISERS:
        found = traced(problem, "joint", 2, upper_step=0.0, upper_optimiser=optimiser, local_steps=2)
        assert relative(found.x, x) < 1e-14


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"upper_optimiser": "adamw"}, 'upper_optimiser: got .adamw.; allowed: "sgd" or "momentum" or "adam"'),
        ({"upper_beta1": 1.0}, "upper_beta1: got 1.0; allowed: a number of at least 0 and below 1"),
        ({"upper_beta2": -0.1}, "upper_beta2: got -0.1; allowed: a number of at least 0 and below 1"),
        ({"upper_epsilon": 0.0}, "upper_epsilon: got 0.0; allowed: a number above 0"),
        ({"upper_weight_decay": -1.0}, "upper_weight_decay: got -1.0; allowed: a number of at least 0"),
        ({"upper_schedule": "linear"}, "upper_schedule: got 'linear'; allowed: \"constant\" or"),
        ({"upper_schedule": "halving", "upper_period": 0}, "upper_period: got 0; allowed: an integer of at least 1"),
        ({"upper_schedule": "halving"}, 'upper_period: got nothing; allowed: .* with upper_schedule = "halving"'),
        ({"upper_schedule": "cosine"}, 'upper_period: got nothing; allowed: .* with upper_schedule = "cosine"'),
        ({"upper_period": 5}, "upper_period: got 5; allowed: a period with an upper_schedule that is not constant"),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], said: str) -> None:
    for name in ("aggitd", "memfbo"):
        with pytest.raises(BadInput, match=said):
            simulate(quadratic(), name, iterations=1, **options)


@pytest.mark.parametrize("name", optimisers.OPTIMISERS)
def test_an_optimiser_reads_the_options_that_its_row_names_and_no_others(name):
    def after_three(**options):
        x, moments = torch.zeros(2, dtype=torch.float64), Moments()
        for h in (1.0, -0.2, 0.6):
            direction = torch.tensor([h, 2.0], dtype=torch.float64)
            x, moments = moved(x, direction, moments, UpperOptions(upper_optimiser=name, **options))
        return x

    others = {
        "upper_beta1": 0.5,
        "upper_beta2": 0.5,
        "upper_epsilon": 0.1,
        "upper_limit": 0.05,
        "upper_vectors": "adam",
    }
    read = {key for key, value in others.items() if not torch.equal(after_three(), after_three(**{key: value}))}
    assert read == set(optimisers.OPTIMISERS[name][1])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_reads_the_period_where_its_row_names_it(name):
    """A constant one refuses a period."""
    if SCHEDULES[name][1]:
        four, nine = (UpperOptions(upper_schedule=name, upper_period=period) for period in (4, 9))
        assert scheduled(four, 3) != scheduled(nine, 3)
    else:
        with pytest.raises(BadInput, match="upper_period"):
            UpperOptions(upper_schedule=name, upper_period=4).hold()

"""What cannot be used with a local lower level, and runs that end because of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from clients.solvers.stability import UnstableFlow
from fedbilevel import BadInput, simulate
from fedbilevel.errors import ClientFailed, RunFailed
from tests.problem_table import Quartic, Softmax, quadratic, quadratic_tasks


@pytest.mark.parametrize("steps", [[1, 2, 3, 4, 5], {"epochs": 2}, {"low": 1, "high": 3}])
@pytest.mark.parametrize("name", ["memfbo", "bome"])
def test_local_steps_on_tasks_are_one_number(name: str, steps: Any) -> None:
    with pytest.raises(BadInput, match=r"options\.local_steps: .*allowed: an integer of at least 1 where"):
        simulate(quadratic_tasks(), name, iterations=1, local_steps=steps)
    result = simulate(quadratic(), name, iterations=1, local_steps=steps)
    assert result.communication["rounds"] == (1 if name == "memfbo" else 6)


def test_decreasing_steps_are_refused_where_no_iteration_is_counted() -> None:
    with pytest.raises(BadInput, match=r"options\.step_decay: got 0\.5; allowed: 0"):
        simulate(quadratic_tasks(), "bome", iterations=1, step_decay=0.5)


def test_an_algorithm_of_the_other_family_is_refused_with_those_that_fit() -> None:
    with pytest.raises(BadInput, match=r"local lower level one of .*bome.*fomaml, .*maml.*memfbo.*reptile"):
        simulate(quadratic_tasks(), "aggitd", iterations=1)
    with pytest.raises(BadInput, match=r"global lower level one of aggitd, .*bome.*memfbo"):
        simulate("quadratic", "maml", iterations=1)


@pytest.mark.parametrize(
    ("name", "own", "key"),
    [
        ("imaml", {"proximal": 0.0}, "proximal"),
        ("imaml", {"proximal": math.inf}, "proximal"),
        ("imaml", {"inner_solver": "adam"}, "inner_solver"),
        ("imaml", {"cg_steps": 0}, "cg_steps"),
        ("imaml", {"cg_tolerance": 0.0}, "cg_tolerance"),
        ("imaml", {"damping": -1.0}, "damping"),
        ("ibaml", {"inference": "exact"}, "inference"),
        ("ibaml", {"initial_variance": 0.0}, "initial_variance"),
        ("ibaml", {"temperature": 0.0}, "temperature"),
        ("ibaml", {"samples": 3}, "samples"),
    ],
)
def test_options_are_refused_by_name(name: str, own: dict[str, Any], key: str) -> None:
    with pytest.raises(BadInput, match=f"options.{key}: got .*; allowed"):
        simulate("quadratic_tasks", name, iterations=1, **own)


def test_running_backwards_warns_before_it_runs():
    with pytest.warns(UserWarning, match='adjoint = "backward".*exp.curvature . T'):
        simulate("quadratic_tasks", "a-maml", iterations=1, adjoint="backward", evaluation_tasks=5)


def test_problems_without_a_softmax_head_are_refused():
    with pytest.raises(
        BadInput, match="algorithm: got 'comln'; allowed: a problem whose network ends in a linear soft"
    ):
        simulate("quadratic_tasks", "comln", iterations=1)
    with pytest.raises(BadInput, match="global lower level one of aggitd"):
        simulate("quadratic", "a-maml", iterations=1)
    with pytest.raises(BadInput, match="initial_horizon: got 0"):
        simulate(Softmax(), "comln", iterations=1, lower_step=0.0)


def test_the_run_ends_with_the_bound_in_one_line():
    with pytest.raises(ClientFailed, match=r"client \d.*step h = 5 of the rk4 flow is unstable.* stable below \d\.\d"):
        simulate("quadratic_tasks", "a-maml", iterations=3, horizon=25.0)


def test_a_flow_that_ends_a_run_is_a_failed_run():
    assert issubclass(UnstableFlow, RunFailed)
    rows = []
    with pytest.raises(RunFailed, match=r"iteration \d+: .*unstable") as failed:
        simulate(Quartic(), "a-maml", iterations=9, upper_step=90.0, evaluation_tasks=5, observe=rows.append)
    assert list(failed.value.history) == rows
    assert rows

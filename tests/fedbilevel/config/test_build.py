"""A problem that is built from its name and its table: what a factory is given, and in which dtype it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedbilevel.config.build import build, defaults, needs_data
from fedbilevel.data import federate
from fedbilevel.errors import BadInput
from fedbilevel.problems import Quadratic

OWN = """
import torch
from fedbilevel import ClientData
from fedbilevel.data import FederatedData

class Thirds:
    def __init__(self, dtype, sizes: tuple[int, int] = (2, 3), weights: list[float] | str = "size", **more):
        third = torch.tensor(1.0, dtype=dtype) / 3
        self.given, self.more, self.third = dtype, more, third
        self.clients = ClientData([third.expand(n, 1) for n in sizes], [third.expand(1, 1)] * 2, weights)
    def initial(self, generator):
        return torch.zeros(1), torch.zeros(1)
    def lower(self, x, y, examples):
        return ((y - examples) ** 2).sum(-1)
    upper = lower
    def evaluate(self, x, y):
        return {}

def double():
    return Thirds(torch.float64)

def labelled(data: FederatedData, scale: float = 2.0):
    made = Thirds(torch.float32)
    made.data, made.scale = data, scale
    return made
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def made(name: str, dtype: torch.dtype | None = None, **parameters: Any) -> Any:
    return build(name, parameters, data=lambda: pytest.fail("asked for data"), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None])
def test_a_factory_is_given_the_dtype_of_the_run_before_it_computes_anything(
    own: str, dtype: torch.dtype | None
) -> None:
    """A third has 24 or 53 bits: one that was rounded on the way would be another number."""
    problem = made(f"{own}:Thirds", dtype)
    wanted = dtype or torch.float32
    assert problem.given == wanted
    assert problem.clients.lower.values.unique().tolist() == [float(torch.tensor(1.0, dtype=wanted) / 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None])
def test_a_problem_that_takes_no_dtype_is_brought_to_that_of_the_run_or_keeps_its_own(
    own: str, dtype: torch.dtype | None
) -> None:
    problem = made(f"{own}:double", dtype)
    assert problem.clients.lower.values.dtype == problem.third.dtype == (dtype or torch.float64)
    assert made("quadratic", dtype).clients.lower.values["A"].dtype == (dtype or torch.float64)


def test_parameters_reach_the_factory(own: str) -> None:
    problem = made(f"{own}:Thirds", sizes=[4, 1], weights=[1.0, 3.0], anything={"at": "all"})
    assert problem.clients.lower.sizes.tolist() == [4, 1]
    assert problem.clients.weights.tolist() == [0.25, 0.75]
    assert problem.more == {"anything": {"at": "all"}}
    quadratic = made("quadratic", clients=3, dim_x=2, dim_y=5, heterogeneity=0.0)
    assert isinstance(quadratic, Quadratic)
    assert (len(quadratic.clients), quadratic.dim_x, quadratic.dim_y) == (3, 2, 5)


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"dtype": "float64"}, "problem.dtype: got 'float64'; allowed: in [problem] only name, sizes, weights"),
        ({"sizes": [1, "x"]}, "problem.sizes: got [1, 'x']; allowed: "),
        ({"sizes": [2]}, "problem.sizes: got [2]; allowed: "),
        ({"weights": [1.0, -1.0]}, 'problem.weights: got [1.0, -1.0]; allowed: "size", "uniform" or 2 positive'),
        ({"weights": True}, "problem.weights: got True; allowed: a list of numbers or a string"),
    ],
)
def test_what_a_factory_refuses_has_the_key_that_was_typed(own: str, parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as refused:
        build(f"{own}:Thirds", parameters, data=lambda: pytest.fail("asked for data"), dtype=None)
    assert str(refused.value).startswith(line)


def test_data_are_loaded_for_a_factory_that_takes_them_alone(own: str) -> None:
    data = federate(clients=3, partition_name="iid")
    problem: Any = build(f"{own}:labelled", {"scale": 3}, data=lambda: data, dtype=None)
    assert problem.data is data
    assert problem.scale == 3
    assert [needs_data(name) for name in (f"{own}:labelled", f"{own}:double", "hyper_representation", "quadratic")] == [
        True,
        False,
        True,
        False,
    ]

    def refuse() -> Any:
        raise BadInput("clients.weights", [1], "five of them")

    with pytest.raises(BadInput, match=r"^data\.weights: got \[1\]; allowed: five of them"):
        build(f"{own}:labelled", {}, data=refuse, dtype=None)
    with pytest.raises(BadInput, match=r"^problem\.data: got 3; allowed: in \[problem\] only name, scale"):
        build(f"{own}:labelled", {"data": 3}, data=lambda: data, dtype=None)


def test_defaults_are_those_of_a_built_in_problem() -> None:
    found = defaults("quadratic")
    assert (found["clients"], found["dim_x"], found["dim_y"], found["examples"]) == (10, 5, 8, [2, 6])
    assert defaults("hyper_representation") == {
        "hidden": [200],
        "activation": "relu",
        "l2": 0.01,
        "network": "mlp",
        "filters": 32,
        "blocks": 2,
    }
    assert defaults("somewhere/own.py:Thirds") == {}

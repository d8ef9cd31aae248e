"""A setup: the problem that it builds, and that nothing of its tables is lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config, check
from fedbilevel.errors import BadInput
from fedbilevel.problems import HyperRepresentation, Quadratic
from fedbilevel.user_files import UserFile

DATA = {"name": "rows", "clients": 4, "partition": "shards", "shards_per_client": 1, "validation": 0.25}


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen training examples of two classes, whose first feature is their row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDBILEVEL_DATA", str(tmp_path))
    x = np.stack([np.arange(20.0), np.zeros(20)], 1)
    y = np.arange(20) % 2
    np.savez(tmp_path / "rows.npz", x_train=x[:16], y_train=y[:16], x_test=x[16:], y_test=y[16:])


def config(**tables: Any) -> Config:
    good = {
        "run": {"iterations": 1, **tables.pop("run", {})},
        "problem": {"name": "hyper_representation", "hidden": [2]},
        "algorithms": {"joint": {}},
    }
    return check({**good, "data": DATA, **tables})


def problem(seed: int = 0, **tables: Any) -> HyperRepresentation:
    built = Setup.of(config(**tables), "joint", seed).problem()
    assert isinstance(built, HyperRepresentation)
    return built


def rows(built: HyperRepresentation, level: str) -> list[list[int]]:
    held = getattr(built.clients, level)
    first = held.values["input"][:, 0].int().tolist()
    return [sorted(first[a:b]) for a, b in zip(held.offsets[:-1], held.offsets[1:], strict=True)]


def test_every_key_of_the_data_table_reaches_the_problem() -> None:
    built = problem(data={**DATA, "weights": [1, 2, 3, 4]})
    assert [len(own) for own in rows(built, "lower")] == [3] * 4  # a quarter of four goes to the upper level
    assert [len(own) for own in rows(built, "upper")] == [1] * 4
    for low, up in zip(rows(built, "lower"), rows(built, "upper"), strict=True):
        assert len({row % 2 for row in (*low, *up)}) == 1  # one shard, so one class
    np.testing.assert_allclose(built.clients.weights, [0.1, 0.2, 0.3, 0.4])
    assert built.test_input[:, 0].tolist() == [16, 17, 18, 19]
    assert (built.network.body, built.network.width) == (6, 2)
    uneven = {"name": "rows", "clients": 2, "partition": "size_skew", "power": 1}
    sizes = [
        len(a) + len(b) for a, b in zip(*(rows(problem(data=uneven), at) for at in ("lower", "upper")), strict=True)
    ]
    assert sizes == [6, 10]  # two each, and of the other twelve a third and two thirds
    np.testing.assert_allclose(problem(data=uneven).clients.weights, [6 / 16, 10 / 16])
    np.testing.assert_allclose(problem(data={**uneven, "weights": "uniform"}).clients.weights, [0.5, 0.5])


def test_the_seed_of_the_run_draws_the_partition_unless_the_table_has_its_own() -> None:
    assert rows(problem(0), "lower") != rows(problem(1), "lower")
    own = {**DATA, "seed": 1}
    assert rows(problem(0, data=own), "lower") == rows(problem(5, data=own), "lower") == rows(problem(1), "lower")


def test_the_dtype_of_the_run_is_the_problems() -> None:
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        built = problem(run={"dtype": name})
        assert built.test_input.dtype == built.clients.lower.values["input"].dtype == dtype


def test_a_problem_without_data_has_the_seed_of_the_run_or_its_own_and_refuses_the_table() -> None:
    quadratic = {"name": "quadratic", "clients": 3, "dim_x": 2}
    fixed = {**quadratic, "seed": 5}
    first, second = (Setup.of(config(problem=fixed, data=None), "joint", seed).problem() for seed in (0, 1))
    assert first is second
    for seed in (5, 6):
        same = Setup.of(config(problem=quadratic, data=None), "joint", seed).problem().clients.lower.values["A"]
        assert torch.equal(same, Quadratic(clients=3, dim_x=2, seed=seed).clients.lower.values["A"].to(same))
    assert isinstance(first, Quadratic)
    assert (len(first.clients), first.dim_x, first.dim_y) == (3, 2, 8)
    with pytest.raises(BadInput, match=r"^data: got 'a table'; allowed: no table \[data\]: problem quadratic takes no"):
        Setup.of(config(problem=quadratic), "joint", 0).problem()


def test_a_setup_says_what_the_run_table_says() -> None:
    made = {"seeds": [3], "batch": 5, "dtype": "float64", "device": "cpu"}
    file = UserFile(path="/a.py", source="")
    setup = Setup.of(config(run=made), "joint", 3, (file,))
    assert (setup.run, setup.seed, setup.dtype, setup.device, setup.files) == ("joint 3", 3, "float64", "cpu", (file,))
    sizes = {
        ("full", None): (None, None),
        (5, None): (5, 5),
        (5, "full"): (5, None),
        ("full", 7): (None, 7),
        (5, 7): (5, 7),
    }
    for (batch, gradient_batch), expected in sizes.items():
        table = {"batch": batch} | ({} if gradient_batch is None else {"gradient_batch": gradient_batch})
        setup = Setup.of(config(run=table), "joint", 0)
        assert (setup.batch_size, setup.gradient_batch_size) == expected


OWN = """
import torch
from fedbilevel import ClientData

class Own:
    def __init__(self, scale: float = 1.0):
        rows = [torch.full((2, 1), scale * VALUE)] * 2
        self.clients = ClientData(rows, rows)
    def initial(self, generator):
        return torch.zeros(1), torch.zeros(1)
    def lower(self, x, y, examples):
        return ((y - examples) ** 2).sum(-1)
    upper = lower
    def evaluate(self, x, y):
        return {}
"""


def test_a_problem_s_file_that_was_edited_is_built_anew_and_no_other(tmp_path: Path) -> None:
    def built(value: float, **parameters: float) -> Any:
        (tmp_path / "own.py").write_text(OWN.replace("VALUE", str(value)))
        table = {"name": f"{tmp_path}/own.py:Own", **parameters}
        return Setup.of(config(problem=table, data=None), "joint", 0).problem()

    first = built(1.0)
    assert built(1.0) is first
    assert first.clients.lower.values.unique().tolist() == [1.0]
    assert built(2.0).clients.lower.values.unique().tolist() == [2.0]
    assert built(2.0, scale=3.0).clients.lower.values.unique().tolist() == [6.0]
    assert built(1.0).clients.lower.values.unique().tolist() == [1.0]

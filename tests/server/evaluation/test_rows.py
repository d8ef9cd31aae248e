"""The rows of a history, each column against a value that is counted here, for a global and for a local lower level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbilevel import ClientData, simulate
from fedbilevel.problem import Ragged
from fedbilevel.tasks import Tasks

Draws = np.ndarray


class Seeded:
    """Losses (y - e)^2 / 2 on the lower and 3 (y + x - e)^2 / 2 on the upper level; its start tells the seed."""

    def __init__(self) -> None:
        lower = [torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[4.0]]).double()]
        upper = [torch.tensor([[-1.0]]).double(), torch.tensor([[0.5], [1.5], [7.0]]).double()]
        self.clients = ClientData(lower, upper, [0.25, 0.75])

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = torch.tensor([float(generator.initial_seed())], dtype=torch.float64)
        return start, -start

    def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return 0.5 * ((y - examples) ** 2).sum(-1)

    def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return 1.5 * ((y + x - examples) ** 2).sum(-1)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {"test_loss": float(x) ** 2, "gap": float(x) - float(y)}


def half_squares(point: float, values: list[float]) -> float:
    return sum((point - value) ** 2 for value in values) / 2 / len(values)


STILL: dict[str, Any] = {"upper_step": 0.0, "lower_step": 0.0}


@pytest.mark.parametrize("seed", [0, 1, 77])
def test_a_run_starts_where_its_seed_says(seed: int) -> None:
    result = simulate(Seeded(), "joint", iterations=1, seed=seed, **STILL)
    assert (result.x.tolist(), result.y.tolist()) == ([seed], [-seed])
    assert [row["seed"] for row in result.history] == [seed, seed]


@pytest.mark.parametrize("seed", [1, 77])
def test_each_loss_stands_in_its_own_column(seed: int) -> None:
    row = simulate(Seeded(), "joint", iterations=1, seed=seed, **STILL).history[0]
    g = 0.25 * half_squares(-seed, [1, 2]) + 0.75 * half_squares(-seed, [4])
    f = 3 * (0.25 * half_squares(0, [-1]) + 0.75 * half_squares(0, [0.5, 1.5, 7]))
    assert row["lower_loss"] == pytest.approx(g, rel=1e-14)
    assert row["upper_loss"] == pytest.approx(f, rel=1e-14)
    assert (row["test_loss"], row["test_accuracy"], row["metric_gap"]) == (seed**2, None, 2 * seed)


def test_the_norm_of_the_direction_is_no_square_and_absent_before_the_first_step() -> None:
    """The direction of joint's one step is its gradient in x: two coordinates, 3 and 4 times a factor."""

    class Slope(Seeded):
        def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return torch.zeros(2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

        def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
            return (7 * 3 * x[0] + 7 * 4 * x[1]) * torch.ones(len(examples), dtype=torch.float64)

        def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
            return {}

    result = simulate(Slope(), "joint", iterations=2, upper_step=0.1)
    norms = [row["hypergradient_norm"] for row in result.history]
    assert norms[0] is None
    assert norms[1:] == pytest.approx([35.0, 35.0], rel=1e-12)


def test_the_last_row_is_the_end_wherever_it_lies() -> None:
    """fedavg-alternating makes 2 rounds an iteration: rows when a multiple of 5 rounds was passed, and at the end."""

    def places(**length: int) -> list[tuple[object, object]]:
        result = simulate(Seeded(), "fedavg-alternating", lower_rounds=1, evaluate_every=5, **length)
        return [(row["iteration"], row["round"]) for row in result.history]

    assert places(iterations=7) == [(0, 0), (3, 6), (5, 10), (7, 14)]
    assert places(iterations=5) == [(0, 0), (3, 6), (5, 10)]
    assert places(rounds=13) == [(0, 0), (3, 6), (5, 10), (7, 14)]
    assert places(rounds=12) == [(0, 0), (3, 6), (5, 10), (6, 12)]
    assert places(iterations=1) == [(0, 0), (1, 2)]


class Targets:
    """Tasks with L(y) = (y - a)^2 / 2 and f(y) = 3 (y - c)^2 / 2; a client owns one task, two others are unseen."""

    kind = None
    draws = 1
    task_sizes = (1, 1)
    owned = torch.tensor([[1.0, 10.0], [2.0, -20.0]], dtype=torch.float64)
    unseen = torch.tensor([[5.0, 50.0], [7.0, 71.0]], dtype=torch.float64)

    def __init__(self) -> None:
        held = Ragged({"target": self.owned}, np.arange(3))
        self.clients = ClientData(held, held, [0.25, 0.75])

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = torch.tensor([float(generator.initial_seed())], dtype=torch.float64)
        return start, start.clone()

    def made(self, targets: Tensor) -> Tasks:
        return Tasks({"t": targets[:, :1]}, {"t": targets[:, 1:]})

    def tasks(self, held: Ragged, draws: Draws) -> Tasks:
        return self.made(held.values["target"].repeat_interleave(draws.shape[1], 0))

    def test_tasks(self, count: int) -> Tasks:
        return self.made(self.unseen[torch.arange(count) % 2])

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return 0.5 * (y - examples["t"]) ** 2

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return 1.5 * (y - examples["t"]) ** 2

    def outputs(self, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        return y.expand(len(examples["t"]))

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return {}


def test_with_a_local_lower_level_losses_are_of_the_clients_tasks_and_measures_of_unseen_ones() -> None:
    """One inner step of 1/2 from x goes half of the way to a; of MAML's row at x = seed and after a step along h."""
    x, alpha = 3.0, 0.01
    options: dict[str, Any] = {"local_steps": 1, "lower_step": 0.5, "upper_step": alpha, "evaluation_tasks": 2}
    result = simulate(Targets(), "maml", iterations=1, seed=3, tasks_per_client=2, **options)
    h = 0.25 * 1.5 * ((x + 1) / 2 - 10) + 0.75 * 1.5 * ((x + 2) / 2 + 20)  # dy/dx is 1/2
    for row, at in zip(result.history, (x, x - alpha * h), strict=True):
        f = 1.5 * (0.25 * ((at + 1) / 2 - 10) ** 2 + 0.75 * ((at + 2) / 2 + 20) ** 2)
        g = 0.5 * (0.25 * ((at + 1) / 2 - 1) ** 2 + 0.75 * ((at + 2) / 2 - 2) ** 2)
        unseen = 0.75 * (((at + 5) / 2 - 50) ** 2 + ((at + 7) / 2 - 71) ** 2)
        unadapted = 0.75 * ((at - 50) ** 2 + (at - 71) ** 2)
        expected = {"upper_loss": f, "lower_loss": g, "test_loss": unseen, "metric_unadapted_loss": unadapted}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert result.history[1]["hypergradient_norm"] == pytest.approx(abs(h), rel=1e-12)
    assert result.history[0]["hypergradient_norm"] is None

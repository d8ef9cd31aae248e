"""How runs fail: the client, the operation and the round are named, and the rows so far are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clients.operations import first_order, oracles
from fedbilevel import ClientData, RunFailed, simulate
from fedbilevel.errors import ClientFailed, NonFinite
from tests.federations import PROBLEM, X, Y, federation


class Fragile:
    """Client 2, who alone has five examples, fails once the problem is armed."""

    def __init__(self, how: str) -> None:
        draw = torch.Generator().manual_seed(0)
        parts = [torch.randn(n, 2, generator=draw, dtype=torch.float64) for n in (2, 3, 5, 4)]
        for part in parts:
            part[:, 0] = 0.0
        parts[2][:, 0] = 1.0
        self.how, self.armed, self.clients = how, False, ClientData(parts, parts)

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        if self.armed and self.how == "size" and len(examples) == 5:
            raise ValueError("a bad\nexample")
        if self.armed and self.how == "value" and bool((examples[:, 0] > 0).any()):
            raise ValueError("a bad\nexample")
        return 0.5 * ((y - x - examples) ** 2).sum(-1)

    def upper(self, x: Tensor, y: Tensor, examples: Tensor) -> Tensor:
        return 0.5 * ((y + examples) ** 2).sum(-1)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        if self.armed and self.how == "evaluation":
            raise ValueError("a bad\nmeasure")
        return {"test_loss": float(y @ y)}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("fednest", "value", "fednest, seed 4, iteration 2: client 2, operation lower_gradient, round 18"),
        ("fednest-sgd", "size", "fednest-sgd, seed 4, iteration 2: client 2, operation sgd_steps, round 16"),
        ("lfednest", "size", "lfednest, seed 4, iteration 2: client 2, operation sgd_steps, round 4"),
    ],
)
def test_a_client_that_raises_is_named(name: str, how: str, said: str, workers: int) -> None:
    problem = Fragile(how)

    def observe(row: dict[str, object]) -> None:
        problem.armed = row["iteration"] == 2

    options = {"lower_rounds": 1, "neumann_terms": 4, "local_steps": 2, "lower_step": 0.1, "seed": 4}
    with pytest.raises(ClientFailed) as caught:
        simulate(problem, name, iterations=5, workers=workers, observe=observe, **options)
    assert str(caught.value) == f"{said}: ValueError: a bad example"
    assert isinstance(caught.value, RunFailed)
    assert [row["iteration"] for row in caught.value.history] == [0, 1, 2]


def test_a_mean_that_is_not_finite_is_named() -> None:
    options = {"lower_rounds": 1, "lower_step": 1e120, "evaluate_every": 10**9}
    with pytest.raises(NonFinite) as caught:
        simulate(PROBLEM, "aggitd", iterations=9, seed=6, upper_local_steps=0, **options)
    assert str(caught.value).startswith("aggitd, seed 6, iteration ")
    assert "operation " in str(caught.value)
    assert str(caught.value).endswith(": the mean is not finite")
    assert isinstance(caught.value, RunFailed)
    assert [row["iteration"] for row in caught.value.history] == [0]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_every_output_of_every_operation_is_looked_at(bad: float) -> None:
    """Here it is the second output of the second operation: gy at z."""
    fed = federation()
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    with pytest.raises(NonFinite, match=r"^operation penalty_gradients, round 2: the mean is not finite$"):
        fed.mean(oracles.lower_gradient, first_order.penalty_gradients, x=X, y=Y, z=Y * bad, penalty=1.0)


def test_a_loss_that_is_not_finite_is_named_and_the_rows_so_far_are_kept() -> None:
    seen: list[dict[str, object]] = []
    options = {"lower_rounds": 1, "lower_step": 1e50, "local_steps": 1, "upper_step": 0.0, "neumann_terms": 0}
    with pytest.raises(
        NonFinite, match=r"fednest, seed 0, iteration \d+: operation evaluate, round \d+: \w+ is"
    ) as got:
        simulate(PROBLEM, "fednest", iterations=9, observe=seen.append, **options)
    assert len(seen) > 2
    assert list(got.value.history) == seen


def test_an_evaluation_that_raises_is_named() -> None:
    problem = Fragile("evaluation")

    def observe(row: dict[str, object]) -> None:
        problem.armed = True

    with pytest.raises(
        RunFailed, match=r"fednest, seed 0, iteration 1: operation evaluate, round 10: ValueError"
    ) as got:
        simulate(problem, "fednest", iterations=3, observe=observe)
    assert [row["iteration"] for row in got.value.history] == [0]

"""A block of x of each client's own: less travels, and the same comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedbilevel import BadInput, ClientData, simulate
from fedbilevel.blocks import Blocks
from server.kit.algorithm import algorithms
from tests.agreement import relative
from tests.algorithm_table.row import TAU, UPPER_TAU
from tests.problem_table import DY, M, Weighted
from tests.runs import traced

REFUSED = "stochastic-bilevel"
NAMES = sorted(set(algorithms("global")) - {REFUSED})
STEPS = {"upper_step": 0.3, "lower_step": 0.1, "neumann_step": 0.1, "lower_rounds": 2, "penalty": 3.0}


def options_of(name: str, **more: Any) -> dict[str, Any]:
    fields = algorithms("global")[name].options.model_fields
    return {key: value for key, value in {**STEPS, **more}.items() if key in fields}


ONCE: dict[str, Any] = {}
UNLIKE: dict[str, Any] = {"local_steps": TAU, "upper_local_steps": UPPER_TAU}
RUNS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, ONCE),
    ({}, {**UNLIKE, "momentum_decay": 0.0}),
    ({"clients_per_round": 3, "workers": 3}, ONCE),
    ({"clients_per_round": 3, "workers": 3}, {"local_steps": 2, "upper_local_steps": 2}),
    ({"clients_per_round": 2, "weighting": "unbiased", "batch": 2}, UNLIKE),
    ({"workers": 2, "weighting": "unbiased"}, {**ONCE, "upper_optimiser": "adam", "upper_epsilon": 0.1}),
]


@pytest.mark.filterwarnings("ignore:aggitd-aq. mixing takes the noise")
@pytest.mark.parametrize(("run", "more"), RUNS, ids=range(len(RUNS)))
@pytest.mark.parametrize("name", NAMES)
def test_the_same_comes_out(name: str, run: dict[str, Any], more: dict[str, Any]) -> None:
    """As where every client is sent all of x: what others own has no gradient here."""
    options = options_of(name, **more)
    own, whole = (traced(Weighted(blocks), name, 4, seed=3, **run, **options) for blocks in (True, False))
    assert own.trace is not None
    assert whole.trace is not None
    for ours, theirs in zip(own.trace, whole.trace, strict=True):
        assert relative(ours.x, theirs.x) < 1e-12
        assert relative(ours.y, theirs.y) < 1e-12
        assert ours.hypergradient is not None
        assert theirs.hypergradient is not None
        assert relative(ours.hypergradient, theirs.hypergradient) < 1e-10
    assert relative(own.trace[-1].x, traced(Weighted(True), name, 1, seed=3, **run, **options).x) > 1e-3
    sent, all_sent = own.communication, whole.communication
    assert {sent[key] == all_sent[key] for key in ("rounds", "messages", "vectors_up", "vectors_down")} == {True}
    assert sent["downlink_bytes"] < all_sent["downlink_bytes"]


def test_answers_at_samples_are_of_the_whole_x() -> None:
    with pytest.raises(
        BadInput, match=r"algorithm: got 'stochastic-bilevel'; allowed: a problem whose clients share x"
    ):
        simulate(Weighted(True), REFUSED, iterations=1)
    assert simulate(Weighted(False), REFUSED, iterations=1).communication["rounds"] == 6


@pytest.mark.parametrize("asked", [None, 3])
def test_bytes_by_hand(asked: int | None) -> None:
    """aggitd, merged, N = 2: down x y, then y v, then y v; up gy fy, gy v, h: x and h are the client's own numbers."""
    result = traced(
        Weighted(True), "aggitd", 2, lower_rounds=2, accounting="merged", clients_per_round=asked, upper_local_steps=0
    )
    assert result.trace is not None
    down = up = 0
    for entry in result.trace:
        assert all(np.array_equal(each, entry.clients[0]) for each in entry.clients)
        assert len(entry.clients[0]) == (asked or M)
        for client in entry.clients[0]:
            size = Weighted(True).sizes[client]
            down += 8 * (size + DY + 2 * DY + 2 * DY)
            up += 8 * (2 * DY + 2 * DY + size)
    assert result.communication["downlink_bytes"] == down
    assert result.communication["uplink_bytes"] == up


def test_who_is_not_asked_keeps_his_block() -> None:
    problem = Weighted(True)
    result = traced(problem, "memfbo", 1, clients_per_round=2, upper_step=0.5)
    assert result.trace is not None
    start = problem.initial(torch.Generator().manual_seed(0))[0]
    asked = result.trace[0].clients[0]
    offsets = np.concatenate([[0], np.cumsum(problem.sizes)])
    for client in range(M):
        moved = result.x[offsets[client] : offsets[client + 1]] - start[offsets[client] : offsets[client + 1]]
        assert bool((moved != 0).any()) == (client in asked)
        assert bool((moved == 0).all()) == (client not in asked)


def test_simulated_seconds_are_of_the_bytes_sent() -> None:
    network = {"network": {"latency_ms": 0.0, "downlink_mbps": 8e-6, "uplink_mbps": 8e-6, "examples_per_second": 1e12}}
    seconds = {}
    for blocks in (True, False):
        result = traced(Weighted(blocks), "joint", 1, systems=network)
        seconds[blocks] = result.communication["simulated_seconds"]
    # one byte per second: the slowest client has 5 of the 15 numbers of x, and y, both ways
    assert seconds[True] == pytest.approx(2 * 8 * (5 + DY), rel=1e-6)
    assert seconds[False] == pytest.approx(2 * 8 * (15 + DY), rel=1e-6)


def test_the_true_lower_solution_is_that_of_the_whole() -> None:
    rows = [simulate(Weighted(blocks), "aggitd", iterations=2, solution_every=1).history for blocks in (True, False)]
    for own, whole in zip(*rows, strict=True):
        for column in ("value", "gradient_norm", "hypergradient_error", "upper_loss", "lower_loss"):
            assert own[column] is None or own[column] == pytest.approx(whole[column], rel=1e-9)
    assert isinstance(rows[0][-1]["value"], float)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([3, 1, 4], "clients.blocks: got 3; allowed: one size per client, 5"),
        ([3, 0, 4, 2, 5], "clients.blocks: got .*; allowed: for each client the number of its own entries"),
    ],
)
def test_blocks_that_cannot_be(blocks: list[int], said: str) -> None:
    parts = [torch.zeros(2, 1)] * 5
    with pytest.raises(BadInput, match=said):
        ClientData(parts, parts, blocks=blocks)


def test_x_and_places_that_do_not_fit_the_blocks_are_refused() -> None:
    class Longer(Weighted):
        def initial(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = super().initial(generator)
            return torch.cat([x, x[:1]]), y

    with pytest.raises(BadInput, match=r"initial\(\) gives an x of 15 entries, the clients' blocks together, not 16"):
        simulate(Longer(True), "aggitd", iterations=1)
    strange = Weighted(True)
    strange.clients.lower.values["own"][0] = 14
    with pytest.raises(BadInput, match=r"examples\[.own.\] are places in its client's block, which client 0's are not"):
        simulate(strange, "aggitd", iterations=1)


def test_a_vector_of_some_blocks() -> None:
    blocks = Blocks.of([2, 3, 1])
    x = torch.arange(6.0)
    assert blocks.cut(x, np.array([1])).tolist() == [2.0, 3.0, 4.0]
    assert blocks.cut(x, np.arange(3)) is x
    assert blocks.cut(x, np.array([2, 0, 1])).tolist() == [5.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    assert blocks.fill(x, torch.arange(10.0, 16.0), np.array([2, 0, 1])).tolist() == [11, 12, 13, 14, 15, 10]
    assert blocks.places(np.array([0, 2])).tolist() == [0, 1, 5]
    assert blocks.of_clients(np.array([0, 2])).offsets.tolist() == [0, 2, 3]
    assert blocks.fill(x, torch.tensor([9.0, 8.0, 7.0]), np.array([0, 2])).tolist() == [9.0, 8.0, 2.0, 3.0, 4.0, 7.0]
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert blocks.repeated(np.array([0.5, 0.25]), np.array([1, 2])).tolist() == [0.5, 0.5, 0.5, 0.25]

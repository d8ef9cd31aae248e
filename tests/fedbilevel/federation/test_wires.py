"""Thin wires of a federation: bytes as sent, displacements both ways, and unbiased means over ten thousand rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clients.node import Setting
from clients.operations import local, oracles
from fedbilevel.conditions.compression import ChannelTable
from fedbilevel.conditions.tables import Conditions
from fedbilevel.federation.downlink import Downlink
from fedbilevel.federation.messages import Request
from fedbilevel.federation.systems import Systems
from server.grids.engines import in_process
from tests.federations import DX, DY, PROBLEM, X_BYTES, Y_BYTES, M, X, Y, federation
from tests.reference import clients_of

CLIENTS = clients_of(PROBLEM)
P = np.array([client.p for client in CLIENTS])
GY = np.array([client.gy(X.numpy(), Y.numpy()) for client in CLIENTS])
STEP = 0.1


def thin(seen: list[Request] | None = None, workers: int = 1, settings: Any = None, **table: Any) -> Any:
    inner = in_process(PROBLEM, Setting(), workers)

    def exchange(request: Request) -> Any:
        if seen is not None:
            seen.append(request)
        return inner(request)

    return federation(exchange, conditions=Conditions(channel=ChannelTable(**table)), **(settings or {}))


UPLINK = [
    ("float16", {}, 2 * DY, 2 * DX),
    ("quantise", {"bits": 3}, 2 + 8, 2 + 8),  # 12 and 9 bits in whole bytes, and the largest
    ("random_k", {"keep": 2}, 16, 16),
    ("top_k", {"keep": 2}, 24, 24),
]


@pytest.mark.parametrize(("wire", "told", "of_y", "of_x"), UPLINK)
def test_answers_count_as_what_is_sent_and_what_is_sent_down_in_full(
    wire: Any, told: Any, of_y: int, of_x: int
) -> None:
    fed = thin(uplink=wire, **told)
    fed.mean(oracles.lower_gradient, oracles.hypergradient, x=X, y=Y, v=Y)
    assert fed.ledger.uplink_bytes == M * (of_y + of_x)
    assert fed.ledger.downlink_bytes == M * (X_BYTES + Y_BYTES)
    assert (fed.ledger.vectors_up, fed.ledger.vectors_down) == (2 * M, 2 * M)


def test_only_the_bytes_that_are_sent_take_time() -> None:
    slow = {"uplink_mbps": 8e-6, "downlink_mbps": 1e9, "latency_ms": 0.0, "examples_per_second": 1e12}
    fed = thin(settings={"systems": Systems(network=slow)}, uplink="float16")
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    assert fed.ledger.simulated_seconds == pytest.approx(2 * DY, rel=1e-6)  # a byte a second


@pytest.mark.parametrize(("wire", "told"), [("quantise", {"bits": 2}), ("random_k", {"keep": 1})])
def test_unbiased_wires_give_unbiased_means_over_ten_thousand_rounds(wire: Any, told: Any) -> None:
    """The rows of ten thousand rounds go through the federation's aggregation, without the clients."""
    fed = thin(uplink=wire, **told)
    u = torch.from_numpy(GY)
    nobody, clients = np.zeros(M, np.bool_), np.arange(M)
    found = np.array([fed.rows._one(u, nobody, clients, round, "g.0").numpy() for round in range(10_000)])
    error = found.std(0) / 100
    assert (error > 0).all()
    assert (abs(found.mean(0) - P @ u.numpy()) < 4.5 * error).all()


def test_iterates_are_compressed_as_displacements_from_what_was_sent() -> None:
    """One coordinate of four: y itself would be lost but for it."""
    fed = thin(uplink="top_k", keep=1)
    got = fed.mean(local.sgd_steps, x=X, y=Y, lower_step=STEP, local_steps=1)
    largest = abs(GY) == abs(GY).max(1, keepdims=True)
    np.testing.assert_allclose(got.numpy(), Y.numpy() - STEP * P @ (GY * largest), rtol=1e-10)


# ---- to the clients ----


def hold(table: dict[str, Any], *vectors: Any, clients: Any = None, name: str = "y") -> tuple[Downlink, list[Any]]:
    """What a downlink makes of one vector after another of the same name."""
    downlink, got = Downlink(ChannelTable(**table), 0), []
    for round, vector in enumerate(vectors):
        downlink.forget()
        got.append(downlink(name, vector, np.arange(3) if clients is None else clients[round], round))
    return downlink, got


A, B = torch.tensor([1.0, -2.0, 3.0, 0.5]).double(), torch.tensor([1.5, -2.1, 3.0, 4.5]).double()


def test_the_first_vector_comes_whole_and_then_displacements_from_what_clients_hold() -> None:
    """The largest of the displacement (0.5, -0.1, 0, 4) comes; then the largest of what is left, (0.5, -0.1, 0, 0)."""
    _, got = hold({"downlink": "top_k", "keep": 1}, A, B, B)
    vectors, sizes = [vector.tolist() for vector, _ in got], [size.tolist() for _, size in got]
    assert vectors == [[1.0, -2.0, 3.0, 0.5], [1.0, -2.0, 3.0, 4.5], [1.5, -2.0, 3.0, 4.5]]
    assert sizes == [3 * [32], 3 * [12], 3 * [12]]


def test_who_has_missed_a_displacement_is_sent_the_vector_whole() -> None:
    table = {"downlink": "top_k", "keep": 1}
    _, got = hold(table, A, B, A, B, clients=[np.array(each) for each in ([0, 1], [1, 2], [0, 1, 2], [0, 1, 2])])
    assert [size.tolist() for _, size in got] == [[32, 32], [12, 32], [32, 12, 12], [12, 12, 12]]


def test_the_same_vector_comes_the_same_way_to_all_of_an_iteration() -> None:
    downlink = Downlink(ChannelTable(downlink="top_k", keep=1), 0)
    downlink("y", A, np.array([0, 1]), 0)
    downlink.forget()
    first, sizes = downlink("y", B, np.array([0]), 1)
    again, others = downlink("y", B, np.array([1, 2]), 2)
    assert again is first
    assert sizes.tolist() == [12]
    assert others.tolist() == [12, 32]
    downlink.forget()
    _, all_of_them = downlink("y", A, np.arange(4), 3)
    assert all_of_them.tolist() == [12, 12, 12, 32]


def test_who_was_sent_another_vector_of_the_name_in_between_is_sent_this_one_whole() -> None:
    downlink = Downlink(ChannelTable(downlink="top_k", keep=1), 0)
    downlink("y", A, np.array([0, 1]), 0)
    downlink.forget()
    downlink("y", B, np.array([0]), 1)
    downlink("y", A + B, np.array([0, 1]), 2)
    assert downlink("y", B, np.array([1]), 3)[1].tolist() == [32]


def test_names_are_apart() -> None:
    downlink = Downlink(ChannelTable(downlink="top_k", keep=1), 0)
    downlink("y", A, np.arange(2), 0)
    vector, sizes = downlink("z", B, np.arange(2), 1)
    assert torch.equal(vector, B)
    assert sizes.tolist() == [32, 32]


@pytest.mark.parametrize("shape", [torch.float32, torch.float64])
def test_half_precision_downlink_needs_nothing_before(shape: torch.dtype) -> None:
    _, got = hold({"downlink": "float16"}, (A / 3).to(shape), clients=[np.arange(5)])
    vector, sizes = got[0]
    assert vector.dtype == shape
    assert np.array_equal(vector.double().numpy(), (A / 3).to(shape).numpy().astype(np.float16).astype(np.float64))
    assert sizes.tolist() == 5 * [8]


@pytest.mark.parametrize(
    ("wire", "told"), [("quantise", {"bits": 4}), ("random_k", {"keep": 2}), ("top_k", {"keep": 1})]
)
def test_what_clients_hold_comes_to_be_what_is_sent_again_and_again(wire: Any, told: Any) -> None:
    _, got = hold({"downlink": wire, **told}, A, *(25 * [B]))
    errors = [float((vector - B).norm()) for vector, _ in got]
    assert errors[0] > 1
    assert errors[-1] < 1e-6


def test_clients_work_with_what_arrives_and_iterates_start_where_the_server_stands() -> None:
    seen: list[Request] = []
    fed = thin(seen, downlink="top_k", keep=1)
    fed.mean(oracles.lower_gradient, x=X, y=Y)
    x, y = X + 0.01 * torch.arange(1.0, DX + 1), Y + 0.01 * torch.arange(1.0, DY + 1)
    got = fed.mean(local.sgd_steps, x=x, y=y, lower_step=STEP, local_steps=1)
    here, there = X.clone(), Y.clone()
    here[-1], there[-1] = x[-1], y[-1]
    torch.testing.assert_close(seen[-1].tensors["x"], here)
    torch.testing.assert_close(seen[-1].tensors["y"], there)
    step = P @ [client.gy(here.numpy(), there.numpy()) for client in CLIENTS]
    np.testing.assert_allclose(got.numpy(), y.numpy() - STEP * step, rtol=1e-10)
    # x and y whole, then one coordinate of each with its place
    assert fed.ledger.downlink_bytes == M * (X_BYTES + Y_BYTES + 2 * 12)
    assert fed.ledger.uplink_bytes == 2 * M * Y_BYTES


def test_a_vector_of_two_names_travels_once() -> None:
    fed = thin(downlink="top_k", keep=1)
    fed.mean(oracles.hypergradient, x=X, y=Y, v=Y)
    assert fed.ledger.downlink_bytes == M * (X_BYTES + Y_BYTES)
    fed.begin(1)
    new = Y + 1.0
    fed.mean(oracles.hypergradient, x=X, y=new, v=new)
    assert fed.ledger.downlink_bytes == M * (X_BYTES + Y_BYTES + 12 + 12)
    fed.mean(oracles.hypergradient, x=X, y=new, v=new)
    assert fed.ledger.downlink_bytes == M * (X_BYTES + Y_BYTES + 12 + 12)


def test_what_is_remembered_is_all_that_a_downlink_goes_on_from() -> None:
    table = {"downlink": "quantise", "bits": 3}
    whole, _ = hold(table, A, B)
    later = Downlink(ChannelTable(**table), 0)
    later.remember(whole.remembered())
    for downlink in (whole, later):
        downlink.forget()
    (one, bytes_one), (two, bytes_two) = (d("y", A - B, np.arange(4), 7) for d in (whole, later))
    assert torch.equal(one, two)
    assert bytes_one.tolist() == bytes_two.tolist() == [10, 10, 10, 32]


def test_draws_of_both_directions_are_the_same_on_several_workers() -> None:
    told = {"uplink": "quantise", "downlink": "random_k", "keep": 2, "bits": 3}
    here, spread = thin(**told), thin(workers=3, **told)
    for k in range(3):
        for fed in (here, spread):
            fed.begin(k)
        one, two = (
            fed.mean(local.sgd_steps, x=X * k, y=Y - k, lower_step=STEP, local_steps=2) for fed in (here, spread)
        )
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
        assert here.ledger.totals() == spread.ledger.totals()

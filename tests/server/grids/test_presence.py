"""Nodes that are gone: who is left out, for how long, and who takes whose place."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from flwr.app import Error, Message

from clients.app import make_app
from clients.node import Node, Setting
from clients.operations.oracles import lower_gradient
from fedbilevel.errors import ClientFailed, RunFailed
from fedbilevel.federation.messages import Request
from fedbilevel.problems.bilevel.quadratic import Quadratic
from server.grids import presence
from server.grids.exchange import GridExchange, Placement
from server.grids.local import LocalGrid
from tests.processes.identity import identity_kept

PROBLEM = Quadratic(clients=6)


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with identity_kept():
        yield


class FailingGrid(LocalGrid):
    """Nodes of which some are silent, some bring an error as Flower's does, and some are not listed."""

    def __init__(self, nodes: int = 3) -> None:
        node = Node(PROBLEM, Setting())
        super().__init__(make_app(lambda setup: node), nodes)
        self.silent: set[int] = set()
        self.broken: set[int] = set()
        self.unlisted: set[int] = set()
        self.asked: list[list[int]] = []

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if node not in self.unlisted]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        self.asked.append([message.metadata.dst_node_id for message in sent])
        silent = self.silent | self.unlisted
        well = [m for m in sent if m.metadata.dst_node_id not in silent | self.broken]
        replies = super().send_and_receive(well)
        for message in sent:
            if message.metadata.dst_node_id in self.broken:
                [_] = self.push_messages([message])
                reply = Message(Error(5, "Destination node is currently unavailable."), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's, whoever was asked
                replies.append(reply)
        return replies


def request(iteration: int = 0) -> Request:
    x, y = PROBLEM.initial(torch.Generator().manual_seed(0))
    tensors = {"x": x, "y": y}
    tokens = {"x": 2 * iteration, "y": 2 * iteration + 1}
    return Request(
        (lower_gradient.key,), np.arange(6), tensors, tokens, {}, iteration, iteration, frozenset(tokens.values())
    )


def ask(exchange: GridExchange, iteration: int = 0) -> list[float]:
    """The weights of who replied."""
    return [reply.weight for reply in exchange(request(iteration))]


def test_who_does_not_reply_is_left_out_and_not_asked_again() -> None:
    grid = FailingGrid()
    first, second, third = grid.get_node_ids()
    exchange = GridExchange(Placement(grid, 6), "", drop=True, patience=0.05)
    assert len(ask(exchange)) == 3
    grid.silent = {second}
    assert len(ask(exchange, 1)) == 2
    grid.broken = {third}
    grid.asked.clear()
    assert len(ask(exchange, 2)) == 1
    assert len(ask(exchange, 3)) == 1
    assert grid.asked == [[first, third], [first]]


def test_without_drop_it_ends_the_run() -> None:
    grid = FailingGrid()
    exchange = GridExchange(Placement(grid, 6), "")
    grid.silent = {grid.get_node_ids()[1]}
    with pytest.raises(ClientFailed, match="clients 2 to 3, operation lower_gradient, round 0: no reply"):
        ask(exchange)
    grid.silent, grid.broken = set(), {grid.get_node_ids()[1]}
    with pytest.raises(ClientFailed, match=r"clients 2 to 3, .*: Destination node is currently unavailable"):
        ask(exchange)


def test_a_node_is_asked_again_once_it_was_missed_and_is_listed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = FailingGrid()
    node = grid.get_node_ids()[1]
    exchange = GridExchange(Placement(grid, 6), "", drop=True, patience=0.05)
    grid.silent = {node}
    assert len(ask(exchange)) == 2
    grid.silent = set()
    assert len(ask(exchange, 1)) == 2  # listed all the while: that says nothing yet
    grid.unlisted = {node}
    assert len(ask(exchange, 2)) == 2
    grid.unlisted = set()
    assert len(ask(exchange, 3)) == 3
    grid.silent = {node}
    assert len(ask(exchange, 4)) == 2
    grid.silent = set()
    monkeypatch.setattr(presence, "LISTED", 0.0)  # it was only slow
    assert len(ask(exchange, 5)) == 3


def test_a_new_node_of_the_same_partition_takes_the_place() -> None:
    grid = FailingGrid(4)
    *_, spare = grid.get_node_ids()
    for partition, node in enumerate(grid.get_node_ids()):
        grid._contexts[node].node_config = {"partition-id": partition % 3, "num-partitions": 3}
    grid._contexts[spare].node_config = {"partition-id": 1, "num-partitions": 3}
    grid.unlisted = {spare}
    exchange = GridExchange(Placement(grid, 6), "", drop=True, patience=0.05)
    whole = ask(exchange)
    grid.unlisted = {grid.get_node_ids()[1]}
    assert ask(exchange, 1) == whole
    assert grid.asked[-1][1] == spare


def test_without_any_node_the_run_fails() -> None:
    grid = FailingGrid()
    exchange = GridExchange(Placement(grid, 6), "", drop=True, patience=0.05)
    grid.unlisted = set(grid.get_node_ids())
    with pytest.raises(RunFailed, match=r"none of 3 nodes has been there for 0\.05 s"):
        ask(exchange)


def test_what_a_client_raises_ends_the_run_all_the_same() -> None:
    grid = FailingGrid()
    exchange = GridExchange(Placement(grid, 6), "", drop=True, patience=0.05)
    wrong = Request(("no such operation",), np.arange(6), {}, {})
    with pytest.raises(ClientFailed, match="no such operation"):
        exchange(wrong)

"""Requests over a grid: what travels, in which order replies are taken, and what is lost."""

import time
from collections.abc import Iterable
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import clients.app
from clients.app import make_app
from clients.node import Node, Setting
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.federation.messages import Request
from fedbilevel.problems.bilevel.quadratic import Quadratic
from server.grids.exchange import GridExchange, Placement
from server.grids.local import LocalGrid


def lower_gradient_request(iteration: int = 0, round_: int = 0) -> Request:
    """From all of six clients, at the same x and y."""
    x, y = Quadratic(clients=6).initial(torch.Generator().manual_seed(0))
    vectors, tokens = {"x": x, "y": y}, {"x": 0, "y": 1}
    alive = frozenset(tokens.values())
    return Request(("lower_gradient",), np.arange(6), vectors, tokens, {}, iteration, round_, alive)


def test_a_vector_travels_to_a_node_once_per_iteration() -> None:
    node = Node(Quadratic(clients=6), Setting())
    sent: list[list[str]] = []

    def watch(message: Message, context: Context) -> Message:
        records = message.content.array_records
        sent.append(sorted(records["vectors"]) if "vectors" in records else [])
        return make_app(lambda setup: node)(message, context)

    exchange = GridExchange(Placement(LocalGrid(cast(ClientApp, watch), 2), 6), "")
    sent.clear()
    for iteration in (0, 0, 1):
        exchange(lower_gradient_request(iteration))
    assert sent == [["0", "1"]] * 2 + [[]] * 2 + [["0", "1"]] * 2


def test_replies_are_in_client_order_whatever_order_they_come_in() -> None:
    class Backwards(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            return super().send_and_receive(messages, timeout=timeout)[::-1]

    problem = Quadratic(clients=6, weights=[1, 2, 3, 4, 5, 6])
    node = Node(problem, Setting())
    exchange = GridExchange(Placement(Backwards(make_app(lambda setup: node), 4), 6), "")
    weights = [reply.weight for reply in exchange(lower_gradient_request())]
    # 6 clients over 4 nodes: 0-1, 2-3, 4, 5; p_i = (i + 1) / 21
    assert weights == pytest.approx([3 / 21, 7 / 21, 5 / 21, 6 / 21])


def test_a_node_that_has_lost_its_context_is_sent_all_vectors_again() -> None:
    """One of two nodes loses its context between two rounds; the other is asked once per round as ever."""
    node = Node(Quadratic(clients=6), Setting())
    sent: list[tuple[int, list[str]]] = []

    def watch(message: Message, context: Context) -> Message:
        if "vectors" in message.content.array_records:
            sent.append((int(context.node_config["partition-id"]), sorted(message.content.array_records["vectors"])))
        return make_app(lambda setup: node)(message, context)

    grid = LocalGrid(cast(ClientApp, watch), 2)
    exchange = GridExchange(Placement(grid, 6), "")
    before = exchange(lower_gradient_request())
    grid._contexts[grid.get_node_ids()[1]].state = RecordDict()
    sent.clear()
    after = exchange(lower_gradient_request(round_=1))
    assert sent == [(0, []), (1, []), (1, ["0", "1"])]
    assert exchange(lower_gradient_request(round_=2))
    assert sent[3:] == [(0, []), (1, [])]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.sums[0][0], other.sums[0][0])


def test_a_node_that_loses_whatever_it_is_sent_is_a_clear_failure() -> None:
    def forgetful(message: Message, context: Context) -> Message:
        if "vectors" in message.content.array_records:
            message.content["vectors"] = ArrayRecord()
        return make_app(lambda setup: Node(Quadratic(clients=6), Setting()))(message, context)

    exchange = GridExchange(Placement(LocalGrid(cast(ClientApp, forgetful), 2), 6), "")
    says = "^clients 0 to 2, operation lower_gradient, round 7: the node has lost what it was just sent: x, y$"
    with pytest.raises(ClientFailed, match=says):
        exchange(lower_gradient_request(round_=7))


def test_what_goes_wrong_before_the_operation_names_the_clients() -> None:
    """For instance data that one machine of a deployment does not have."""

    def no_data(setup: str) -> Node:
        raise BadInput("data.name", "mnist", "a file\nthat is there")

    exchange = GridExchange(Placement(LocalGrid(make_app(no_data), 2), 3), "")
    zero = torch.zeros(2)
    request = Request(("lower_gradient",), np.arange(2, 3), {"v": zero}, {"v": 0}, round=5, alive=frozenset({0}))
    with pytest.raises(
        ClientFailed, match=r"^client 2, operation lower_gradient, round 5: BadInput: data.name: got 'mnist'; .* a file"
    ):
        exchange(request)


def test_a_node_that_does_not_answer_is_a_failure_in_time() -> None:
    class Silent(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            assert timeout is not None
            time.sleep(timeout)
            return []

    with pytest.raises(RunFailed, match="only 0 of 1 nodes answered within 0 s"):
        Placement(Silent(clients.app.app, 2), 4, timeout=0.3)

"""Carries the federation's requests over any Flower Grid: in process, Flower's simulation, or a deployment."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from pydantic import BaseModel
from torch import Tensor

from clients.app import array_from_tensor, tensor_from_array
from fedbilevel.errors import ClientFailed, RunFailed
from fedbilevel.federation.messages import Reply, Request
from server.grids.presence import Presence, by_node

OPERATE, HELLO = "query.operate", "query.hello"


def block_ends(clients: int, partitions: int) -> np.ndarray:
    """Where the contiguous blocks of clients end, one per partition; the first ones are one longer.

    >>> block_ends(8, 3).tolist()
    [3, 6, 8]
    """
    smaller, longer = divmod(clients, partitions)
    return np.cumsum([smaller + (j < longer) for j in range(partitions)])


class Placement:
    """Which node answers for which client: partition j of P holds the j-th of P contiguous blocks of clients."""

    def __init__(self, grid: Grid, clients: int, *, timeout: float = 120.0) -> None:
        self.grid = grid
        partitions = self._hello(timeout)
        self.nodes = [partitions[j] for j in sorted(partitions)]
        self.ends = block_ends(clients, len(self.nodes))

    def _hello(self, timeout: float) -> dict[int, int]:
        """Ask every node which partition it is, until all partitions have answered.

        Raises RunFailed if they have not within `timeout` seconds.
        """
        known: dict[int, int] = {}
        expected, deadline = 1, time.monotonic() + timeout
        while len(known) < expected:
            new = sorted(set(self.grid.get_node_ids()) - set(known.values()))
            left = max(deadline - time.monotonic(), 0.1)
            for node, reply in self._greeted(new, left):
                _raise_error(reply)
                metrics = reply.content.metric_records["partition"]
                known[_whole(metrics["partition-id"])] = node
                expected = _whole(metrics["num-partitions"])
            if len(known) < expected:
                if time.monotonic() > deadline:
                    raise RunFailed(f"only {len(known)} of {expected} nodes answered within {timeout:.0f} s")
                time.sleep(0.2)
        return known

    def hello(self, nodes: list[int], timeout: float) -> dict[int, int]:
        """The node of each partition among these nodes; one that does not say which it is, of as many, is left out."""
        found = {}
        for node, reply in self._greeted(nodes, timeout):
            metrics = reply.content.metric_records.get("partition") if reply.has_content() else None
            if metrics is not None and metrics["num-partitions"] == len(self.nodes):
                found[_whole(metrics["partition-id"])] = node
        return found

    def _greeted(self, nodes: list[int], timeout: float) -> list[tuple[int, Message]]:
        messages = [_message(RecordDict(), HELLO, node) for node in nodes]
        return by_node(messages, _replies(self.grid, messages, timeout=timeout)) if messages else []

    def split(self, clients: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Return the nodes that hold some of these clients (sorted), each with its own, in client order."""
        cuts = np.searchsorted(clients, self.ends[:-1])
        parts = zip(self.nodes, np.split(clients, cuts), strict=True)
        return [(node, part) for node, part in parts if len(part)]


class GridExchange:
    """An `Exchange` over a Flower Grid for one run.

    A vector is encoded once, and sent to a node once per outer iteration; a node that has lost its context (the process
    that answered for it has died) is asked again with every vector of the request. Replies are returned in client
    order, whatever order they come in. Every exchange is a session of its own: nodes keep nothing from one to the next.

    drop: a node that does not reply within `patience` seconds is left out, and only the replies that came are returned.
    """

    def __init__(self, placement: Placement, setup: str, *, drop: bool = False, patience: float = 120.0) -> None:
        self._placement, self._setup, self._session = placement, setup, uuid.uuid4().hex
        self._presence = Presence(placement, patience) if drop else None
        self._iteration: int | None = None
        self._held: dict[int, set[int]] = {}
        self._encoded: dict[int, Array] = {}

    def __call__(self, request: Request) -> list[Reply]:
        """Send the request to the nodes that hold its clients and wait for all of them, or for those that are there.

        Raises ClientFailed for what a client raised; RunFailed where there is no node any more.
        """
        if request.iteration != self._iteration:
            self._iteration, self._held = request.iteration, {}
        self._encoded = {token: array for token, array in self._encoded.items() if token in request.alive}
        if self._presence is not None:
            self._presence.look()
        gone = set() if self._presence is None else self._presence.gone
        parts = [(node, clients) for node, clients in self._placement.split(request.clients) if node not in gone]
        replies = self._ask(request, parts)
        if forgetful := [(node, clients) for node, clients in parts if node in replies and _missing(replies[node])]:
            for node, _ in forgetful:
                self._held[node] = set()
                del replies[node]
            replies |= self._ask(request, forgetful)
            for node, clients in forgetful:
                if node in replies and (names := _missing(replies[node])):
                    where = f"{_span(clients)}, {_what(request)}"
                    raise ClientFailed(f"{where}: the node has lost what it was just sent: {', '.join(names)}")
        return [_unpacked(replies[node], clients) for node, clients in parts if node in replies]

    def _ask(self, request: Request, parts: list[tuple[int, np.ndarray]]) -> dict[int, Message]:
        """Return each node's reply. Raises ClientFailed for one that says what went wrong, or that does not come
        although nobody may be lost.
        """
        what = {
            "session": self._session,
            "operations": request.operations,
            "tokens": dict(request.tokens),
            "alive": sorted(request.alive),
            "options": dict(request.options),
            "iteration": request.iteration,
            "round": request.round,
            "cut": sorted(request.cut),
            "rows": request.rows,
        }
        text = json.dumps(what, default=_plain)  # one text: every entry of a record costs, on each of its copies
        messages = []
        for node, clients in parts:
            record = ConfigRecord({"setup": self._setup, "what": text, "clients": clients.astype(np.int64).tobytes()})
            content = RecordDict({"request": record, "vectors": ArrayRecord(self._unsent(node, request))})
            if request.own or request.cut:
                part = request.of(clients)
                record["skip"] = part.skip
                if part.ends is not None:
                    record["ends"] = part.ends.astype(np.int64).tobytes()
                for name, kept in part.own.items():
                    record[f"known {name}"] = kept.known.tobytes()
                own = {name: array_from_tensor(kept.rows) for name, kept in part.own.items()}
                content["own"] = ArrayRecord(own)
            messages.append(_message(content, OPERATE, node))
        if self._presence is not None:
            replies = self._presence.carry(messages)
        else:
            replies = dict(by_node(messages, _replies(self._placement.grid, messages)))
        for node, clients in parts:
            if node in replies:
                _raise_error(replies[node], f"{_span(clients)}, {_what(request)}: ")
            elif self._presence is None:
                raise ClientFailed(f"{_span(clients)}, {_what(request)}: no reply")
        return replies

    def _unsent(self, node: int, request: Request) -> dict[str, Array]:
        """Return the vectors that a node does not hold yet, by token."""
        held = self._held.setdefault(node, set())
        unsent = {token: request.tensors[name] for name, token in request.tokens.items() if token not in held}
        held.update(unsent)
        return {str(token): self._encode(token, tensor) for token, tensor in unsent.items()}

    def _encode(self, token: int, tensor: Tensor) -> Array:
        if token not in self._encoded:
            self._encoded[token] = array_from_tensor(tensor)
        return self._encoded[token]


def _message(content: RecordDict, kind: str, node: int) -> Message:
    return Message(content, node, kind)


def _replies(grid: Grid, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
    return list(grid.send_and_receive(list(messages), timeout=timeout))


def _raise_error(reply: Message, where: str = "") -> None:
    """Raise ClientFailed, in one line that says where, for a reply that carries an error."""
    if reply.has_error():
        raise ClientFailed(_line(f"{where}{reply.error.reason}"))
    failed = reply.content.config_records.get("failed")
    if failed is not None:
        reason = str(failed["reason"])
        raise ClientFailed(_line(reason if failed["located"] else where + reason))


def _missing(reply: Message) -> list[str]:
    """Return the names of the vectors that a node would have needed."""
    record = reply.content.config_records.get("missing")
    names = [] if record is None else record["vectors"]
    assert isinstance(names, list)
    return [str(name) for name in names]


def _line(text: str) -> str:
    return " ".join(text.split())


def _unpacked(reply: Message, clients: np.ndarray) -> Reply:
    outputs: dict[int, dict[int, Tensor]] = {}
    for key, array in reply.content.array_records["sums"].items():
        i, j = (int(part) for part in key.split("."))
        outputs.setdefault(i, {})[j] = tensor_from_array(array)
    sums = tuple(tuple(outputs[i][j] for j in sorted(outputs[i])) for i in sorted(outputs))
    weight = reply.content.metric_records["weight"]["weight"]
    assert isinstance(weight, float)
    rows = reply.content.array_records.get("own", ArrayRecord())
    own = tuple(tensor_from_array(rows[str(i)]) if str(i) in rows else None for i in range(len(sums)))
    return Reply(sums, weight, own, clients)


def _plain(value: Any) -> Any:
    """Options that are tables (`Epochs`, `Between`) travel as the plain tables they were."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    raise TypeError(f"{value!r} cannot travel as an option")


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def _span(clients: np.ndarray) -> str:
    if len(clients) == 1:
        return f"client {clients[0]}"
    return f"clients {clients[0]} to {clients[-1]}"


def _what(request: Request) -> str:
    return f"operation {', '.join(key.rpartition(':')[2] for key in request.operations)}, round {request.round}"

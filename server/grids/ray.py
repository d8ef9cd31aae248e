"""A Flower `Grid` over pinned Ray actors: each actor is one node, and keeps its clients' examples and its caches."""

from __future__ import annotations

import itertools
import pickle
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ray
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from clients.node import Setting
from fedbilevel.errors import BadInput
from fedbilevel.messages import Exchange
from fedbilevel.problem import Problem
from server.grids.actors import Actors, Call, Shares, chosen, reason
from server.grids.exchange import GridExchange, Placement
from server.grids.flower_internals import (
    CLIENT_APP_RAISED_EXCEPTION,
    SERVER_NODE_ID,
    Run,
    claim_identity,
    empty_run,
    message_copy,
    stamp_id,
    stamp_sender,
)
from server.grids.worker import Envelope, Place, Recipe

INLINE_BYTES = 50_000
"""Arrays below this size travel with their message; larger ones through the object store, once per machine."""

_run_ids = itertools.count(1 << 32)  # beside those of the local grids


class RayGrid(Grid):
    """Nodes that live in Ray actors, on whatever machines Ray has; Ray must be initialised, and stays so.

    Node j answers for the j-th block of the clients of the problem that `exchange` was called with last. An actor that
    dies is replaced by one with an empty `Context`, and the message under way is delivered again; whoever sends learns
    from the reply what the node has forgotten. An exception in the client app becomes an error reply, as on the local
    grid. A context manager: leaving it ends the actors.

    Raises RunFailed if Ray has no room for an actor within `shares.patience` seconds.
    """

    actors: Actors

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._node_ids = range(SERVER_NODE_ID + 1, SERVER_NODE_ID + 1 + chosen(shares))
        self._stored: dict[int, tuple[weakref.ref[Array], bytes, Any]] = {}
        self.set_run(empty_run(next(_run_ids)))

    def __enter__(self) -> RayGrid:
        return self

    def __exit__(self, *error: object) -> None:
        self.actors.close()

    def exchange(self, problem: Problem, setting: Setting) -> Exchange:
        """Give the nodes their clients of this problem, and return what carries a run's requests to them."""
        setup = Recipe.of(self.actors.hold(problem), setting).model_dump_json()
        return GridExchange(Placement(self, len(problem.clients)), setup)

    # ---- Flower's Grid ----

    def set_run(self, run: Run) -> None:
        """Begin this run: new actors with fresh contexts, and no message under way."""
        if hasattr(self, "actors"):
            self.actors.close()
        self._run = run
        self._calls: dict[str, tuple[Message, Call]] = {}
        self._counter = itertools.count(1)
        claim_identity(run.run_id)
        self.actors = Actors(self._shares, run.run_id, self._node_ids)

    @property
    def run(self) -> Run:
        """The run that this grid carries messages for (a copy)."""
        return replace(self._run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run to one node; `flwr.app.Message(...)` does as well."""
        message = Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
        stamp_sender(message, self._run.run_id)
        return message

    def get_node_ids(self) -> list[int]:
        """The ids of all nodes, in the order of their partitions."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send the messages, in order, and return their ids; the nodes begin to work at once.

        Raises `BadInput` for a message to a node that this grid does not have, before any is sent.
        """
        messages = list(messages)
        for message in messages:
            node_id = message.metadata.dst_node_id
            if node_id not in self._node_ids:
                allowed = f"a node of this grid, {self._node_ids[0]} to {self._node_ids[-1]}"
                raise BadInput("dst_node_id", node_id, allowed)
        pushed = []
        for message in messages:
            stamp_sender(message, self._run.run_id)
            stamp_id(message, self._next_message_id())
            envelope, stored = self._sealed(message)
            call = self.actors.ask(message.metadata.dst_node_id - self._node_ids[0], envelope, *stored)
            self._calls[message.metadata.message_id] = (message_copy(message, RecordDict()), call)
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Wait for the replies to these messages and return them in the same order.

        Raises `BadInput` for an id that was not pushed here, or whose reply has been pulled; `RunFailed` if an actor
        has died and cannot be replaced.
        """
        return self._replies(list(message_ids), None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push the messages and return their replies, in the same order.

        Replies that are missing after `timeout` seconds are left out; they can still be pulled.
        """
        return self._replies(self.push_messages(messages), timeout)

    # ---- its parts ----

    def _next_message_id(self) -> str:
        return f"{self._run.run_id}-{next(self._counter)}"

    def _sealed(self, message: Message) -> tuple[bytes, list[Any]]:
        """The message as bytes without its large arrays, and references to those."""
        places: list[Place] = []
        stored: list[Any] = []
        content = RecordDict(dict(message.content.items()))
        for name, record in message.content.array_records.items():
            large = {key: array for key, array in record.items() if len(array.data) >= INLINE_BYTES}
            if large:
                small = {key: array for key, array in record.items() if key not in large}
                content[name] = ArrayRecord(small)
                places += [Place(name, key, a.dtype, tuple(a.shape), a.stype) for key, a in large.items()]
                stored += [self._reference(array) for array in large.values()]
        envelope = Envelope(message_copy(message, content), tuple(places))
        return pickle.dumps(envelope, pickle.HIGHEST_PROTOCOL), stored

    def _reference(self, array: Array) -> Any:
        """Where an array's bytes lie in the object store: put there once, and gone when the array is."""
        key = id(array)
        if key not in self._stored or self._stored[key][1] is not array.data:
            gone = weakref.ref(array, lambda _, key=key, stored=self._stored: stored.pop(key, None))  # type: ignore[misc]  # bound now
            self._stored[key] = (gone, array.data, ray.put(array.data))
        return self._stored[key][2]

    def _replies(self, message_ids: list[str], timeout: float | None) -> list[Message]:
        for message_id in message_ids:
            if message_id not in self._calls:
                raise BadInput("message_id", message_id, "a message that was pushed to this grid and not yet pulled")
        answers = self.actors.answers([self._calls[message_id][1] for message_id in message_ids], timeout)
        replies = []
        for message_id, answer in zip(message_ids, answers, strict=True):
            if answer is None:
                continue
            asked, _ = self._calls.pop(message_id)
            if isinstance(answer, bytes):
                reply: Message = pickle.loads(answer)
            else:
                reply = Message(Error(CLIENT_APP_RAISED_EXCEPTION, reason(answer)), reply_to=asked)
            stamp_id(reply, self._next_message_id())
            replies.append(reply)
        return replies

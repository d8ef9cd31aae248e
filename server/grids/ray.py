"""A Flower `Grid` over pinned Ray actors: each actor is one node, and keeps its clients' examples and its caches."""

from __future__ import annotations

import itertools
import pickle
import weakref
from collections.abc import Iterable
from typing import Any

import ray
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from clients.node import Setting
from fedbilevel.federation.messages import Exchange
from fedbilevel.problem import Problem
from server.grids.actors import Actors, Call, Shares, chosen, reason
from server.grids.base import NumberedGrid
from server.grids.exchange import GridExchange, Placement
from server.grids.flower_internals import CLIENT_APP_RAISED_EXCEPTION, Run, empty_run, message_copy
from server.grids.worker import Envelope, Place, Recipe

INLINE_BYTES = 50_000
"""Arrays below this size travel with their message; larger ones through the object store, once per machine."""

_run_ids = itertools.count(1 << 32)  # beside those of the local grids


class RayGrid(NumberedGrid):
    """Nodes that live in Ray actors, on whatever machines Ray has; Ray must be initialised, and stays so.

    Node j answers for the j-th block of the clients of the problem that `exchange` was called with last. An actor that
    dies is replaced by one with an empty `Context`, and the message under way is delivered again; whoever sends learns
    from the reply what the node has forgotten. An exception in the client app becomes an error reply, as on the local
    grid. A context manager: leaving it ends the actors.

    Raises RunFailed if an actor is not ready within `shares.patience` seconds.
    """

    actors: Actors

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._number(chosen(shares))
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

    def _begin(self, run: Run) -> None:
        if hasattr(self, "actors"):
            self.actors.close()
        self._calls: dict[str, tuple[Message, Call]] = {}
        self.actors = Actors(self._shares, run.run_id, self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send the messages, in order, and return their ids; the nodes begin to work at once.

        Raises `BadInput` for a message to a node that this grid does not have, before any is sent.
        """
        pushed = []
        for message in self._stamped(messages):
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
                raise self._not_pushed(message_id)
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
            self._number_message(reply)
            replies.append(reply)
        return replies

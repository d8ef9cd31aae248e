"""A Flower `Grid` in this process: the default engine. No daemon, no pickling, no polling; a debugger works.

It carries messages exactly and in order, and does nothing else: whoever sends decides what an error reply means.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from fedbilevel.errors import BadInput
from server.grids.base import NumberedGrid
from server.grids.flower_internals import CLIENT_APP_RAISED_EXCEPTION, Run, empty_run, message_copy

_run_ids = itertools.count(1)


class LocalGrid(NumberedGrid):
    """Nodes that live in this process and answer one after another, in the order in which they are asked.

    `client_app` answers for every node; `nodes` is their number. Node j (from 0) has a `Context` of its own, kept for
    the whole run, with `node_config = {"partition-id": j, "num-partitions": nodes}`, beside which stands what `own[j]`
    says, and a copy of `run_config`. Each
    grid is a run of its own, with an id that no other local grid of the process has; several may be used by turns.

    A message is worked on when its reply is asked for, not when it is pushed. Both ways the records are copied (the
    bytes of arrays, which are immutable, are shared), so what one side does to its records never shows on the other.

    An exception in the client app becomes an error reply with the code `CLIENT_APP_RAISED_EXCEPTION` and the reason
    `"ExceptionType: message"`; `KeyboardInterrupt` and `SystemExit` end the exchange. Raises `BadInput` for `nodes`
    below 1.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: int = 1,
        run_config: UserConfig | None = None,
        own: Sequence[UserConfig] = (),
    ) -> None:
        if nodes < 1:
            raise BadInput("nodes", nodes, "an integer of at least 1")
        self._client_app = client_app
        self._number(nodes)
        self._run_config = dict(run_config or {})
        self._own = list(own) or [{} for _ in range(nodes)]
        self.set_run(empty_run(next(_run_ids)))

    def _begin(self, run: Run) -> None:
        self._queued: dict[str, Message] = {}
        self._contexts = {
            node_id: Context(
                run_id=run.run_id,
                node_id=node_id,
                node_config={
                    "partition-id": partition,
                    "num-partitions": len(self._node_ids),
                    **self._own[partition],
                },
                state=RecordDict(),
                run_config=dict(self._run_config),
            )
            for partition, node_id in enumerate(self._node_ids)
        }

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue the messages, as they are now, and return their ids in the same order.

        Raises `BadInput`, and queues none of them, if one is addressed to a node that is not there.
        """
        queued = {
            message.metadata.message_id: message_copy(message, _records_copy(message.content))
            for message in self._stamped(messages)
        }
        self._queued.update(queued)
        return list(queued)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the nodes work on these messages, and return their replies in the same order.

        Raises `BadInput` for an id that was not pushed here, or whose reply has been pulled.
        """
        return [self._reply(message_id) for message_id in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push the messages and return the replies, in the same order.

        No node is asked once `timeout` seconds have passed (one that is at work is not interrupted); replies that are
        then missing can still be pulled.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        replies = []
        for message_id in self.push_messages(messages):
            if deadline is not None and time.monotonic() >= deadline:
                break
            replies.append(self._reply(message_id))
        return replies

    def _reply(self, message_id: str) -> Message:
        """Let the node addressed work on a queued message."""
        message = self._queued.pop(message_id, None)
        if message is None:
            raise self._not_pushed(message_id)
        try:
            answer = self._client_app(message, self._contexts[message.metadata.dst_node_id])
            if not isinstance(answer, Message) or answer.metadata.reply_to_message_id != message_id:
                raise TypeError("the client app must return a Message(..., reply_to=the message it received)")
        except Exception as error:
            answer = Message(Error(CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"), reply_to=message)
        reply = message_copy(answer, _records_copy(answer.content) if answer.has_content() else None)
        self._number_message(reply)
        return reply


def _records_copy(records: RecordDict) -> RecordDict:
    """Records that share nothing mutable with the originals; the arrays' bytes are shared.

    `copy.deepcopy` fails on an array whose object id Flower has computed, since it then keeps memory views.
    """
    return RecordDict({name: _record_copy(record) for name, record in records.items()})


def _record_copy(record: ArrayRecord | MetricRecord | ConfigRecord) -> ArrayRecord | MetricRecord | ConfigRecord:
    if isinstance(record, ArrayRecord):
        return ArrayRecord.from_array_dict(dict(record))
    own: dict[str, Any] = {name: value[:] if isinstance(value, list) else value for name, value in record.items()}
    return MetricRecord(own) if isinstance(record, MetricRecord) else ConfigRecord(own)

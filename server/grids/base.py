"""What the project's own Flower grids share: a run with an identity, numbered nodes, and messages stamped in order."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedbilevel.errors import BadInput
from server.grids.flower_internals import SERVER_NODE_ID, Run, claim_identity, stamp_id, stamp_sender


class NumberedGrid(Grid):
    """A grid over a fixed number of nodes, the node of partition j being `get_node_ids()[j]`."""

    _node_ids: range

    def _number(self, nodes: int) -> None:
        self._node_ids = range(SERVER_NODE_ID + 1, SERVER_NODE_ID + 1 + nodes)

    def set_run(self, run: Run) -> None:
        """Begin this run: fresh contexts, and no message under way."""
        self._run = run
        self._counter = itertools.count(1)
        claim_identity(run.run_id)
        self._begin(run)

    @abstractmethod
    def _begin(self, run: Run) -> None:
        """Make everything anew for a run."""

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

    def _stamped(self, messages: Iterable[Message]) -> Iterator[Message]:
        """The messages, each with sender and id; one that comes twice gets a new id.

        Raises BadInput, before it gives any, for a node that is not there.
        """
        checked = list(messages)
        for message in checked:
            node_id = message.metadata.dst_node_id
            if node_id not in self._node_ids:
                allowed = f"a node of this grid, {self._node_ids[0]} to {self._node_ids[-1]}"
                raise BadInput("dst_node_id", node_id, allowed)
        for message in checked:
            stamp_sender(message, self._run.run_id)
            self._number_message(message)
            yield message

    def _number_message(self, message: Message) -> None:
        stamp_id(message, f"{self._run.run_id}-{next(self._counter)}")

    @staticmethod
    def _not_pushed(message_id: str) -> BadInput:
        return BadInput("message_id", message_id, "a message that was pushed to this grid and not yet pulled")

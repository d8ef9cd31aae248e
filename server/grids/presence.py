"""Which nodes are there, where the loss of one is no end of the run: who is gone is not waited for again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Message

from fedbilevel.errors import RunFailed

if TYPE_CHECKING:
    from server.grids.exchange import Placement

LISTED = 90.0
"""Flower lists a node for up to a minute after its last sign of life; one that it lists for longer is alive."""

log = logging.getLogger("flwr.fedbilevel.nodes")


@dataclass
class _Gone:
    """Since when a node is gone, and whether Flower has missed it since."""

    since: float
    missed: bool = False


class Presence:
    """Sends messages to the nodes of a placement, and keeps book of those that are gone.

    A node is gone when a message brings an error of the transport, or nothing within `patience` seconds. It is asked
    again when Flower lists it anew, or still lists it after LISTED seconds; a new node that says that it holds the
    same partition takes its place.
    """

    def __init__(self, placement: Placement, patience: float) -> None:
        self._placement, self._patience = placement, patience
        self._gone: dict[int, _Gone] = {}
        self._strangers: set[int] = set()

    def look(self) -> None:
        """Look who is there; where nobody is, wait. Raises RunFailed after `patience` seconds without any node."""
        deadline = time.monotonic() + self._patience
        self._update()
        while len(self._gone) == len(self._placement.nodes):
            if time.monotonic() > deadline:
                raise RunFailed(f"none of {len(self._placement.nodes)} nodes has been there for {self._patience:g} s")
            time.sleep(min(1.0, self._patience))
            self._update()

    @property
    def gone(self) -> set[int]:
        """The nodes that are not to be asked."""
        return {self._placement.nodes[partition] for partition in self._gone}

    def carry(self, messages: list[Message]) -> dict[int, Message]:
        """Send messages and return the replies that came, by node; who does not reply is gone."""
        found = {}
        for node, reply in by_node(messages, self._placement.grid.send_and_receive(messages, timeout=self._patience)):
            if not reply.has_error():
                found[node] = reply
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in found:
                partition = self._placement.nodes.index(node)
                self._gone[partition] = _Gone(time.monotonic())
                log.warning("the node of partition %d does not answer: the run goes on without it", partition)
        return found

    def _update(self) -> None:
        nodes, now = self._placement.nodes, time.monotonic()
        listed = set(self._placement.grid.get_node_ids())
        for partition, node in enumerate(nodes):
            if node not in listed:
                self._gone.setdefault(partition, _Gone(now)).missed = True
        if self._gone and (new := listed - set(nodes) - self._strangers):
            self._strangers |= new
            for partition, node in self._placement.hello(sorted(new), self._patience).items():
                if partition in self._gone:
                    nodes[partition] = node
                    self._back(partition)
        for partition, gone in list(self._gone.items()):
            if nodes[partition] in listed and (gone.missed or now - gone.since > LISTED):
                self._back(partition)

    def _back(self, partition: int) -> None:
        del self._gone[partition]
        log.info("a node of partition %d is there again", partition)


def by_node(messages: Iterable[Message], replies: Iterable[Message]) -> list[tuple[int, Message]]:
    """Each reply with the node that was asked: in the place of one that cannot be reached, Flower itself replies."""
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return [(asked.get(each.metadata.reply_to_message_id, each.metadata.src_node_id), each) for each in replies]

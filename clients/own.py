"""A node of a deployment: it holds a file with the examples of its own clients, and answers for them alone."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from clients.node import Node, Setting
from fedbilevel.config.setup import Setup
from fedbilevel.errors import BadInput, ClientFailed
from fedbilevel.federation.messages import Reply, Request
from fedbilevel.shares.share import Share

FILE = "data"
"""The key of a node's configuration that names its file."""


class OwnNode(Node):
    """A node that refuses to be asked for other clients than those of its share."""

    def __init__(self, share: Share, setup: Setup) -> None:
        super().__init__(share.problem(setup), Setting.of(setup))
        self._share = share

    def answer(self, request: Request) -> Reply:
        """Run the operations on the request's clients. Raises ClientFailed, as any node, and for others' clients."""
        first, end = self._share.first, self._share.end
        if len(strangers := request.clients[(request.clients < first) | (request.clients >= end)]):
            whose = f"client {strangers[0]}, round {request.round}"
            raise ClientFailed(f"{whose}: asked of a node that holds the clients {first} to {end - 1} alone")
        return super().answer(request)


def partition_of(node_config: Mapping[str, object]) -> dict[str, int]:
    """Which partition a node is, of how many. Raises BadInput where its file is that of another, or no node's."""
    told = {key: int(str(node_config[key])) for key in ("partition-id", "num-partitions")}
    if FILE in node_config:
        share = _share_at(str(node_config[FILE]))
        dealt = {"partition-id": share.partition, "num-partitions": share.partitions}
        if dealt != told:
            of = "the server" if share.partition is None else f"partition {share.partition} of {share.partitions}"
            raise BadInput(FILE, str(node_config[FILE]), f"the file of the partition {told}, and it is that of {of}")
    return told


@functools.lru_cache(maxsize=8)
def node_of_share(path: str, setup: str) -> OwnNode:
    """Build the node of a file for the run that a setup describes. Raises BadInput for a run of another problem."""
    return OwnNode(_share_at(path), Setup.model_validate_json(setup))


def _share_at(path: str) -> Share:
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        changed = 0  # reading it will say what is wrong
    return _share(path, changed)


@functools.lru_cache(maxsize=8)
def _share(path: str, changed: int) -> Share:
    return Share.read(path)

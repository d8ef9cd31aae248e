"""What the tests of deployments share: a config that was dealt, nodes of its files, and a search for examples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from clients.app import app
from fedbilevel.config.tables import read
from fedbilevel.problem import Problem, leaves
from server.grids.local import LocalGrid
from server.running.deal import deal, node_file

CONFIG = """
[run]
seeds = [0]
iterations = 2
dtype = "float64"
solution_every = 0

[problem]
name = "hyper_representation"
hidden = [8]
activation = "tanh"

[data]
name = "digits"
clients = 7
partition = "dirichlet"
alpha = 0.3

[options]
upper_step = 0.5
lower_step = 0.5
neumann_step = 0.5
neumann_terms = 1
lower_rounds = 1
local_steps = 2
"""
"""Without algorithms, which each test adds."""


def dealt(config: Path, folder: Path, nodes: int = 3) -> Path:
    """The files of a config, in a new folder."""
    deal(read(config), nodes, folder)
    return folder


def own_files(folder: Path, nodes: int = 3) -> list[dict[str, Any]]:
    """What each node's configuration says of its file."""
    return [{"data": str(folder / node_file(j))} for j in range(nodes)]


class RecordingGrid(LocalGrid):
    """Nodes in this process, each with a file of its own; every message that travels is kept, as bytes."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        super().__init__(app, nodes, own=own_files(folder, nodes))
        self.down: list[bytes] = []
        self.up: list[bytes] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        replies = super().send_and_receive(sent, timeout=timeout)
        self.down += [content_bytes(message.content) for message in sent]
        self.up += [content_bytes(reply.content) for reply in replies]
        return replies


def content_bytes(content: RecordDict) -> bytes:
    """All that the records hold: the bytes of arrays, and of every other value."""
    parts = []
    for record in content.values():
        for key, value in record.items():
            data = getattr(value, "data", value)
            parts += [str(key).encode(), data if isinstance(data, bytes) else repr(data).encode()]
    return b"\0".join(parts)


def traces(problem: Problem, labels: int = 8) -> list[bytes]:
    """What would give the clients' examples away: rows of inputs and each client's labels, in the usual dtypes.

    Inputs are also looked for as bytes of pixels. Rows of nothing but a few values could occur by chance and are left
    out, as are the labels of a client with fewer than `labels` examples, or with one and the same for all.
    """
    found = []
    for level in (problem.clients.lower, problem.clients.upper):
        parts = {len(leaf): leaf for leaf in leaves(level.values)}
        assert len(parts) == 1
        inputs, label = level.values["input"].numpy(force=True), level.values["label"].numpy(force=True)
        for row in inputs.reshape(len(inputs), -1):
            if len(np.unique(row)) > 4:
                pixels = (row * (16 if row.max() <= 1 else 1)).round().astype(np.uint8)
                found += [row.astype(kind).tobytes() for kind in (np.float64, np.float32)] + [pixels.tobytes()]
        for start, end in zip(level.offsets[:-1], level.offsets[1:], strict=True):
            own = label[start:end]
            if len(own) >= labels and len(np.unique(own)) > 1:
                found += [own.astype(kind).tobytes() for kind in (np.int64, np.int32, np.uint8, np.float64, np.float32)]
                found += [repr(own.tolist()).encode()]
    return found

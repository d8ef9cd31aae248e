"""What lives in a Ray actor: one node, with its Context, its clients' examples and what was prepared from them."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from pydantic import BaseModel

from clients.app import make_app
from clients.node import Node, Setting
from fedbilevel.federation.systems import BatchSize
from fedbilevel.machine.device import Device
from fedbilevel.problem import Problem
from fedbilevel.user_files import UserFile
from server.grids.flower_internals import claim_identity
from server.grids.parcels import unpack


class Recipe(BaseModel):
    """The setup that messages carry to a worker: the problem that it has been given, and the setting of the run."""

    problem: str
    seed: int
    batch: BatchSize
    gradient_batch: BatchSize
    device: Device
    files: tuple[UserFile, ...]

    @classmethod
    def of(cls, problem: str, setting: Setting) -> Recipe:
        """Return the recipe of a node."""
        return cls(problem=problem, **asdict(setting))

    def setting(self) -> Setting:
        """Return what a node knows of the run besides the problem."""
        return Setting(self.seed, self.batch, self.gradient_batch, self.device, self.files)


class Place(NamedTuple):
    """Where an array belongs whose bytes travel beside the message."""

    record: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    stype: str


@dataclass(frozen=True)
class Envelope:
    """A message, and the places of the arrays that travel beside it."""

    message: Message
    places: tuple[Place, ...] = ()


class Worker:
    """The node of one partition; it answers one message after another."""

    def __init__(self, run_id: int, node_id: int, partition: int, partitions: int, threads: int) -> None:
        torch.set_num_threads(threads)
        claim_identity(run_id)
        self._app = make_app(self._node_of)
        config: dict[str, str | int | float | bool] = {"partition-id": partition, "num-partitions": partitions}
        self._context = Context(run_id, node_id, config, state=RecordDict(), run_config={})
        self._problem: tuple[str, Problem] | None = None
        self._node: tuple[str, Node] | None = None

    def pid(self) -> int:
        """Return the process that this node lives in: it is ready."""
        return os.getpid()

    def take(self, name: str, packed: bytes) -> None:
        """Take a problem in place of the one before. Raises whatever unpacking it raises."""
        self._problem = self._node = None
        self._problem = (name, unpack(packed))

    def answer(self, envelope: bytes, *contents: bytes) -> bytes:
        """Return the pickled reply to a pickled envelope, whose arrays' bytes are `contents`."""
        opened: Envelope = pickle.loads(envelope)
        for place, data in zip(opened.places, contents, strict=True):
            record = opened.message.content[place.record]
            assert isinstance(record, ArrayRecord)
            record[place.key] = Array(place.dtype, place.shape, place.stype, data)
        return pickle.dumps(self._app(opened.message, self._context), pickle.HIGHEST_PROTOCOL)

    def _node_of(self, setup: str) -> Node:
        """Return the node of this setup; only the latest is kept, with what it has prepared."""
        if self._node is None or self._node[0] != setup:
            recipe = Recipe.model_validate_json(setup)
            if self._problem is None or self._problem[0] != recipe.problem:
                raise LookupError(f"this worker was not given the problem {recipe.problem}")
            self._node = (setup, Node(self._problem[1], recipe.setting()))
        return self._node[1]

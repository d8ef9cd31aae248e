"""What travels between server and clients, before any transport gives it a wire format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.derivatives import Level
from fedbilevel.federation.systems import LocalSteps

Options = Mapping[str, Any]
"""Scalars, strings, lists and tables of them: everything an operation needs that is not a vector."""


@dataclass(frozen=True)
class Request:
    """One round's question to some clients.

    `operations` are the keys of operations, in the order in which their results are expected.
    `tensors` maps each name that an operation reads to a vector; `tokens` gives each vector a number that is unique
    within the run, so that a transport sends it to a worker once per outer iteration. Clients forget between
    iterations, and within one they need not keep what is no longer in `alive`.

    cut: the tensors that hold the sampled clients' own blocks of x, one after another, where x falls into such blocks;
    ends: where each client's block ends there [S]; skip: the entries before those of `clients`.
    rows: whether every client's answer is wanted by itself, instead of their sum.
    own: per name a row [S, d] for each of `clients`, which it has kept since it was last asked, and `known`, whether it
    has been asked before. What clients keep lives with the simulator, so that it outlives the death of a worker: it
    travels in the simulator, but is not communication.
    """

    operations: tuple[str, ...]
    clients: NDArray[np.int64]
    tensors: Mapping[str, Tensor]
    tokens: Mapping[str, int]
    options: Options = field(default_factory=dict)
    iteration: int = 0
    round: int = 0
    alive: frozenset[int] = frozenset()
    cut: frozenset[str] = frozenset()
    ends: NDArray[np.int64] | None = None
    skip: int = 0
    rows: bool = False
    own: Mapping[str, Kept] = field(default_factory=dict)

    def of(self, part: NDArray[np.int64]) -> Request:
        """The same request to a run of its clients, with the tensors as they are."""
        rows = np.searchsorted(self.clients, part)
        own = {name: kept.rows_of(rows) for name, kept in self.own.items()}
        skip = 0 if self.ends is None or rows[0] == 0 else int(self.ends[rows[0] - 1])
        ends = None if self.ends is None else self.ends[rows]
        return replace(self, clients=part, own=own, skip=skip, ends=ends)


@dataclass(frozen=True)
class Kept:
    """What some clients have kept: a row [S, d] each, and which of them have been asked before [S]; else a row is 0."""

    rows: Tensor
    known: NDArray[np.bool_]

    def rows_of(self, places: NDArray[np.int64]) -> Kept:
        """Those of some of the clients."""
        return Kept(self.rows[torch.from_numpy(places)], self.known[places])


@dataclass(frozen=True)
class Reply:
    """One worker's answer: per operation and output the sum over its clients of p_i times the vector, and sum p_i.

    Sums are float64, so that adding replies in order gives the same result however clients are spread over workers.
    Where x falls into blocks of the clients' own, a sum in the space of x holds those of the worker's clients alone.
    Where rows were asked for, `sums` holds rows [S, d] in their place, in the dtype in which clients compute.
    own: per operation what its clients keep, a row each; None for an operation that keeps nothing.
    clients: whose answers these are; None: of all that were asked.
    """

    sums: tuple[tuple[Tensor, ...], ...]
    weight: float
    own: tuple[Tensor | None, ...] = ()
    clients: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Passes:
    """How often an operation differentiates an example of each level, per local step (`steps`: tau, None for none).

    of_task: the examples are those of a task's support and query set, and all tasks are counted; whole: all examples,
    whatever the minibatch size.
    """

    lower: float
    upper: float
    steps: LocalSteps | None
    epochs_of: Level
    of_task: bool = False
    whole: bool = False


Elsewhere = Callable[[Options, NDArray[np.float64]], NDArray[np.float64]]
"""From the options and the clients' local steps [S] to a factor for each of them."""


class Operation(Protocol):
    """What the federation knows of an operation: its name, what it reads and returns, and its work."""

    @property
    def name(self) -> str:
        """The name by which it is spoken of."""
        ...

    @property
    def key(self) -> str:
        """The name by which it travels."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """The vectors it needs."""
        ...

    @property
    def options(self) -> tuple[str, ...]:
        """The options it takes."""
        ...

    @property
    def about(self) -> tuple[str | None, ...]:
        """Per output: the vector at which it starts, if it is an iterate."""
        ...

    @property
    def along(self) -> tuple[tuple[str, str] | None, ...]:
        """Per output: the aggregate along which it, an iterate, also moves, and the option that holds the step."""
        ...

    @property
    def elsewhere(self) -> tuple[tuple[str, Elsewhere] | None, ...]:
        """Per output: what it holds of a vector in the entries of x that are other clients' own, beside its start."""
        ...

    @property
    def upper(self) -> tuple[str, ...]:
        """Which of the vectors that it reads are of the dimension of x."""
        ...

    @property
    def gives(self) -> tuple[bool, ...]:
        """Per output whether it is of the dimension of x."""
        ...

    @property
    def keeps(self) -> str | None:
        """The name of what each client keeps for itself from one round to the next: read, and returned last."""
        ...

    @property
    def report(self) -> bool:
        """Whether the last output is not communication, but a report on what the clients saw."""
        ...

    def passes(self, options: Options, /) -> Passes:
        """How much work it is."""
        ...


class Exchange(Protocol):
    """Carries a request to the workers that hold its clients and returns their replies in client order."""

    def __call__(self, request: Request) -> list[Reply]:
        """Raises ClientFailed if a client raised."""
        ...

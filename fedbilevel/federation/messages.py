"""What travels between server and clients, before any transport gives it a wire format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
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
    """

    operations: tuple[str, ...]
    clients: NDArray[np.int64]
    tensors: Mapping[str, Tensor]
    tokens: Mapping[str, int]
    options: Options = field(default_factory=dict)
    iteration: int = 0
    round: int = 0
    alive: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Reply:
    """One worker's answer: per operation and output the sum over its clients of p_i times the vector, and sum p_i.

    Sums are float64, so that adding replies in order gives the same result however clients are spread over workers.
    """

    sums: tuple[tuple[Tensor, ...], ...]
    weight: float


@dataclass(frozen=True)
class Passes:
    """How often an operation differentiates an example of each level, per local step (`steps`: tau, None for none).

    of_task: the examples are those of a task's support and query set, and all tasks are counted.
    """

    lower: float
    upper: float
    steps: LocalSteps | None
    epochs_of: Level
    of_task: bool = False


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
    def along(self) -> tuple[str, str] | None:
        """The aggregate along which its result, an iterate, also moves, and the option that holds the step."""
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

"""What a method of local adaptation is, and the table of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from clients.tasks import TaskBatch
from fedbilevel.user_files import is_users

Settings = Mapping[str, Any]
"""The algorithm's options that the method reads, as they travel: numbers, strings, true or false."""


@dataclass(frozen=True)
class Adapted:
    """Adapted parameters y [B, dy]; variance [B, dy] where the method has a posterior N(y, diag variance)."""

    y: Tensor
    variance: Tensor | None = None


class Method(ABC):
    """One way to adapt and to differentiate. x is what the server holds for this method ([dx]; dx may differ from dy).

    reports: names of the numbers per task that `meta_gradient` returns beside the gradient, for the reader of a
    history (`metric_<name>`); they are no part of the method and are not counted as communication.
    """

    name: ClassVar[str]
    reports: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def adapt(self, tasks: TaskBatch, x: Tensor, o: Settings) -> Adapted:
        """Adapt to every task."""

    @abstractmethod
    def meta_gradient(self, tasks: TaskBatch, x: Tensor, o: Settings) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the gradient of every task's query loss at the adapted parameters in x [B, dx], and reports [B]."""

    @abstractmethod
    def passes(self, o: Settings) -> tuple[float, float]:
        """How often a meta-gradient differentiates a support and a query example; a Hessian product counts 2."""

    def parameters(self, x: Tensor) -> Tensor:
        """The part of x that is an initialisation of y: x itself, unless the method keeps more in it."""
        return x


TABLE: dict[str, Method] = {}


def method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Enter a method into the table, under `cls.name`: its name, before which a user's own file puts the file's.

    Raises ValueError for a name that another module has entered.
    """

    def enter(cls: type[Method]) -> type[Method]:
        cls.name = f"{cls.__module__}:{name}" if is_users(cls.__module__) else name
        if cls.name in TABLE and type(TABLE[cls.name]).__module__ != cls.__module__:
            raise ValueError(f"two methods are called {name}")
        TABLE[cls.name] = cls()
        return cls

    return enter

"""What a method of local adaptation is, and the table of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from clients.jacobian import jacobian
from clients.tasks import TaskBatch
from fedbilevel.derivatives import Level
from fedbilevel.tasks import is_local, loss_of_outputs
from fedbilevel.user_files import is_users

Settings = Mapping[str, Any]
"""The algorithm's options that the method reads, as they travel: numbers, strings, true or false."""

_TOGETHER = 8
"""Tasks whose linearised outputs are computed at one time."""


@dataclass(frozen=True)
class Adapted:
    """Adapted parameters y [B, dy]; variance [B, dy] where the method has a posterior N(y, diag variance).

    linear: they are those of the network linearised at the method's parameters of x, and the loss is that of its
    outputs.
    """

    y: Tensor
    variance: Tensor | None = None
    linear: bool = False

    def outputs(self, tasks: TaskBatch, level: Level) -> Tensor:
        """What is said of the support ("lower") or the query sets ("upper"): [B, n] or [B, n, classes]."""
        assert is_local(tasks.problem)
        of, examples = tasks.problem.outputs, tasks.examples[level]
        if not self.linear:
            return torch.as_tensor(vmap(of)(self.y, examples))

        x, found = tasks.x, []
        for y, some in zip(self.y.split(_TOGETHER), tasks.tasks.chunks(_TOGETHER), strict=True):
            J = jacobian(tasks.problem, x, some.support if level == "lower" else some.query, 1)
            found.append(J.value + J.push(y - x))
        out = torch.cat(found)
        return out.unflatten(1, (examples["label"].shape[1], -1)) if tasks.problem.kind == "classification" else out

    def losses(self, tasks: TaskBatch, level: Level) -> Tensor:
        """`L` or `f` of every task, [B]."""
        if not self.linear:
            return tasks.losses(level, self.y)
        assert is_local(tasks.problem)
        return loss_of_outputs(tasks.problem, self.outputs(tasks, level), tasks.examples[level]["label"]).mean(-1)


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

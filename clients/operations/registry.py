"""The table of operations, and what the federation has to know about each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedbilevel.derivatives import Level
from fedbilevel.federation.messages import Elsewhere, Kept, Passes
from fedbilevel.user_files import is_users

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Operation:
    """A registered pure function of (cohort, vectors received, options).

    * reads: the vectors it needs; options: the keyword options it takes
    * steps: the option that holds the number of local steps; linear_once: with one of them its result is linear in the
      client's losses
    * about: its results are iterates that start at this vector (an unbiased average acts on the displacement)
    * along: (vector, step), where that displacement holds `-step * tau_i * vector`, an aggregate already
    * elsewhere: (vector, factor), what a result holds of a vector in those entries of x that are other clients' own,
      beside its start; upper, gives: which vectors read and which outputs are of the dimension of x
    * passes: how often it differentiates an example of each level; tasks: it works on tasks of each client's own
    * report: its last output is for the reader of a history, and not counted as communication
    * keeps: the keyword under which it gets what each client has kept (`Kept`): the rows to keep are what it returns
      last
    """

    name: str
    function: Callable[..., Result]
    reads: tuple[str, ...]
    options: tuple[str, ...]
    steps: str | None
    linear_once: bool | Callable[[Mapping[str, Any]], bool]
    tasks: bool
    report: bool
    about: tuple[str | None, ...]
    along: tuple[tuple[str, str] | None, ...]
    elsewhere: tuple[tuple[str, Elsewhere] | None, ...]
    upper: tuple[str, ...]
    gives: tuple[bool, ...]
    keeps: str | None
    passes: Callable[[Mapping[str, Any]], Passes]

    @property
    def key(self) -> str:
        """The name by which it travels; one of a user's own file carries the file's."""
        module = self.function.__module__
        return f"{module}:{self.name}" if is_users(module) else self.name

    def linear(self, options: Mapping[str, Any]) -> bool:
        """Whether the mean of the clients' results is the result for the mean of their losses: it may run pooled."""
        if self.tasks or self.keeps is not None:
            return False
        once = self.linear_once(options) if callable(self.linear_once) else self.linear_once
        return self.steps is None or (once and options[self.steps] == 1)

    def __call__(
        self,
        cohort: Any,
        vectors: Mapping[str, Tensor],
        options: Mapping[str, Any],
        own: Mapping[str, Kept] | None = None,
    ) -> tuple[Tensor, ...]:
        """Run on a cohort; one tensor per output, and last what the clients keep."""
        taken = {name: options[name] for name in self.options if name in options}
        if self.keeps is not None:
            taken[self.keeps] = (own or {})[self.keeps]
        result = self.function(cohort, *(vectors[name] for name in self.reads), **taken)
        return (result,) if isinstance(result, Tensor) else result


OPERATIONS: dict[str, Operation] = {}
"""Every operation by its key."""


def _steps_along(step: str) -> Elsewhere:
    """`-step * tau_i`: nobody else's losses know these entries, and everybody steps along the aggregate."""
    return lambda options, taus: -float(options[step]) * taus


def operation(
    *,
    lower: float | Callable[[Mapping[str, Any]], float] = 0,
    upper: float | Callable[[Mapping[str, Any]], float] = 0,
    about: str | tuple[str | None, ...] | None = None,
    along: tuple[str, str] | tuple[tuple[str, str] | None, ...] | None = None,
    elsewhere: tuple[tuple[str, Elsewhere] | None, ...] | None = None,
    steps: str | None = None,
    epochs_of: Level = "lower",
    linear_once: bool | Callable[[Mapping[str, Any]], bool] = True,
    tasks: bool = False,
    whole: Callable[[Mapping[str, Any]], bool] = lambda options: False,
    report: bool = False,
    upper_reads: tuple[str, ...] = ("x", "hypergradient"),
    gives: str = "",
    keeps: str | None = None,
) -> Callable[[Callable[..., Result]], Operation]:
    """Register a function under its name.

    lower, upper: gradient evaluations per example of each level (a Hessian or cross product counts 2), per local step
    where `steps` names the option that holds tau, or per example of a task's sets for all of its tasks; epochs of local
    work count the examples of level `epochs_of`; whole: whether all examples are seen, whatever the minibatch size.
    upper_reads: of the vectors that it reads those of the dimension of x;
    gives: what its outputs are, in order, as in "x y", where one is of the dimension of x.
    """
    moved_along = (along,) if along is not None and isinstance(along[0], str) else along or (None,)

    def amount(count: float | Callable[[Mapping[str, Any]], float], options: Mapping[str, Any]) -> float:
        return count(options) if callable(count) else count

    def register(function: Callable[..., Result]) -> Operation:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        made = Operation(
            name=function.__name__,
            function=function,
            reads=tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY),
            options=tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != keeps),
            steps=steps,
            linear_once=linear_once,
            tasks=tasks,
            report=report,
            about=about if isinstance(about, tuple) else (about,),
            along=moved_along,
            elsewhere=elsewhere or tuple(each and (each[0], _steps_along(each[1])) for each in moved_along),
            upper=upper_reads,
            gives=tuple(name == "x" for name in gives.split()),
            keeps=keeps,
            passes=lambda options: Passes(
                lower=amount(lower, options),
                upper=amount(upper, options),
                steps=options[steps] if steps else None,
                epochs_of=epochs_of,
                of_task=tasks,
                whole=whole(options),
            ),
        )
        made.__dict__["__doc__"] = function.__doc__
        if is_users(function.__module__):
            OPERATIONS[made.key] = made
        elif OPERATIONS.setdefault(made.key, made) is not made:
            raise ValueError(f"two operations are called {made.name}")
        return made

    return register

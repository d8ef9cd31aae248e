"""A problem as bytes for another process, which needs neither the data set nor the user's file."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ray import cloudpickle

from fedbilevel.errors import BadInput
from fedbilevel.packages import PACKAGES
from fedbilevel.problem import Problem

_OURS = frozenset(PACKAGES)


def restricted(problem: Problem, first: int, end: int) -> Problem:
    """Return the problem with the examples of the clients first..end-1 alone, if it lets its clients be replaced."""
    try:
        other = copy.copy(problem)
        other.clients = problem.clients.only(first, end)
    except Exception:  # it is frozen, or has a property of this name, or cannot be copied
        return problem
    return other


def pack(problem: Problem) -> bytes:
    """Return the problem as bytes. A class from the user's own file or module travels with its code.

    Raises BadInput for a problem that cannot be pickled.
    """
    with _by_value(sys.modules.get(type(problem).__module__)):
        try:
            packed: bytes = cloudpickle.dumps(problem)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise BadInput("problem", type(problem).__name__, f"an object that can be pickled ({said})") from error
    return packed


def unpack(packed: bytes) -> Problem:
    """Return the problem that was packed."""
    problem: Problem = cloudpickle.loads(packed)
    return problem


@contextmanager
def _by_value(module: ModuleType | None) -> Iterator[None]:
    """Let what a module defines travel as code while this lasts, unless it is ours, which workers have."""
    if module is None or module.__name__.partition(".")[0] in _OURS | {"__main__"}:
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)

"""What a party of a deployment gets of a problem: a node the examples of its own clients, the server none."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedbilevel.blocks import OWN
from fedbilevel.errors import BadInput, users_code
from fedbilevel.problem import ClientData, Problem, Ragged, leaves, map_examples
from fedbilevel.shares.codec import Arrays, encode

_LOOKED_AT = 64
"""So many examples of every client's are looked for in what is not to hold them."""


def hollow(clients: ClientData) -> ClientData:
    """The same clients without any example: their numbers, p_i and blocks stay."""
    held = copy.copy(clients)
    held.lower, held.upper = clients.each(lambda a: Ragged(map_examples(lambda t: t[:0].clone(), a.values), a.offsets))
    return held


def is_hollow(clients: ClientData) -> bool:
    """Whether these are clients of which numbers alone are held."""
    return int(leaves(clients.lower.values)[0].shape[0]) < int(clients.lower.offsets[-1])


def for_node(problem: Problem, first: int, end: int) -> Problem:
    """The problem with the examples of the clients first..end-1, and none of its other tensors (a test set, say).

    Raises BadInput for a problem whose clients cannot be replaced.
    """
    part = _with(problem, problem.clients.only(first, end))
    for name in [name for name, value in vars(part).items() if name != "clients" and _arrays(name, value)]:
        delattr(part, name)
    return part


def for_server(problem: Problem) -> Problem:
    """The problem with its own tensors and no example of any client.

    Raises BadInput for a problem whose clients cannot be replaced, and for one that holds their examples elsewhere too.
    """
    part = _with(problem, hollow(problem.clients))
    for name, value in vars(part).items():
        if name != "clients" and any(_holds(array, problem.clients) for array in _arrays(name, value).values()):
            allowed = f"a problem that holds its clients' examples in `clients` alone, and `{name}` has them too"
            raise BadInput("problem.name", type(problem).__name__, allowed)
    return part


def kept_measures(whole: Problem, part: Problem, x: Tensor, y: Tensor) -> tuple[list[str], list[str]]:
    """The measures of `evaluate` that a part of a problem takes as the whole one does, and those that it cannot.

    They are held against each other near (x, y). Where some differ, one that is the same everywhere is not trusted: an
    accuracy of 0 may be that of no examples.
    """
    draw = torch.Generator().manual_seed(0)
    points = [(x, y), *((_near(x, draw), _near(y, draw)) for _ in range(2))]
    with torch.no_grad():
        wanted = [{name: float(value) for name, value in whole.evaluate(*point).items()} for point in points]
        try:
            found = [{name: float(value) for name, value in part.evaluate(*point).items()} for point in points]
        except Exception:  # whatever comes of it that there are no examples
            found = [{} for _ in points]
    pairs = {name: [(a[name], b.get(name, math.nan)) for a, b in zip(wanted, found, strict=True)] for name in wanted[0]}
    same = [name for name, values in pairs.items() if all(_equal(a, b) for a, b in values)]
    if len(same) < len(pairs):
        same = [name for name in same if len({a for a, _ in pairs[name]}) > 1]
    return same, [name for name in pairs if name not in same]


def _near(vector: Tensor, draw: torch.Generator) -> Tensor:
    return vector + torch.randn(len(vector), generator=draw, dtype=torch.float64).to(vector)


def measuring(problem: Problem, names: list[str]) -> Problem:
    """The same problem, which measures these alone."""
    kind, other = type(problem), copy.copy(problem)

    def evaluate(self: Any, x: Tensor, y: Tensor) -> dict[str, float]:
        return {name: value for name, value in kind.evaluate(self, x, y).items() if name in names} if names else {}

    other.__class__ = type(kind.__name__, (kind,), {"evaluate": evaluate})
    return other


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def _with(problem: Problem, clients: ClientData) -> Problem:
    allowed = "a problem whose attribute clients can be replaced on a copy"
    with users_code(lambda said: BadInput("problem.name", type(problem).__name__, f"{allowed}, but it raised {said}")):
        other = copy.copy(problem)
        other.clients = clients
        return other


def _arrays(name: str, value: Any) -> Arrays:
    """The arrays within a value. Raises BadInput for a value that cannot be written."""
    found: Arrays = {}
    try:
        encode(value, found, name)
    except TypeError as error:
        raise BadInput("problem.name", name, f"a problem of plain values and tensors, and {error}") from None
    return found


def _holds(array: Any, clients: ClientData) -> bool:
    """Whether most of some of the clients' examples stand in this array, row by row, or all of a column of theirs."""
    for level in (clients.lower, clients.upper):
        values = level.values
        if isinstance(values, Mapping):  # places in x are nobody's data
            values = {name: value for name, value in values.items() if name != OWN}
        for leaf in leaves(values):
            held = leaf.numpy(force=True)
            if held.ndim < 2:
                if len(held) > _LOOKED_AT and held.shape == array.shape and bool((held == array).all()):
                    return True
                continue
            rows, size = held.reshape(len(held), -1), int(held[0].size)
            if array.ndim < 2 or len(array) == 0 or array[0].size != size:
                continue
            known = {row.tobytes() for row in array.reshape(len(array), -1).astype(rows.dtype)}
            some = rows[:: max(len(rows) // _LOOKED_AT, 1)]
            if 2 * sum(row.tobytes() in known for row in some) > len(some):
                return True
    return False

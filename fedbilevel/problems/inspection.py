"""Looks a problem over before anything runs on it, and brings it to another dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fedbilevel import derivatives
from fedbilevel.blocks import OWN
from fedbilevel.errors import BadInput, users_code
from fedbilevel.machine.device import moved
from fedbilevel.problem import ClientData, Examples, Problem, Ragged, has_one_loss, loss_of, map_examples
from fedbilevel.tasks import TaskProblem, is_local, loss_of_outputs


def convert(problem: Problem, dtype: torch.dtype) -> Problem:
    """Return the same problem with its clients' data and its own floating-point tensors in another dtype."""
    if problem.clients is None or data_dtype(problem.clients) == dtype:
        return problem
    return moved(problem, dtype)


def data_dtype(clients: ClientData) -> torch.dtype | None:
    """Return the dtype of the first floating-point tensor of the clients' data."""
    found: list[torch.dtype] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            found.append(tensor.dtype)
        return tensor

    for level in (clients.lower, clients.upper):
        map_examples(note, level.values)
    return found[0] if found else None


def is_measure_name(key: object) -> bool:
    """Whether this can be part of a column's name in a history."""
    return isinstance(key, str) and key.isprintable() and 0 < len(key) <= 80


def _one_task(problem: TaskProblem) -> tuple[tuple[derivatives.Level, Ragged], ...]:
    """The support and the query set of a first task, as the examples of one client."""
    held = problem.clients.lower.take(np.array([0]))
    drawn = problem.tasks(held, np.zeros((1, 1, problem.draws)))
    sets: tuple[tuple[derivatives.Level, Examples, int], ...]
    sets = ("lower", drawn.support, problem.task_sizes[0]), ("upper", drawn.query, problem.task_sizes[1])
    return tuple((level, Ragged(map_examples(lambda t: t[0], part), np.array([0, n]))) for level, part, n in sets)


def is_cross_entropy(problem: TaskProblem) -> bool:
    """Whether the support loss is the cross-entropy of the outputs and nothing beside it, such as a regulariser.

    Seen on one task, at parameters drawn about x0 and at another x; not seen where there are no examples.
    """
    if problem.kind != "classification":
        return False
    if problem.clients.lower.offsets[-1] == 0:
        return True
    (_, support), _ = _one_task(problem)
    generator = torch.Generator(support.values["label"].device).manual_seed(0)
    x = problem.initial(torch.Generator().manual_seed(0))[0].to(support.values["label"].device)
    x = x.to(data_dtype(problem.clients) or x.dtype)
    y = x + (0.3 + x.abs()) * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    with torch.no_grad():
        found = problem.lower(x, y, derivatives.prepare(problem, x, support.values)).mean()
        expected = loss_of_outputs(problem, problem.outputs(y, support.values), support.values["label"]).mean()
    return bool((found - expected).abs() <= 1e-5 * (1e-3 + expected.abs()))


def _inspect_blocks(problem: Problem, x: Tensor, refuse: Callable[[str], BadInput]) -> None:
    """See that x is the clients' blocks, and that examples name places in their own client's one."""
    blocks = problem.clients.blocks
    if blocks is None:
        return
    if len(x) != blocks.offsets[-1]:
        said = f"{blocks.offsets[-1]} entries, the clients' blocks together, not {len(x)}"
        raise refuse(f"a problem whose initial() gives an x of {said}")
    for level in (problem.clients.lower, problem.clients.upper):
        if isinstance(level.values, Mapping) and OWN in level.values:
            owner = level.owners
            places = level.values[OWN].numpy(force=True)
            strange = (places < blocks.offsets[owner]) | (places >= blocks.offsets[owner + 1])
            if places.dtype != np.int64 or strange.any():
                whose = f"client {owner[strange][0]}'s" if strange.any() else "no integers (int64)"
                raise refuse(
                    f"a problem whose examples['{OWN}'] are places in its client's block, which {whose} are not"
                )


def inspect_problem(problem: Problem, name: str) -> None:
    """Run both losses on one client's examples, and the evaluation; see that they return what the protocol asks for.

    Raises BadInput with the key `problem.name`, naming what is wrong.
    """

    def refuse(allowed: str) -> BadInput:
        return BadInput("problem.name", name, allowed)

    one_loss = has_one_loss(problem)
    if not one_loss and getattr(problem, "minimax", False):
        raise refuse("a minimax problem (minimax = True) with the one loss upper(), and this one has a lower() too")
    for attribute in ("initial", "lower", "upper", "evaluate"):
        if attribute == "lower" and one_loss and callable(getattr(problem, "upper", None)) and not is_local(problem):
            continue
        if not callable(getattr(problem, attribute, None)):
            raise refuse(f"an object with a method {attribute} (see fedbilevel.problem.Problem)")
    if not isinstance(getattr(problem, "clients", None), ClientData):
        raise refuse("an object whose attribute clients is a fedbilevel.ClientData")
    if one_loss and problem.clients.upper is not problem.clients.lower:
        raise refuse(
            "a problem with a lower(), or a minimax problem, whose one loss upper() has one set of examples for each "
            "client: ClientData.single(parts)"
        )
    with users_code(lambda said: refuse(f"a problem whose initial(generator) runs, but it raised {said}")):
        start = problem.initial(torch.Generator().manual_seed(0))
    flat = isinstance(start, tuple | list) and len(start) == 2
    if not flat or not all(isinstance(part, Tensor) and part.ndim == 1 and part.numel() for part in start):
        shapes = (
            [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in start] if flat else "?"
        )
        raise refuse(f"a problem whose initial() returns two flat tensors x0 [dx] and y0 [dy], not {shapes}")
    _inspect_blocks(problem, start[0], refuse)
    dtype = data_dtype(problem.clients) or start[0].dtype
    x, y = (part.to(dtype) for part in start)
    one = np.array([0])
    levels: tuple[tuple[derivatives.Level, Ragged], ...]
    levels = ("lower", problem.clients.lower), ("upper", problem.clients.upper)
    if is_local(problem):
        levels = _one_task(problem)
    for level, held in levels:
        ragged = held.take(one)
        n = int(ragged.sizes[0])
        allowed = f"a problem whose {level}(x, y, examples) runs"
        with users_code(lambda said, allowed=allowed: refuse(f"{allowed}, but it raised {said}")):  # type: ignore[misc]  # bound now
            losses = loss_of(problem, level)(x, y, derivatives.prepare(problem, x, ragged.values))
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if shape != (n,):
            raise refuse(f"a problem whose {level}() returns one loss per example, shape ({n},), not {shape}")
        if not losses.is_floating_point():
            raise refuse(f"a problem whose {level}() returns floating-point losses, not {losses.dtype}")
        weights = torch.full((n,), 1.0 / n, dtype=losses.dtype)
        allowed = f"a problem whose {level}() torch.func can differentiate"
        with users_code(lambda said, allowed=allowed: refuse(f"{allowed}, but it raised {said}")):  # type: ignore[misc]  # bound now
            derivatives.gradient_y(problem, level, x, y, derivatives.prepare(problem, x, ragged.values), weights)
    refused = "a problem whose evaluate(x, y) runs, but it raised"
    with users_code(lambda said: refuse(f"{refused} {said}")), torch.no_grad():
        measures = problem.evaluate(x, y)
    if not isinstance(measures, Mapping):
        raise refuse(f"a problem whose evaluate() returns a dict of numbers, not {type(measures).__name__}")
    for key, value in measures.items():
        if not is_measure_name(key):
            raise refuse(
                f"a problem whose evaluate() names its numbers by 1 to 80 printable characters, and not {key!r}"
            )
        try:
            float(value)
        except (TypeError, ValueError, RuntimeError):
            raise refuse(f"a problem whose evaluate() returns numbers, and {key!r} is {value!r}") from None

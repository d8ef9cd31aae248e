"""Builds a problem from its name and parameters, and looks it over before anything runs on it."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from torch import Tensor

from fedbilevel import derivatives
from fedbilevel.data import FederatedData
from fedbilevel.device import moved
from fedbilevel.errors import BadInput, unknown
from fedbilevel.problem import ClientData, Examples, Problem, Ragged, map_examples
from fedbilevel.problems.few_shot import FewShot
from fedbilevel.problems.hyper_representation import HyperRepresentation
from fedbilevel.problems.quadratic import Quadratic
from fedbilevel.problems.quadratic_tasks import QuadraticTasks
from fedbilevel.problems.sinusoid import Sinusoid
from fedbilevel.tasks import TaskProblem, is_local
from fedbilevel.validation import NOTHING, described, unknown_key

Factory = Callable[..., Problem]

PROBLEMS: dict[str, tuple[Factory, str]] = {
    "quadratic": (Quadratic, "heterogeneous quadratics with closed-form y*, hypergradient and x*"),
    "hyper_representation": (HyperRepresentation, "x: representation of an MLP; y: L2-regularised linear head"),
    "sinusoid": (Sinusoid, "local lower level: regression of sine curves from a few points (MAML's)"),
    "few_shot": (FewShot, "local lower level: N-way K-shot classification of characters, clients own alphabets"),
    "quadratic_tasks": (QuadraticTasks, "local lower level: quadratic tasks with closed-form meta-gradients"),
}
_GIVEN = ("data", "dtype")
"""Parameters of a factory that the library fills in: the federated data, and the torch dtype of the run."""


def build(
    name: str, parameters: Mapping[str, Any], *, data: Callable[[], FederatedData], dtype: torch.dtype | None
) -> Problem:
    """Build the problem called `name` ("quadratic", ..., or "path/to/file.py:factory") in the given dtype,
    or in its own.

    Raises BadInput for an unknown name, a file that does not import, parameters that the factory does not take or
    refuses, and a problem whose losses have wrong shapes.
    """
    factory = _factory(name)
    arguments = _arguments(factory, parameters)
    takes = inspect.signature(factory).parameters
    if "data" in takes:
        try:
            arguments["data"] = data()
        except BadInput as error:
            raise _typed(error, "data") from error
    if "dtype" in takes:
        arguments["dtype"] = dtype or torch.float32
    try:
        problem = factory(**arguments)
    except BadInput as error:
        raise _typed(error, "problem") from error
    except (Exception, SystemExit) as error:
        raise BadInput("problem.name", name, f"a factory that runs, but it raised {_said(error)}") from error
    inspect_problem(problem, name)
    return problem if dtype is None else convert(problem, dtype)


def _typed(error: BadInput, table: str) -> BadInput:
    """The same error with the key that its author typed: `ClientData` does not know the table its weights came from."""
    return BadInput(error.key.replace("clients.weights", f"{table}.weights"), error.value, error.allowed)


def defaults(name: str) -> dict[str, Any]:
    """The parameters of a built-in problem that have defaults, as a config would hold them; empty for a user's own."""
    if name not in PROBLEMS:
        return {}
    takes = inspect.signature(PROBLEMS[name][0]).parameters
    found = {key: p.default for key, p in takes.items() if key not in _GIVEN and p.default not in (p.empty, None)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def needs_data(name: str) -> bool:
    """Whether the problem is built from the `[data]` table. Raises BadInput as `build` does."""
    return "data" in inspect.signature(_factory(name)).parameters


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _factory(name: str) -> Factory:
    if name in PROBLEMS:
        return PROBLEMS[name][0]
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        raise unknown("problem.name", name, [*PROBLEMS, "path/to/file.py:factory"])
    module = _module(name, Path(path).expanduser())
    factory = getattr(module, attribute, None)
    try:
        inspect.signature(factory)  # type: ignore[arg-type]  # what is not callable raises TypeError
    except (TypeError, ValueError):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        known = [f"{path}:{key}" for key in own if callable(getattr(module, key)) and not key.startswith("_")]
        if known:
            raise unknown("problem.name", name, known) from None
        raise BadInput("problem.name", name, "a file with a factory, and this one defines no function") from None
    found: Factory = factory  # type: ignore[assignment]  # it has a signature
    return found


def _module(name: str, file: Path) -> ModuleType:
    """Import a user's file. It runs once for every content that it has. Raises BadInput."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput("problem.name", name, f"a file that can be read, and {file}: {error.strerror}") from None
    digest = hashlib.blake2b(str(file.resolve()).encode() + b"\0" + content, digest_size=8).hexdigest()
    module_name = f"fedbilevel_problem_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(module_name, None)
        if not isinstance(error, Exception | SystemExit):
            raise
        raise BadInput("problem.name", name, f"a file that imports, but it raised {_said(error)}") from error
    return module


def _arguments(factory: Factory, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, each of a kind that its annotation allows where it has one."""
    signature = inspect.signature(factory)
    takes = {key: p for key, p in signature.parameters.items() if key not in _GIVEN}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    takes = {key: p for key, p in takes.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    try:
        hints = inspect.get_annotations(factory.__init__ if inspect.isclass(factory) else factory, eval_str=True)
    except Exception:
        hints = {}
    for key, value in parameters.items():
        if key in _GIVEN or (key not in takes and not open_ended):
            raise unknown_key("problem", key, value, ["name", *takes])
        if key in hints and key in takes:
            _hold(f"problem.{key}", value, hints[key])
    for key, parameter in takes.items():
        if parameter.default is parameter.empty and key not in parameters:
            raise BadInput(f"problem.{key}", NOTHING, "a value: this problem requires it")
    return dict(parameters)


def _hold(key: str, value: Any, hint: Any) -> None:
    """Hold a value of a config against an annotation; one that pydantic cannot read holds for everything."""
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)  # as JSON, a list is good for a tuple too
    except PydanticUserError:
        return
    except ValidationError as error:
        try:
            schema = adapter.json_schema()
            allowed = described(schema, schema)
        except PydanticUserError:
            allowed = str(error.errors(include_url=False)[0]["msg"])
        raise BadInput(key, value, allowed) from None


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


def _one_task(problem: TaskProblem) -> tuple[tuple[derivatives.Level, Ragged], ...]:
    """The support and the query set of a first task, as the examples of one client."""
    held = problem.clients.lower.take(np.array([0]))
    drawn = problem.tasks(held, np.zeros((1, 1, problem.draws)))
    sets: tuple[tuple[derivatives.Level, Examples, int], ...]
    sets = ("lower", drawn.support, problem.task_sizes[0]), ("upper", drawn.query, problem.task_sizes[1])
    return tuple((level, Ragged(map_examples(lambda t: t[0], part), np.array([0, n]))) for level, part, n in sets)


def inspect_problem(problem: Problem, name: str) -> None:
    """Run both losses on one client's examples, and the evaluation; see that they return what the protocol asks for.

    Raises BadInput with the key `problem.name`, naming what is wrong.
    """

    def refuse(allowed: str) -> BadInput:
        return BadInput("problem.name", name, allowed)

    for attribute in ("initial", "lower", "upper", "evaluate"):
        if not callable(getattr(problem, attribute, None)):
            raise refuse(f"an object with a method {attribute} (see fedbilevel.problem.Problem)")
    if not isinstance(getattr(problem, "clients", None), ClientData):
        raise refuse("an object whose attribute clients is a fedbilevel.ClientData")
    try:
        start = problem.initial(torch.Generator().manual_seed(0))
    except (Exception, SystemExit) as error:
        raise refuse(f"a problem whose initial(generator) runs, but it raised {_said(error)}") from error
    flat = isinstance(start, tuple | list) and len(start) == 2
    if not flat or not all(isinstance(part, Tensor) and part.ndim == 1 and part.numel() for part in start):
        shapes = (
            [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in start] if flat else "?"
        )
        raise refuse(f"a problem whose initial() returns two flat tensors x0 [dx] and y0 [dy], not {shapes}")
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
        try:
            losses = getattr(problem, level)(x, y, derivatives.prepare(problem, x, ragged.values))
        except (Exception, SystemExit) as error:
            raise refuse(f"a problem whose {level}(x, y, examples) runs, but it raised {_said(error)}") from error
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if shape != (n,):
            raise refuse(f"a problem whose {level}() returns one loss per example, shape ({n},), not {shape}")
        if not losses.is_floating_point():
            raise refuse(f"a problem whose {level}() returns floating-point losses, not {losses.dtype}")
        weights = torch.full((n,), 1.0 / n, dtype=losses.dtype)
        try:
            derivatives.gradient_y(problem, level, x, y, derivatives.prepare(problem, x, ragged.values), weights)
        except (Exception, SystemExit) as error:
            raise refuse(
                f"a problem whose {level}() torch.func can differentiate, but it raised {_said(error)}"
            ) from error
    try:
        with torch.no_grad():
            measures = problem.evaluate(x, y)
    except (Exception, SystemExit) as error:
        raise refuse(f"a problem whose evaluate(x, y) runs, but it raised {_said(error)}") from error
    if not isinstance(measures, Mapping):
        raise refuse(f"a problem whose evaluate() returns a dict of numbers, not {type(measures).__name__}")
    for key, value in measures.items():
        try:
            float(value)
        except (TypeError, ValueError, RuntimeError):
            raise refuse(f"a problem whose evaluate() returns numbers, and {key!r} is {value!r}") from None

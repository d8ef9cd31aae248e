"""Builds a problem from its name and the parameters of its table."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from fedbilevel.config.validation import described, unknown_key
from fedbilevel.data import FederatedData
from fedbilevel.errors import NOTHING, BadInput, unknown, users_code
from fedbilevel.problem import Problem
from fedbilevel.problems import PROBLEMS, Factory
from fedbilevel.problems.inspection import convert, inspect_problem
from fedbilevel.user_files import module_of, names_file, public_callables

_GIVEN = ("data", "dtype")
"""Parameters of a factory that the library fills in: the federated data, and the torch dtype of the run."""


def build(
    name: str,
    parameters: Mapping[str, Any],
    *,
    data: Callable[[], FederatedData],
    dtype: torch.dtype | None,
    seed: int = 0,
) -> Problem:
    """Build the problem called `name` ("quadratic", ..., or "path/to/file.py:factory") in the given dtype,
    or in its own.

    A factory with a parameter `data` gets the federated data, one with a parameter `seed` the seed (that of the run),
    unless `parameters` fix it.

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
    if "seed" in takes:
        arguments.setdefault("seed", seed)
    if "dtype" in takes:
        arguments["dtype"] = dtype or torch.float32
    try:
        with users_code(lambda said: BadInput("problem.name", name, f"a factory that runs, but it raised {said}")):
            problem: Problem = factory(**arguments)
    except BadInput as error:
        raise _typed(error, "problem") from error
    inspect_problem(problem, name)
    return problem if dtype is None else convert(problem, dtype)


def takes_seed(name: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the problem is another one for another seed of the run. Raises BadInput as `build` does."""
    return "seed" in inspect.signature(_factory(name)).parameters and "seed" not in parameters


def _typed(error: BadInput, table: str) -> BadInput:
    """The same error with the key that its author typed: `ClientData` does not know the table its weights came from."""
    return BadInput(error.key.replace("clients.weights", f"{table}.weights"), error.value, error.allowed)


def defaults(name: str) -> dict[str, Any]:
    """The parameters of a built-in problem that have defaults, as a config would hold them; empty for a user's own.

    Without `seed`: left out of a config, it is the seed of the run.
    """
    if name not in PROBLEMS:
        return {}
    takes, left_out = inspect.signature(PROBLEMS[name][0]).parameters, (*_GIVEN, "seed")
    found = {key: p.default for key, p in takes.items() if key not in left_out and p.default not in (p.empty, None)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def needs_data(name: str) -> bool:
    """Whether the problem is built from the `[data]` table. Raises BadInput as `build` does."""
    return "data" in inspect.signature(_factory(name)).parameters


def _factory(name: str, key: str = "problem.name") -> Factory:
    if name in PROBLEMS:
        return PROBLEMS[name][0]
    if not names_file(name):
        raise unknown(key, name, [*PROBLEMS, "path/to/file.py:factory"])
    path, _, attribute = name.rpartition(":")
    module = module_of(name, key)
    factory = getattr(module, attribute, None)
    try:
        inspect.signature(factory)  # type: ignore[arg-type]  # what is not callable raises TypeError
    except (TypeError, ValueError):
        if known := [f"{path}:{own}" for own in public_callables(module)]:
            raise unknown(key, name, known) from None
        raise BadInput(key, name, "a file with a factory, and this one defines no function") from None
    found: Factory = factory  # type: ignore[assignment]  # it has a signature
    return found


def _arguments(factory: Factory, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, each of a kind that its annotation allows where it has one."""
    signature = inspect.signature(factory)
    takes = {key: p for key, p in signature.parameters.items() if key not in _GIVEN}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    takes = {key: p for key, p in takes.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    hints = _hints(factory)
    for key, value in parameters.items():
        if key in _GIVEN or (key not in takes and not open_ended):
            raise unknown_key("problem", key, value, ["name", *takes])
        _bounded(f"problem.{key}", value)
        if key in hints and key in takes:
            _hold(f"problem.{key}", value, hints[key])
    for key, parameter in takes.items():
        if parameter.default is parameter.empty and key not in (*parameters, "seed"):
            raise BadInput(f"problem.{key}", NOTHING, "a value: this problem requires it")
    return dict(parameters)


def _hints(factory: Factory) -> dict[str, Any]:
    """Its annotations; none where they cannot be evaluated."""
    try:
        return inspect.get_annotations(factory.__init__ if inspect.isclass(factory) else factory, eval_str=True)
    except Exception:
        return {}


def _bounded(key: str, value: Any) -> None:
    """Refuse integers that no array can hold. Raises BadInput."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise BadInput(key, value, "an integer of less than 2**63")
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            _bounded(key, inner)


def _hold(key: str, value: Any, hint: Any) -> None:
    """Hold a value of a config against an annotation; one that pydantic cannot read holds for everything."""
    try:
        adapter = _adapter(hint)
        adapter.validate_json(json.dumps(value), strict=True)  # as JSON, a list is good for a tuple too
    except PydanticUserError:
        return
    except ValidationError as error:
        told = _described(hint) or str(error.errors(include_url=False)[0]["msg"])
        raise BadInput(key, value, told) from None


def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _described(hint: Any) -> str:
    """Which values an annotation allows, in words; empty for one that pydantic cannot read."""
    try:
        schema = _adapter(hint).json_schema()
    except PydanticUserError:
        return ""
    return described(schema, schema)


def parameters_of(name: str, key: str = "problem.name") -> dict[str, tuple[Any, str]]:
    """The parameters of a problem: the default (`inspect.Parameter.empty` where there is none), and what is allowed.

    Without what the library fills in. Raises BadInput as `build` does, under this key.
    """
    factory = _factory(name, key)
    found = inspect.signature(factory).parameters
    hints = _hints(factory)
    return {
        name: (p.default, _described(hints[name]) if name in hints else "")
        for name, p in found.items()
        if name not in _GIVEN and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def documentation(name: str) -> str:
    """The docstring of a problem's factory; empty without one. Raises BadInput as `build` does."""
    return inspect.getdoc(_factory(name)) or ""

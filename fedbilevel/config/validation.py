"""Turns a failed check of a table into one line: the key as it was typed, the value found, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedbilevel.errors import NOTHING, BadInput, unknown
from fedbilevel.strict import MOST

Schema = Mapping[str, Any]
"""A JSON schema, as pydantic makes it of a model."""


def unknown_key(table: str, key: str, value: object, known: Iterable[str]) -> BadInput:
    """The error for a key that a table does not have, with the nearest one that it has.

    >>> print(unknown_key("run", "round", 5, ["rounds", "seeds"]))
    run.round: got 5; allowed: in [run] only rounds, seeds (did you mean 'rounds'?)
    """
    names = list(known)
    where = f"in [{table}]" if table else "at the top"
    only = unknown("", key, names).allowed if names else "no keys"
    return BadInput(f"{table}.{key}" if table else key, value, f"{where} only {only}")


def described(
    schema: Schema, root: Schema, *, several: bool = False, finite: bool = False, exceeded: bool = False
) -> str:
    """Say in words which values a JSON schema allows; `several`: as the elements of a list.

    exceeded: name the bound MOST of every count too, which only matters to who has gone beyond it.

    >>> described({"type": "integer", "minimum": 1}, {})
    'an integer of at least 1'
    >>> described({"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}}, {})
    'a list of numbers above 0 and at most 1'
    """
    schema = _resolved(schema, root)
    if "anyOf" in schema:
        ways = [described(way, root, several=several, finite=finite, exceeded=exceeded) for way in _ways(schema)]
        return " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
    if "const" in schema or "enum" in schema:
        values = [f'"{each}"' if isinstance(each, str) else str(each) for each in schema.get("enum", [])]
        return " or ".join(values or [described({"enum": [schema["const"]]}, root)])
    kind = schema.get("type")
    if kind in ("number", "integer"):
        one, many = ("an integer", "integers") if kind == "integer" else ("a number", "numbers")
        if finite:
            one, many = "a finite number", "finite numbers"
        return (many if several else one) + _bounds(schema, exceeded=exceeded)
    if kind == "array":
        items = "values"
        if schema.get("items"):
            items = described(schema["items"], root, several=True, finite=finite, exceeded=exceeded)
        least = ", at least one" if schema.get("minItems") else ""
        return f"{'lists' if several else 'a list'} of {items}{least}"
    if kind == "object":
        inner = schema.get("properties", {})
        return f"a table {{ {', '.join(inner)} }}" if 0 < len(inner) <= 2 else "a table"
    return {"string": "strings" if several else "a string", "boolean": "true or false"}.get(str(kind), "a value")


def _bounds(schema: Schema, *, exceeded: bool) -> str:
    limits = (
        ("minimum", " of at least "),
        ("exclusiveMinimum", " above "),
        ("maximum", " of at most "),
        ("exclusiveMaximum", " below "),
    )
    named = [(name, word) for name, word in limits if name in schema and (exceeded or schema[name] != MOST)]
    said = [word + _number(schema[name]) for name, word in named]
    return "".join(said[:1]) + "".join(f" and{each.replace(' of ', ' ')}" for each in said[1:])


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2**{power}" if power > 50 and value == 2**power else f"{value:.12g}"


def _ways(schema: Schema) -> list[Schema]:
    return [way for way in schema["anyOf"] if way.get("type") != "null"]


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Follow references, and leave out "or nothing"."""
    while True:
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in schema and len(_ways(schema)) == 1:
            schema = _ways(schema)[0]
        else:
            return schema


def meaning(schema: Schema) -> str:
    """The description of a field, wherever its annotation holds it; empty if there is none."""
    inner = [way["description"] for way in schema.get("anyOf", ()) if "description" in way and "$ref" not in way]
    return str(schema.get("description") or (inner[0] if inner else ""))


def typed(parts: Sequence[str | int]) -> str:
    """A path into nested tables as its author would type it: run.seeds[1]."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def first_error(error: ValidationError, model: type[BaseModel], table: Mapping[str, Any], key: str = "") -> BadInput:
    """Return the first mistake that a table has, as the error its author reads; unknown keys get the nearest known one.

    A value that fits none of several allowed forms is described by all of them.
    """
    schema = model.model_json_schema()
    return _mistake([dict(each) for each in error.errors(include_url=False)], schema, schema, table, [key] * bool(key))


def _mistake(
    errors: list[dict[str, Any]], here: Schema, root: Schema, value: Any, path: list[str | int], note: str = ""
) -> BadInput:
    """Follow the first error down to the value that is wrong; `loc` of every error begins at `here`."""
    note = (meaning(here) if path else "") or note
    here = _resolved(here, root)
    for each in errors:
        if each["type"] == "value_error" and not each["loc"]:
            return _told(each["ctx"]["error"], path, value)
    if "anyOf" in here:
        way, tag = _meant(here, root, value)
        inner = [each | {"loc": each["loc"][1:]} for each in errors if each["loc"] and tag(str(each["loc"][0]))]
        if inner:
            return _mistake(inner, way, root, value, path, note)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    if first["loc"] and "anyOf" not in here:
        part = first["loc"][0]
        known = here.get("properties", {})
        below = here.get("items") if isinstance(part, int) else known.get(part) or here.get("additionalProperties")
        if isinstance(below, Mapping):
            inner = [each | {"loc": each["loc"][1:]} for each in errors if each["loc"][:1] == (part,)]
            return _mistake(inner, below, root, _item(value, part), [*path, part], note)
        if first["type"] == "extra_forbidden":
            return unknown_key(typed(path), str(part), _item(value, part), sorted(known))
    beyond = any(each["type"] == "less_than_equal" for each in errors)
    allowed = described(here, root, finite=first["type"] == "finite_number", exceeded=beyond)
    notes = [note, "required" * (first["type"] == "missing")]
    remark = "; ".join(filter(None, notes))
    return BadInput(typed(path) or "config", value, f"{allowed} ({remark})" if remark else allowed)


def _meant(here: Schema, root: Schema, value: Any) -> tuple[Schema, Callable[[str], bool]]:
    """Which of several forms the author of a list or a table meant, and what tells that form's errors."""
    for way in _ways(here):
        form = _resolved(way, root)
        if isinstance(value, list) and form.get("type") == "array":
            return way, lambda tag: tag.startswith("list[")
        if isinstance(value, Mapping) and set(form.get("properties", {})) & set(value):
            name = str(way["$ref"]).rsplit("/", 1)[1]
            return way, lambda tag, name=name: name in tag  # longer for a model that checks itself
    return here, lambda tag: False


def _item(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return NOTHING


def _told(error: Exception, path: list[str | int], value: object) -> BadInput:
    """What a model's own check says, with its key below the model's."""
    if isinstance(error, BadInput):
        return BadInput(typed([*path, error.key]), error.value, error.allowed)
    return BadInput(typed(path) or "config", value, str(error))


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], table: Mapping[str, Any], key: str) -> Model:
    """Return a table checked against its model. Raises BadInput, naming the key below `key`."""
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        raise first_error(error, model, table, key) from None

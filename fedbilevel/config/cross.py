"""One config under several conditions: `[cross]`, and what an algorithm's own table says `under`.

`[cross]` names keys of the tables of conditions and a list of values for each; every algorithm runs under every
combination of them, as a curve of its own:

    [cross]
    systems.byzantine.attack = ["ipm", "alie"]
    aggregation = [{ rule = "mean" }, { rule = "trimmed_mean", byzantine = 4 }]

`[algorithms.LABEL] under = {...}` holds the combination of one curve, on top of the config's own tables.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from fedbilevel.config.validation import typed
from fedbilevel.errors import NOTHING, BadInput, unknown

CONDITIONS = ("systems", "aggregation", "channel", "privacy")
"""The tables of conditions."""
UNDER = "under"
MOST_CURVES = 1000


def expanded(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a config without `[cross]`: an algorithm for each combination. Raises BadInput."""
    cross = tables.get("cross", {})
    if not isinstance(cross, Mapping):
        raise BadInput("cross", cross, "a table")
    factors = dict(_factors(cross, ()))
    rest = {name: value for name, value in tables.items() if name != "cross"}
    algorithms = tables.get("algorithms")
    if not factors or not isinstance(algorithms, Mapping):
        return rest
    combinations = list(itertools.product(*factors.values()))
    if len(combinations) * len(algorithms) > MOST_CURVES:
        curves = f"{len(combinations)} combinations of {len(algorithms)} algorithms"
        raise BadInput("cross", curves, f"at most {MOST_CURVES} curves")
    rest["algorithms"] = {}
    for label, table in algorithms.items():
        for values in combinations:
            named = [shown(value, path[-1]) for path, value in zip(factors, values, strict=True)]
            own = copy.deepcopy(dict(table)) if isinstance(table, Mapping) else table
            if isinstance(own, dict):
                own.setdefault("algorithm", label)
                for path, value in zip(factors, values, strict=True):
                    _set(own, (UNDER, *path), value)
            rest["algorithms"][", ".join([label, *named])] = own
    return rest


def _factors(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    for key, value in table.items():
        here = (*path, key)
        if here[0] not in CONDITIONS:
            raise unknown("cross", here[0], CONDITIONS)
        if isinstance(value, Mapping):
            yield from _factors(value, here)
        elif isinstance(value, list) and value and len({str(each) for each in value}) == len(value):
            yield here, value
        else:
            raise BadInput(typed(["cross", *here]), value, "a list of values that differ from each other")


def shown(value: object, key: str = "") -> str:
    """A value in the name of a curve: a string is enough, anything else stands behind its key; of a table its values.

    >>> shown({"byzantine": {"attack": "ipm", "strength": 10.0}}), shown(0.3, "dropout")
    ('ipm strength 10', 'dropout 0.3')
    """
    if isinstance(value, Mapping):
        return " ".join(shown(inner, name) for name, inner in value.items())
    if isinstance(value, str):
        return value
    text = f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
    return f"{key} {text}".strip()


def _set(table: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for part in path[:-1]:
        table = table.setdefault(part, {})
    table[path[-1]] = copy.deepcopy(value)


def under(tables: Mapping[str, Any], own: Any, label: str) -> dict[str, Any]:
    """The tables of conditions as they are under what an algorithm's own table says. Raises BadInput."""
    key = typed(["algorithms", label, UNDER])
    if not isinstance(own, Mapping):
        raise BadInput(key, own, "a table")
    for name in own:
        if name not in CONDITIONS:
            raise unknown(key, name, CONDITIONS)
    return _merged(tables, own)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one: what the second says wins, table by table."""
    both = {**first, **second}
    for name, value in first.items():
        other = second.get(name, NOTHING)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            both[name] = _merged(value, other)
    return both

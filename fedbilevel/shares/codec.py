"""Objects as plain JSON and arrays, so that a file of them can be read without executing anything that it says.

What it knows: None, truths, numbers, text, lists, tuples, dicts, tensors, arrays, dtypes, and, attribute by attribute,
objects of our own classes or of those of a user's file that has run in this process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.user_files import is_users

Arrays = dict[str, NDArray[Any]]

_OURS = "fedbilevel."
_PLAIN = (bool, int, float, str)


class Unknown(TypeError):
    """A value that cannot be written or read; says where it stands."""


def encode(value: Any, arrays: Arrays, place: str) -> Any:
    """Return a value as JSON; its tensors and arrays go to `arrays`, under names that begin with `place`.

    Raises Unknown.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor | np.ndarray) and (held := _array(value)).dtype.kind in "biuf":
        name = place if place not in arrays else f"{place} {len(arrays)}"
        arrays[name] = held
        return {"tensor" if isinstance(value, Tensor) else "array": name}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(each, arrays, f"{place}.{k}") for k, each in enumerate(value)]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: encode(each, arrays, f"{place}.{key}") for key, each in value.items()}}
    kind = type(value)
    if not _may(kind.__module__) or "." in kind.__qualname__:
        raise Unknown(f"{place} is of {kind.__module__}.{kind.__qualname__}")
    name = f"{kind.__module__}:{kind.__name__}"
    if isinstance(value, tuple):
        return {"named": name, "items": [encode(each, arrays, f"{place}.{k}") for k, each in enumerate(value)]}
    attributes, seen = {}, dict[int, str]()
    for key, each in vars(value).items():  # levels that are the same object stay so
        known = seen.setdefault(id(each), key) if hasattr(each, "__dict__") else key
        attributes[key] = encode(each, arrays, f"{place}.{key}") if known == key else {"same": known}
    return {"object": name, "attributes": attributes}


def decode(told: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the value that was encoded; its tensors are copies. Raises Unknown, or KeyError without an array."""
    if told is None or type(told) in _PLAIN:
        return told
    match told:
        case {"tensor": name}:
            return torch.from_numpy(np.array(arrays[name]))
        case {"array": name}:
            return np.array(arrays[name])
        case {"dtype": name} if isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        case {"list": items}:
            return [decode(each, arrays) for each in items]
        case {"tuple": items}:
            return tuple(decode(each, arrays) for each in items)
        case {"dict": items}:
            return {key: decode(each, arrays) for key, each in items.items()}
        case {"named": name, "items": items}:
            if issubclass(kind := _class(name), tuple):
                return tuple.__new__(kind, [decode(each, arrays) for each in items])
        case {"object": name, "attributes": attributes}:
            made = object.__new__(_class(name))
            own = vars(made)
            for key, each in attributes.items():
                own[key] = own[each["same"]] if isinstance(each, dict) and "same" in each else decode(each, arrays)
            return made
    raise Unknown(f"{str(told)[:60]!r} is no value")


def _array(value: Tensor | NDArray[Any]) -> NDArray[Any]:
    return value.numpy(force=True) if isinstance(value, Tensor) else value


def _may(module: str) -> bool:
    return module.startswith(_OURS) or is_users(module)


def _class(name: str) -> type[Any]:
    module, _, attribute = name.partition(":")
    if not _may(module):
        raise Unknown(f"{name} is no class of ours")
    try:
        found = getattr(sys.modules[module] if is_users(module) else importlib.import_module(module), attribute)
    except (KeyError, ImportError, AttributeError):
        raise Unknown(f"{name} is not here") from None
    if not isinstance(found, type) or found.__module__ != module:
        raise Unknown(f"{name} is no class of ours")
    return found

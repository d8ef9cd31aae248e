"""Where tensors live: the devices by name, and a problem brought to one of them."""

from __future__ import annotations

import copy
import weakref
from typing import Any, Literal

import torch
from torch import Tensor

from fedbilevel.errors import BadInput
from fedbilevel.problem import ClientData, Problem, Ragged, map_examples

Device = Literal["auto", "cpu", "cuda"]

_PLACED: weakref.WeakValueDictionary[tuple[int, str], Problem] = weakref.WeakValueDictionary()


def chosen(name: Device, key: str = "run.device") -> torch.device:
    """The device of this name; "auto" is a CUDA card where this process sees one, else the CPU.

    Raises BadInput for "cuda" where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput(key, name, '"cpu" or "auto": this machine has no CUDA card that torch can use')
    return at_hand(name)


def at_hand(name: Device) -> torch.device:
    """The device that this process can use under that name: the CPU where it sees no card."""
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def tensors_to(value: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    """The same value with its clients' data and tensors on a device, floating-point ones in a dtype; None: as it is.

    Looks into lists, tuples, dicts and `Ragged`; what holds no tensor is returned itself.
    """
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, ClientData):
        moved = copy.copy(value)
        moved.lower, moved.upper = value.each(lambda level: tensors_to(level, dtype, device))
        return moved
    if isinstance(value, Ragged):
        return Ragged(map_examples(lambda t: tensors_to(t, dtype, device), value.values), value.offsets)
    if isinstance(value, dict):
        return {key: tensors_to(inner, dtype, device) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(tensors_to(inner, dtype, device) for inner in value)
    return value


def moved(problem: Problem, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Problem:
    """The same problem with its clients' data and its own tensors in another dtype, on another device."""
    other = copy.copy(problem)
    for name, value in vars(problem).items():
        setattr(other, name, tensors_to(value, dtype, device))
    return other


def placed(problem: Problem, device: torch.device) -> Problem:
    """The problem on a device: itself if it is there, else a copy that all who ask share while one of them holds it."""
    if where(problem) == device.type:
        return problem
    key = (id(problem), device.type)
    found = _PLACED.get(key)
    if found is None:
        found = moved(problem, None, device)
        found.__dict__["_placed_from"] = problem  # its id stays taken while the copy lives
        _PLACED[key] = found
    return found


def where(problem: Problem) -> str:
    """The type of the device that holds the problem's data."""
    found: list[str] = []
    map_examples(lambda t: found.append(t.device.type) or t, problem.clients.lower.values)  # type: ignore[func-returns-value]  # append
    return found[0]

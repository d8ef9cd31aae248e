"""How a client adapts to a task, and how it differentiates through that: one method, one file, entered by name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from clients.methods.method import TABLE, Method


@functools.cache
def methods() -> Mapping[str, Method]:
    """Return every method by name: each file of this package enters its own."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return TABLE

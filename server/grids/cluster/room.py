"""How much room there is: on this machine, and on the machines that Ray has."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

BOOKS_SECONDS = 2.0
"""How far behind Ray's books of what is free may be."""


def processors() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_room(all_of_them: int, waiting: int, cpus: float, gpus: float) -> bool:
    """Whether Ray has room for what waits to begin, of which each reserves so much of a machine.

    A private Ray is used by this process alone: what its machines hold in all is what counts. On a cluster others take
    their share, and what is free now has to hold those that have no place yet.
    """
    node: Any = ray._private.worker._global_node
    state: Any = ray._private.state
    if _places(cpus, gpus, state.total_resources_per_node()) < all_of_them:
        return False
    if node is not None and node.is_head():
        return True
    deadline = time.monotonic() + BOOKS_SECONDS
    while waiting > _places(cpus, gpus, state.available_resources_per_node()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def room(cpus: float, gpus: float) -> str:
    """Say what is reserved."""
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def _places(cpus: float, gpus: float, nodes: Mapping[str, Mapping[str, float]]) -> float:
    """How many reservations of this size these machines hold."""

    def of(resources: Mapping[str, float]) -> float:
        asked = {"CPU": cpus, "GPU": gpus}
        return min((resources.get(name, 0.0) // each for name, each in asked.items() if each > 0), default=math.inf)

    return sum(of(resources) for resources in nodes.values())


def leased(actors: Sequence[Any]) -> int:
    """How many of these actors have a process that Ray has given them."""
    table: Any = ray._private.state.actors
    return sum(bool(table(actor._actor_id.hex()).get("Address", {}).get("IPAddress")) for actor in actors)

"""Every algorithm a second time: plain numpy in float64, one Python loop over the clients, on quadratics.

Written from the published recurrences and kept apart from the library: tests hold the library's iterates against these.
One file per family, one function per algorithm, entered under its name by `implements`; a file enters its own by being
here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from fedbilevel.problems import MinimaxQuadratic, Quadratic
from tests.reference.federation import ALGORITHMS, Entry, Memory, Round
from tests.reference.quadratic import Client, Dense, Vector, clients_of
from tests.reference.saddle import players_of
from tests.reference.server import Server

__all__ = ["ALGORITHMS", "Client", "Dense", "Entry", "clients_of", "run"]

for _family in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_family.name}")


def run(
    name: str,
    problem: Quadratic | MinimaxQuadratic,
    x: Vector,
    y: Vector,
    iterations: int,
    options: dict[str, Any],
    *,
    sets: Sequence[Sequence[int]] | None = None,
    unbiased: bool = False,
    seed: int = 0,
) -> list[Entry]:
    """Run an algorithm with the library's option names.

    local_steps, upper_local_steps: one number, or one per client; sets: the clients of each iteration (default: all).
    """
    clients: Any = players_of(problem) if isinstance(problem, MinimaxQuadratic) else clients_of(problem)
    m = len(clients)
    step, unless_given = ALGORITHMS[name]
    o = {**unless_given, **options}
    o.setdefault("neumann_step", o.get("lower_step"))
    for key in {"local_steps", "upper_local_steps"} & o.keys():
        o[key] = [o[key]] * m if isinstance(o[key], int) else list(o[key])
    memory, entries, server = Memory(seed=seed), [], Server(o)
    plain = not {"upper_optimiser", "upper_schedule", "upper_weight_decay"} & set(o)
    for k in range(iterations):
        memory.k = k
        fed = Round(clients, range(m) if sets is None else sets[k], unbiased)
        entry = step(fed, x, y, memory, o)
        if not plain:
            entry = entry._replace(x=server.step(x, (x - entry.x) / o["upper_step"]))
        x, y = entry.x, entry.y
        entries.append(entry)
    return entries

"""The engines by name: what carries the messages of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clients.app import make_app
from clients.node import Node, Setting
from fedbilevel.errors import BadInput, unknown
from fedbilevel.federation.messages import Exchange
from fedbilevel.machine.processes import MOST_WORKERS, require_processes
from fedbilevel.problem import Problem
from server.grids.exchange import GridExchange, Placement
from server.grids.local import LocalGrid

ENGINES: dict[str, str] = {
    "local": "in this process, over a Flower Grid without daemons: a laptop, a debugger, tests",
    "ray": "over a Flower Grid of pinned Ray actors, on this machine or on a cluster: large federations",
}
"""Engines that `fedbilevel run --engine` knows, one line each. A further engine is a Grid and a row here."""
TAKES: dict[str, tuple[str, ...]] = {"local": ("workers",), "ray": ("workers", "threads", "cpus", "gpus", "patience")}
"""The keys of the table [engine] that an engine reads; `patience` also holds for the runs of --jobs."""

Carrier = Callable[[Problem, Setting], Exchange]
"""What an open engine is: it gives the exchange that carries one run's messages."""


@contextmanager
def opened(
    name: str,
    *,
    workers: int | None = None,
    threads: int | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    ray_address: str | None = None,
    patience: float = 60.0,
) -> Iterator[Carrier]:
    """Have an engine while this lasts; nothing of it runs on afterwards.

    Parameters
    ----------
    name
        A name of `ENGINES`.
    workers
        Nodes over which the clients are spread: default one on the engine local, and one actor per CPU on ray.
    threads, cpus, gpus
        Of each actor on ray: threads of torch (default: CPUs / workers), and what it reserves of a machine.
    ray_address
        "host:port" or "auto": join this Ray cluster, and leave it as it is afterwards; default: a Ray of its own.
    patience
        Seconds in which an actor has to be ready.

    Raises BadInput for what cannot be used, an address where no Ray answers included; RunFailed without room.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise BadInput("workers", workers, f"an integer of at least 1 and at most {MOST_WORKERS}")
    if name == "local":
        if ray_address is not None:
            raise BadInput("ray_address", ray_address, "nothing, since the engine is local")
        yield functools.partial(in_process, workers=workers or 1)
        return
    from server.grids.actors import Shares  # the import of ray takes as long as that of torch
    from server.grids.cluster.connection import connected
    from server.grids.ray import RayGrid

    shares = Shares(workers, threads, cpus, gpus, patience)
    if ray_address is None:
        require_processes(workers or 1, "workers")
    with connected(ray_address, cpus=shares.needed), RayGrid(shares) as grid:
        yield grid.exchange


def in_process(problem: Problem, setting: Setting, workers: int = 1) -> Exchange:
    """Return an exchange with `workers` nodes in this process. Raises BadInput for fewer than one."""
    if workers < 1:
        raise BadInput("workers", workers, "an integer of at least 1")
    nodes = [Node(problem, setting)]
    grid = LocalGrid(make_app(lambda setup: nodes[0]), nodes=workers)
    return GridExchange(Placement(grid, len(problem.clients)), "")

"""The engines by name: what carries the messages of a run."""

from __future__ import annotations

from clients.app import make_app
from clients.node import Node, Setting
from fedbilevel.errors import BadInput
from fedbilevel.messages import Exchange
from fedbilevel.problem import Problem
from server.grids.exchange import GridExchange, Placement
from server.grids.local import LocalGrid

ENGINES: dict[str, str] = {
    "local": "in this process, over a Flower Grid without daemons: a laptop, a debugger, tests",
}
"""Engines that `fedbilevel run --engine` knows, one line each. A further engine is a Grid and a row here."""


def in_process(problem: Problem, setting: Setting, workers: int = 1) -> Exchange:
    """Return an exchange with `workers` nodes in this process. Raises BadInput for fewer than one."""
    if workers < 1:
        raise BadInput("workers", workers, "an integer of at least 1")
    nodes = [Node(problem, setting)]
    grid = LocalGrid(make_app(lambda setup: nodes[0]), nodes=workers)
    return GridExchange(Placement(grid, len(problem.clients)), "")

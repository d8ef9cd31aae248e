"""Deals a config's problem to the parties of a deployment: a file for each node, and one for the server.

What is written is read back and held against the whole: one outer iteration over nodes that hold a file each has to
give what it gives over all examples in one place.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clients.app import app
from clients.node import Setting
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config
from fedbilevel.errors import BadInput, ClientFailed, RunFailed
from fedbilevel.federation.messages import Exchange
from fedbilevel.problem import Problem
from fedbilevel.results.history import Row
from fedbilevel.shares.cut import for_node, for_server, kept_measures
from fedbilevel.shares.share import Share
from server.grids.engines import in_process
from server.grids.exchange import GridExchange, Placement, block_ends
from server.grids.local import LocalGrid
from server.running.plan import Job, check_problem, plan
from server.running.run import initial, run_one

SERVER = "server.npz"
"""The server's file."""


def node_file(partition: int) -> str:
    """The file of a node.

    >>> node_file(0)
    'node-0.npz'
    """
    return f"node-{partition}.npz"


@dataclass(frozen=True)
class Dealt:
    """What was written: the folder, where each node's clients end, and the measures that the server cannot take."""

    folder: Path
    ends: list[int]
    lost: list[str]


def deal(config: Config, nodes: int, out: Path, seed: int | None = None) -> Dealt:
    """Write the files of a deployment into a new folder, which is there whole or not at all.

    Node j gets the j-th of `nodes` contiguous blocks of clients, as the server asks for them. seed: of the run, by
    default the first of the config; where the problem or its partition is drawn by it, runs of other seeds are refused.

    Raises BadInput for a folder that is there and not empty, for more nodes than clients, and for a problem that cannot
    be taken apart: whose losses read more than a client's own examples, say.
    """
    wanted = config.run.seeds[0] if seed is None else seed
    one = config.model_copy(update={"run": config.run.model_copy(update={"seeds": [wanted], "solution_every": 0})})
    jobs = plan(one)
    check_problem(jobs)
    setup = jobs[0].setup()
    problem = setup.problem()
    if not 1 <= nodes <= len(problem.clients):
        raise BadInput("--nodes", nodes, f"an integer from 1 to the number of clients, {len(problem.clients)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput("--out", str(out), "a new folder or an empty one")
    part = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True, mode=0o700)
        ends, lost = _write(problem, setup, nodes, part)
        _hold(jobs[0], problem, part, nodes)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise BadInput("--out", str(out), f"a folder that can be made ({error.strerror})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Dealt(out, ends, lost)


def _write(problem: Problem, setup: Setup, nodes: int, folder: Path) -> tuple[list[int], list[str]]:
    x, y = initial(problem, setup.seed)
    server = for_server(problem)
    measures = kept_measures(problem, server, x, y)
    ends = block_ends(len(problem.clients), nodes).tolist()
    for j, (first, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        Share.of(for_node(problem, first, end), setup, j, nodes, (first, end)).write(folder / node_file(j))
    Share.of(server, setup, None, nodes, measures=measures).write(folder / SERVER)
    return ends, measures[1]


def _hold(job: Job, problem: Problem, folder: Path, nodes: int) -> None:
    """See that an iteration over the files gives what it gives over the problem as a whole. Raises BadInput."""
    setup = job.setup()
    share = Share.read(folder / SERVER)
    server = share.problem(setup)
    grid = LocalGrid(app, nodes, own=[{"data": str(folder / node_file(j))} for j in range(nodes)])
    over_files = GridExchange(Placement(grid, len(server.clients)), setup.model_dump_json())
    wanted = _iteration(job, problem, in_process(problem, Setting.of(setup)))
    allowed = "a problem whose start and losses read nothing of its data but a client's own examples"
    name = setup.problem_table.name
    try:
        found = _iteration(job, server, over_files)
    except (ClientFailed, RunFailed, AttributeError, LookupError) as error:
        raise BadInput("problem.name", name, f"{allowed} ({error})") from error
    for row, other in zip(wanted, found, strict=True):
        if strange := _differ(row, other, set(share.lost)):
            raise BadInput("problem.name", name, f"{allowed}, and over the files `{strange}` is another")


def _iteration(job: Job, problem: Problem, exchange: Exchange) -> list[Row]:
    run = job.run()
    table = run.table.model_copy(update={"iterations": 1, "rounds": None, "stop_at": None, "evaluate_every": 1})
    return run_one(replace(run, table=table), problem, exchange, say=lambda text: None).history


def _differ(row: Mapping[str, Any], other: Mapping[str, Any], lost: set[str]) -> str | None:
    """The first column in which two rows differ."""
    for name, value in row.items():
        if name == "wall_seconds" or name in lost or name.removeprefix("metric_") in lost:
            continue
        found = other.get(name)
        if isinstance(value, float) and isinstance(found, float):
            if not math.isclose(value, found, rel_tol=1e-4, abs_tol=1e-6):
                return name
        elif value != found:
            return name
    return None

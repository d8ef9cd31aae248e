"""The Flower ServerApp: what `flwr run .` runs on the server's side, over whatever nodes Flower provides."""

from __future__ import annotations

import functools
import logging
import time
from datetime import datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedbilevel.config.packaged import packaged, packaged_configs
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config, read
from fedbilevel.errors import BadInput, RunFailed, unknown
from fedbilevel.federation.messages import Exchange
from fedbilevel.machine.processes import MOST_PATIENCE
from fedbilevel.problem import Problem
from fedbilevel.report import RunDirectory
from fedbilevel.results.history import Row
from fedbilevel.shares.share import Share
from server.grids.exchange import GridExchange, Placement
from server.running.experiment import Experiment, Observer
from server.running.plan import Job, ProblemOf, check_problem, plan, written

PATIENCE = 120.0
"""Seconds in which a node has to reply, unless the run config says otherwise: every message starts a process there."""
LOG_SECONDS = 2.0
"""A run's evaluations are logged at most this often."""

log = logging.getLogger("flwr.fedbilevel")  # below Flower's logger, which Flower streams to the user

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run every algorithm and seed of a config on the grid's nodes and write a run directory.

    Reads from the run config (`[tool.flwr.app.config]` in pyproject.toml, `flwr run --run-config`): `config`, a name
    in experiments/configs or an absolute path; `set`, overrides table.key=value, separated by semicolons; `out`, the
    run directory, by default runs/<config>-flower-<time>. A relative `out` counts from the current directory of this
    process, which on a SuperLink that `flwr run` has started is where it was started. The log ends with the absolute
    path. `data`: where every node has a file of its own, the server's, which `fedbilevel deal` wrote beside them;
    `patience`: with systems.failures = "drop", the seconds after which a node that has not replied is left out.

    Raises BadInput for what cannot be used, and RunFailed if a run has failed, after the others are done.
    """
    try:
        _run(grid, context)
    except Exception as error:
        # SystemExit would not do: Flower's simulation takes a ServerApp that leaves by it for one that succeeded
        log.error("%s", error)
        raise


def _run(grid: Grid, context: Context) -> None:
    given = {key: str(context.run_config.get(key, "")).strip() for key in ("config", "set", "out", "data")}
    path = _config_path(given["config"] or "flower.toml")
    config = read(path, [part for part in given["set"].split(";") if part.strip()])
    problem_of: ProblemOf = Setup.problem
    if given["data"]:
        share = _server_share(given["data"])
        config, problem_of = _without_examples(config, share), share.problem
    jobs = plan(config)
    check_problem(jobs, problem_of)
    text = written(config)
    patience = _patience(context)
    dropping = {job.setup().run for job in jobs if job.run().systems.failures == "drop"}

    @functools.cache
    def placement(clients: int) -> Placement:
        return Placement(grid, clients)

    def connect(setup: Setup, problem: Problem) -> Exchange:
        placed = placement(len(problem.clients))
        return GridExchange(placed, setup.model_dump_json(), drop=setup.run in dropping, patience=patience)

    connect(jobs[0].setup(), problem_of(jobs[0].setup()))  # without nodes all runs fail, so fail once and now
    out = given["out"] or f"runs/{path.stem}-flower-{datetime.now():%Y%m%d-%H%M%S}"
    directory = RunDirectory.create(Path(out).expanduser().absolute())
    directory.write_config(text)
    failures = Experiment(config, directory, connect, Log(), problem_of).run()
    log.info("Results: %s", directory.path)
    if failures:
        raise RunFailed(f"{len(failures)} of {len(jobs)} runs failed, the first: {failures[0][1]}")


def _server_share(path: str) -> Share:
    """Read the server's file. Raises BadInput for another, a node's for one: the server is not to hold examples."""
    share = Share.read(path)
    if share.partition is not None:
        raise BadInput("data", path, "the server's file, and it is that of a node")
    return share


def _without_examples(config: Config, share: Share) -> Config:
    """The config of a server that holds no example: what would take them is off, and the log says so."""
    off = ["value, gradient_norm and hypergradient_error at the true lower solution", *share.lost]
    log.info("the server holds no client's examples; not measured: %s", ", ".join(off))
    return config.model_copy(update={"run": config.run.model_copy(update={"solution_every": 0})})


def _patience(context: Context) -> float:
    given = context.run_config.get("patience", PATIENCE)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= MOST_PATIENCE:
        raise BadInput("patience", given, f"a number of seconds above 0 and at most {MOST_PATIENCE:g}")
    return float(given)


def _config_path(name: str) -> Path:
    """Return the file that the run config names. Raises BadInput for a name that is not in experiments/configs."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    found = packaged(name)
    if found is None:
        raise BadInput("config", name, f"an absolute path, {unknown('', name, packaged_configs()).allowed}")
    return found


class Log(Observer):
    """Logs what happens, one plain line each."""

    def __init__(self) -> None:
        self._logged = 0.0
        self._row: Row | None = None

    def planned(self, jobs: list[Job]) -> None:
        """Log how many runs there will be."""
        log.info("%d runs", len(jobs))

    def started(self, job: Job) -> None:
        """Log the run that begins."""
        log.info("%s, seed %d: begins", job.label, job.seed)
        self._row, self._logged = None, time.monotonic()

    def row(self, job: Job, row: Row) -> None:
        """Log an evaluation, unless one was logged just now."""
        self._row = row
        if time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            log.info("%s, seed %d: %s", job.label, job.seed, _line(row))

    def noted(self, job: Job, text: str) -> None:
        """Log what the reader of the results should know."""
        log.warning("%s", text)

    def ended(self, job: Job, error: Exception | None) -> None:
        """Log how the run ended."""
        if error is not None:
            log.error("failed: %s", error)
        elif self._row is not None:
            cause = job.cause(self._row)
            early = f", ended by run.{cause}" if cause else ""
            log.info("%s, seed %d: done, %s%s", job.label, job.seed, _line(self._row), early)


def _line(row: Row) -> str:
    line = f"round {row['round']}, upper loss {row['upper_loss']:.4f}"
    accuracy = row.get("test_accuracy")
    return line if accuracy is None else f"{line}, accuracy {accuracy:.3f}"

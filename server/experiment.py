"""An experiment: every algorithm of a config for every seed, into one run directory, in a way that can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clients.node import Setting
from fedbilevel.config import Config, DataTable, ProblemTable
from fedbilevel.data import partition_parameters
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.messages import Exchange
from fedbilevel.problem import Problem
from fedbilevel.problems import needs_data
from fedbilevel.problems.build import defaults
from fedbilevel.results import RunDirectory
from fedbilevel.setup import Setup
from fedbilevel.validation import typed, unknown_key
from server.algorithm import Entry, find, option_names
from server.checkpoints import Checkpoint, Checkpoints
from server.grids.engines import Carrier, in_process, opened
from server.options import Options
from server.simulation import Row, Run, initial, run_one

WRITE_SECONDS = 1.0
"""History and checkpoints are written at most this often while a run goes on, and always when it ends."""

Connect = Callable[[Setup, Problem], Exchange]
"""What an engine is to an experiment: the exchange that carries one run's messages."""


@dataclass(frozen=True)
class Job:
    """One algorithm with its options, for one seed."""

    label: str
    seed: int
    entry: Entry
    options: Options
    config: Config

    def run(self) -> Run:
        """Return what the loop needs."""
        algorithm = self.entry.factory(self.options)
        return Run(self.label, self.seed, algorithm, self.config.run, self.config.systems)

    def setup(self) -> Setup:
        """Return what a worker needs."""
        return Setup.of(self.config, self.label, self.seed)

    @property
    def goal(self) -> int:
        """The rounds or iterations after which the run ends."""
        return self.config.run.rounds or self.config.run.iterations or 0

    @property
    def unit(self) -> str:
        """What the goal counts."""
        return "rounds" if self.config.run.rounds else "iterations"

    def reached(self, row: Mapping[str, Any]) -> int:
        """How much of the goal a row of its history stands for."""
        return int(row["round" if self.config.run.rounds else "iteration"])

    def key(self, option: str) -> str:
        """Where the config holds this option: in the algorithm's own table, or in `[options]`."""
        own = option in self.config.algorithms[self.label]
        return typed(["algorithms", self.label, option] if own else ["options", option])


class Observer:
    """Told what happens; does nothing itself. The person's display derives from it."""

    def planned(self, jobs: list[Job]) -> None:
        """The jobs that will run."""

    def started(self, job: Job) -> None:
        """A job begins."""

    def stepped(self, job: Job, iteration: int, rounds: int) -> None:
        """An outer iteration is done."""

    def row(self, job: Job, row: Row) -> None:
        """An evaluation is done."""

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job is done, or failed."""


def plan(config: Config) -> list[Job]:
    """Every job of a config, seed by seed.

    A table `[algorithms.LABEL]` runs the algorithm LABEL, or the one its key `algorithm` names. `[options]` goes to
    every algorithm that has those options; an algorithm's own table wins.

    Raises BadInput for unknown algorithms and options, options nobody reads, and values out of range.
    """
    chosen: list[tuple[str, Entry, Options]] = []
    read: set[str] = set()
    for name in config.options:
        if name not in option_names():
            raise unknown_key("options", name, config.options[name], option_names())
    for label, table in config.algorithms.items():
        key = f"algorithms.{label}"
        own = {name: value for name, value in table.items() if name != "algorithm"}
        named = table.get("algorithm", label)
        if not isinstance(named, str):
            raise BadInput(f"{key}.algorithm", named, "the name of an algorithm")
        entry = find(named, f"{key}.algorithm" if "algorithm" in table else key)
        shared = {name: value for name, value in config.options.items() if name in entry.options.model_fields}
        read |= set(shared)
        entry.parse(own, key)
        if shared:
            entry.parse(shared, "options")
        chosen.append((label, entry, entry.parse(shared | own, key)))
    if unread := set(config.options) - read:
        name = min(unread)
        raise BadInput(f"options.{name}", config.options[name], "options that an algorithm of this config takes")
    return [Job(label, seed, entry, options, config) for seed in config.run.seeds for label, entry, options in chosen]


def resolved(config: Config) -> Config:
    """Return the same config with everything written out: options, and what problem, data and partition take."""
    problem = ProblemTable.model_validate(defaults(config.problem.name) | config.problem.model_dump())
    data = config.data
    if data is None and needs_data(problem.name):
        data = DataTable()
    if data is not None:
        data = DataTable.model_validate(partition_parameters(data.partition) | data.model_dump())
    first = config.run.seeds[0]
    tables = {
        job.label: {"algorithm": job.entry.name, **job.options.model_dump(mode="json", exclude_none=True)}
        for job in plan(config)
        if job.seed == first
    }
    return config.model_copy(update={"problem": problem, "data": data, "options": {}, "algorithms": tables})


def check_problem(jobs: Iterable[Job]) -> None:
    """Build the problem of every seed and hold every job against it. Raises BadInput."""
    for job in jobs:
        problem = job.setup().problem()
        job.entry.hold(problem, f"algorithms.{job.label}")
        try:
            job.run().check(problem, job.options)
        except BadInput as error:
            table, _, option = error.key.partition(".")
            if table != "options":
                raise
            raise BadInput(job.key(option), error.value, error.allowed) from error
        _check_indices(job)


def _check_indices(job: Job) -> None:
    """What an algorithm would say of its random indices in the middle of a run. Raises BadInput."""
    options: Any = job.options
    if getattr(options, "estimator", "sum") != "sample":
        return
    N = getattr(options, "N", None) or options.neumann_terms
    if N < 1:
        allowed = 'an integer of at least 1 with estimator = "sample"'
        raise BadInput(job.key("neumann_terms"), N, allowed)
    for position, index in enumerate(getattr(options, "indices", None) or ()):
        if index >= N:
            raise BadInput(f"{job.key('indices')}[{position}]", index, f"an integer from 0 to {N - 1}")


def over(carrier: Carrier) -> Connect:
    """Let an open engine carry an experiment's runs."""

    def connect(setup: Setup, problem: Problem) -> Exchange:
        setting = Setting(setup.seed, setup.batch_size, setup.gradient_batch_size, setup.device)
        return carrier(problem, setting)

    return connect


local: Connect = over(in_process)
"""The engine `local`: one node in this process."""


@contextmanager
def engine(name: str, **options: Any) -> Iterator[Connect]:
    """Have an engine while this lasts; options and errors are those of `server.grids.engines.opened`."""
    with opened(name, **options) as carrier:
        yield over(carrier)


class Experiment:
    """Runs the jobs of a config and keeps `history.csv` and checkpoints up to date while they run."""

    def __init__(self, config: Config, directory: RunDirectory, connect: Connect, observer: Observer) -> None:
        self.config, self.directory, self.connect, self.observer = config, directory, connect, observer
        self.jobs = plan(config)
        self.rows: dict[tuple[str, int], list[Row]] = {(job.label, job.seed): [] for job in self.jobs}
        self._checkpoints = Checkpoints(directory.path / "checkpoints")
        self._written = 0.0

    def restore(self) -> None:
        """Take up the rows that a run directory holds. Nothing is changed.

        Raises BadInput for rows that are not of this config, and for a damaged checkpoint.
        """
        history = str(self.directory.history_path)
        for line, row in enumerate(self.directory.read_history(), start=2):
            job = next((job for job in self.jobs if (job.label, job.seed) == (row["algorithm"], row["seed"])), None)
            if job is None:
                allowed = "rows of the algorithms and seeds of config.toml"
                raise BadInput(history, f"{row['algorithm']}, seed {row['seed']}", allowed)
            rows = self.rows[job.label, job.seed]
            place = row["iteration"], row["round"]
            if None in place or (rows and job.reached(row) <= job.reached(rows[-1])):
                raise BadInput(
                    f"{history}, row {line}", place, "an iteration and a round after those of the row before"
                )
            rows.append(row)
        for job in self.pending():
            self._checkpoint(job)

    def pending(self) -> list[Job]:
        """The jobs that are not done yet."""
        ends = [(job, self.rows[job.label, job.seed][-1:]) for job in self.jobs]
        return [job for job, end in ends if not end or job.reached(end[0]) < job.goal]

    def run(self) -> list[tuple[Job, Exception]]:
        """Run what is not done yet; a job that fails does not stop the others. Returns the failures.

        Whatever ends it (Ctrl-C too), all rows so far, the summary and the figures are written.
        """
        self.failures: list[tuple[Job, Exception]] = []
        pending = self.pending()
        self.observer.planned(pending)
        try:
            self.write()
            self._run_all(pending)
        finally:
            self.write()
            self.finish()
        if not self.failures:
            self._checkpoints.remove()
        return self.failures

    def _run_all(self, jobs: list[Job]) -> None:
        """Run one job after another."""
        for job in jobs:
            error: Exception | None = None
            self.observer.started(job)
            try:
                self._run(job)
            except RunFailed as failed:
                error = failed
            self._ended(job, error)

    def _ended(self, job: Job, error: Exception | None) -> None:
        if error is not None:
            self.failures.append((job, error))
        self.write()
        self.observer.ended(job, error)

    def _checkpoint(self, job: Job) -> Checkpoint | None:
        """Where a job can go on: None if it has to start over. Raises BadInput for a damaged file."""
        rows = self.rows[job.label, job.seed]
        if not rows:
            return None
        first = job.run().algorithm.init(*initial(job.setup().problem(), job.seed))
        checkpoint = self._checkpoints.load(f"{job.label}-{job.seed}", first)
        made = checkpoint is not None and any(row["iteration"] == checkpoint.iteration for row in rows)
        return checkpoint if made else None

    def _run(self, job: Job) -> None:
        setup = job.setup()
        problem = setup.problem()
        record = Record(self, job)
        try:
            exchange = self.connect(setup, problem)
            run_one(
                job.run(),
                problem,
                exchange,
                observe=record.row,
                resume=record.checkpoint,
                keep=record.keep,
                tick=record.tick,
            )
        finally:
            record.save()

    def history(self) -> list[Row]:
        """Every row so far, job by job."""
        return [row for rows in self.rows.values() for row in rows]

    def write(self) -> None:
        """Write `history.csv`."""
        self.directory.write_history(self.history())
        self._written = time.monotonic()

    def finish(self) -> list[dict[str, object]]:
        """Write the summary and the figures from the rows so far; returns the summary's rows."""
        return self.directory.finish(self.history(), self.config.title, self.config.run.targets)


class Record:
    """What is known of a job that goes on: it keeps the experiment's rows and files, and its observer, up to date.

    checkpoint: the latest, from which the job goes on when it begins or has to begin again; None: from its start.
    """

    def __init__(self, experiment: Experiment, job: Job) -> None:
        self.job, self._experiment = job, experiment
        self.checkpoint = experiment._checkpoint(job)
        self._rows = experiment.rows[job.label, job.seed]
        self.rewind()

    def rewind(self) -> None:
        """Forget the rows after the checkpoint."""
        end = -1 if self.checkpoint is None else self.checkpoint.iteration
        self._rows[:] = [row for row in self._rows if int(str(row["iteration"])) <= end]

    def row(self, row: Row) -> None:
        """Take up a row."""
        self._rows.append(row)
        self._experiment.observer.row(self.job, row)

    def tick(self, iteration: int, rounds: int) -> None:
        """Take note of an iteration."""
        self._experiment.observer.stepped(self.job, iteration, rounds)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint; files are written unless they were just now."""
        self.checkpoint = checkpoint
        if time.monotonic() - self._experiment._written >= WRITE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write history and checkpoint."""
        self._experiment.write()
        if self.checkpoint is not None and self.checkpoint.iteration > 0:
            self._experiment._checkpoints.save(f"{self.job.label}-{self.job.seed}", self.checkpoint)

"""An experiment: every algorithm of a config for every seed, into one run directory, in a way that can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from clients.node import Setting
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.federation.messages import Exchange
from fedbilevel.problem import Problem
from fedbilevel.report import RunDirectory
from fedbilevel.results.ending import ends_of
from fedbilevel.results.history import Row
from fedbilevel.results.models import has_model, write_model
from fedbilevel.results.targets import hold_target, hold_targets, measured
from server.grids.engines import Carrier, in_process, opened
from server.running.checkpoints import Checkpoint, Checkpoints
from server.running.plan import Job, ProblemOf, fingerprint, plan, resolved
from server.running.run import initial, run_one

WRITE_SECONDS = 1.0
"""History and checkpoints are written at most this often while a run goes on, and always when it ends."""

Connect = Callable[[Setup, Problem], Exchange]
"""What an engine is to an experiment: the exchange that carries one run's messages."""


class Observer:
    """Told what happens while an experiment runs; does nothing itself: derive from it, override what is wanted.

    The command line's displays and loggers do. It is called in the process that was started, whatever the engine, and
    the runs wait until it returns; what it raises ends them all.

    >>> class Best(Observer):
    ...     def row(self, job, row):
    ...         print(job.label, job.seed, row["round"], row["upper_loss"])
    >>> Experiment(config, RunDirectory.create("runs/mine"), local, Best()).run()  # doctest: +SKIP
    """

    def planned(self, jobs: list[Job]) -> None:
        """The jobs that will run."""

    def started(self, job: Job) -> None:
        """A job begins."""

    def stepped(self, job: Job, iteration: int, rounds: int) -> None:
        """An outer iteration is done."""

    def row(self, job: Job, row: Row) -> None:
        """An evaluation is done."""

    def noted(self, job: Job, text: str) -> None:
        """There is something about a job that the reader of its results should know."""

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job is done, or failed."""


class Several(Observer):
    """Observers that are all told, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._all = observers

    def planned(self, jobs: list[Job]) -> None:
        """The jobs that will run."""
        for each in self._all:
            each.planned(jobs)

    def started(self, job: Job) -> None:
        """A job begins."""
        for each in self._all:
            each.started(job)

    def stepped(self, job: Job, iteration: int, rounds: int) -> None:
        """An outer iteration is done."""
        for each in self._all:
            each.stepped(job, iteration, rounds)

    def row(self, job: Job, row: Row) -> None:
        """An evaluation is done."""
        for each in self._all:
            each.row(job, row)

    def noted(self, job: Job, text: str) -> None:
        """There is something about a job that the reader of its results should know."""
        for each in self._all:
            each.noted(job, text)

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job is done, or failed."""
        for each in self._all:
            each.ended(job, error)


def over(carrier: Carrier) -> Connect:
    """Let an open engine carry an experiment's runs."""

    def connect(setup: Setup, problem: Problem) -> Exchange:
        return carrier(problem, Setting.of(setup))

    return connect


local: Connect = over(in_process)
"""The engine `local`: one node in this process."""


@contextmanager
def engine(name: str, **options: Any) -> Iterator[Connect]:
    """Have an engine while this lasts; options and errors are those of `server.grids.engines.opened`."""
    with opened(name, **options) as carrier:
        yield over(carrier)


class Experiment:
    """Runs the jobs of a config and keeps `history.csv` and checkpoints up to date while they run.

    problem_of: what a run's setup becomes; a server that holds no example has another answer than `Setup.problem`.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        connect: Connect,
        observer: Observer,
        problem_of: ProblemOf = Setup.problem,
    ) -> None:
        self.config, self.directory, self.connect, self.observer = config, directory, connect, observer
        self._problem_of = problem_of
        self.jobs = plan(config)
        self.rows: dict[tuple[str, int], list[Row]] = {(job.label, job.seed): [] for job in self.jobs}
        self.fingerprint = fingerprint(resolved(config))
        self._checkpoints = Checkpoints(directory.path / "checkpoints", self.fingerprint)
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
        return [job for job, end in ends if not end or not job.finished(end[0])]

    def run(self) -> list[tuple[Job, Exception]]:
        """Run what is not done yet; a job that fails does not stop the others. Returns the failures in order.

        Whatever ends it (Ctrl-C too), all rows so far, the summary and the figures are written.
        """
        self.failures: list[tuple[Job, Exception]] = []
        pending = self.pending()
        self.directory.remove_parts()
        self._checkpoints.remove_parts()
        self.observer.planned(pending)
        try:
            self._complete_models(pending)
            self.write()
            self._run_all(pending)
        finally:
            self.write()
            self.finish()
        if not self.failures:
            self._checkpoints.remove()
        return sorted(self.failures, key=lambda failure: pending.index(failure[0]))

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
        first = job.run().algorithm.init(*initial(self._problem_of(job.setup()), job.seed))
        checkpoint = self._checkpoints.load(job.name, first)
        return checkpoint if checkpoint is not None and _agree(rows, checkpoint) else None

    def _run(self, job: Job) -> None:
        setup = job.setup()
        problem = self._problem_of(setup)
        record = Record(self, job)
        done = False
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
                say=record.say,
            )
            done = True
        finally:
            record.save(done=done)

    def _complete_models(self, pending: list[Job]) -> None:
        """Write the models of runs whose last row was written when a kill came, and whose model was not."""
        for job in self.jobs:
            if job not in pending and not has_model(self.directory.path, job.name):
                end = self._checkpoint(job)
                if end is not None and end.evaluations == len(self.rows[job.label, job.seed]):
                    self.keep_model(job, end)

    def keep_model(self, job: Job, end: Checkpoint) -> None:
        """Write the x and y at which a job has ended."""
        told = {"algorithm": job.label, "seed": job.seed, "iteration": end.iteration, "round": end.ledger["rounds"]}
        write_model(self.directory.path, job.name, end.state.x, end.state.y, {**told, "fingerprint": self.fingerprint})

    def history(self) -> list[Row]:
        """Every row so far, job by job."""
        return [row for rows in self.rows.values() for row in rows]

    def write(self) -> None:
        """Write `history.csv`."""
        self.directory.write_history(self.history())
        self._written = time.monotonic()

    def finish(self) -> list[dict[str, object]]:
        """Write the summary and the figures from the rows so far; returns the summary's rows."""
        ends = ends_of(self.config.run.ending, self.history(), self.rows)
        config = self.config
        return self.directory.finish(self.history(), config.title, config.run.targets, ends, config.algorithms)

    def look_over(self) -> None:
        """Raises BadInput for a target (or `stop_at`) in whose column no algorithm has had a value.

        Said when each has been evaluated after a step: what the clients of a method measure is not known before.
        """
        begun = {label for (label, _), rows in self.rows.items() if len(rows) > 1}
        if begun == set(self.config.algorithms):
            found, table = measured(self.history()), self.config.run
            hold_targets(table.targets, found)
            if table.stop_at is not None:
                hold_target(table.stop_at, found, "run.stop_at")


def _agree(rows: Sequence[Row], checkpoint: Checkpoint) -> bool:
    """Whether the rows lead to this checkpoint: as many of them, and the last with its very counts."""
    if not 0 < checkpoint.evaluations <= len(rows):
        return False
    row, ledger = rows[checkpoint.evaluations - 1], checkpoint.ledger
    counts = {"round": "rounds", "simulated_seconds": "simulated_seconds"}
    counts |= {name: name for name in ("uplink_bytes", "downlink_bytes")}
    same = all(row[column] == ledger[name] for column, name in counts.items())
    return same and row["iteration"] == checkpoint.iteration


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

    @property
    def over(self) -> bool:
        """Whether the job has ended as it should, and the checkpoint is of its end."""
        checkpoint, rows = self.checkpoint, self._rows
        return checkpoint is not None and checkpoint.evaluations == len(rows) and self.job.finished(rows[-1])

    def row(self, row: Row) -> None:
        """Take up a row. Raises BadInput as `Experiment.look_over` does."""
        self._rows.append(row)
        if len(self._rows) == 2:
            self._experiment.look_over()
        self._experiment.observer.row(self.job, row)

    def say(self, text: str) -> None:
        """Pass on what the reader of the results should know."""
        self._experiment.observer.noted(self.job, text)

    def tick(self, iteration: int, rounds: int) -> None:
        """Take note of an iteration."""
        self._experiment.observer.stepped(self.job, iteration, rounds)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint; files are written unless they were just now."""
        self.checkpoint = checkpoint
        if time.monotonic() - self._experiment._written >= WRITE_SECONDS:
            self.save()

    def save(self, *, done: bool = False) -> None:
        """Write history and checkpoint; done: the model too, since the checkpoint is of the run's end."""
        self._experiment.write()
        if done and self.checkpoint is not None:
            self._experiment.keep_model(self.job, self.checkpoint)
        if self.checkpoint is not None and (done or self.checkpoint.iteration > 0):
            self._experiment._checkpoints.save(self.job.name, self.checkpoint)

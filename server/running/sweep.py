"""Runs side by side as Ray tasks, each a `local` federation in a process of its own, and a sweep: an experiment so."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import ray
import torch

from fedbilevel.config.tables import Config, EngineTable
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.machine.processes import MOST_THREADS, MOST_WORKERS, require_processes
from fedbilevel.problem import Problem
from fedbilevel.report import RunDirectory
from fedbilevel.results.history import Row
from fedbilevel.user_files import UserFile, provide
from server.grids.actors import LIVES, reason
from server.grids.cluster.connection import connected
from server.grids.cluster.room import has_room, processors, room
from server.grids.parcels import pack, unpack
from server.running.checkpoints import Checkpoint
from server.running.experiment import WRITE_SECONDS, Experiment, Observer, Record, local
from server.running.plan import Job, plan
from server.running.run import run_one

REPORT_SECONDS = 0.1
"""A job reports what has happened this often."""

Event = Row | Checkpoint | tuple[int, int] | str | RunFailed
"""What a job reports: an evaluation, where it can go on, iteration and rounds so far, a note, or what ended it."""


class Rule(Protocol):
    """When a run may end early: asked after every iteration, in the process of the run."""

    def take(self, row: Row) -> None:
        """An evaluation is done."""

    def enough(self) -> bool:
        """Whether the run may end here."""


class Running:
    """A run that a pool has been handed: where it begins, and what becomes of its reports.

    checkpoint: from which it goes on when it begins or has to begin again; None: from its start.
    """

    def __init__(self, job: Job, checkpoint: Checkpoint | None = None) -> None:
        self.job, self.checkpoint = job, checkpoint
        self.begun = self.stopped = False
        self.deaths = 0
        self.error: Exception | None = None

    def rule(self) -> Rule | None:
        """When it may end early, by what is known when it begins or begins again."""
        return None

    def files(self) -> list[UserFile]:
        """The users' own files that its config names."""
        return files_of(plan(self.job.config))

    def started(self) -> None:
        """It begins."""

    def hear(self, event: Event) -> None:
        """It reports something, but what ended it."""

    def rewind(self) -> None:
        """Forget what came after the checkpoint: it begins again there."""

    def ended(self, error: Exception | None) -> None:
        """It is done, or failed."""

    def left(self) -> None:
        """It is interrupted."""

    @property
    def all_told(self) -> bool:
        """Whether its process may die, since all has been told that it had to tell."""
        return False

    def heard(self, events: Sequence[Event]) -> None:
        """Take up a report."""
        if not self.begun:
            self.begun = True
            self.started()
        for event in events:
            if isinstance(event, RunFailed):
                self.error = event
                continue
            if isinstance(event, Checkpoint):
                self.checkpoint, self.deaths = event, 0
            self.hear(event)

    def can_go_on(self, error: Exception) -> bool:
        """Whether to begin again after what Ray says of its process; if not, that is the run's error."""
        where = f"{self.job.label}, seed {self.job.seed}"
        self.deaths += 1
        if isinstance(error, ray.exceptions.RayTaskError):
            self.error = RunFailed(f"{where}: {reason(error)}")
        elif self.deaths >= LIVES:
            self.error = RunFailed(f"{where}: its process has died {LIVES} times in a row: {reason(error)}")
        return self.error is None


class Pool:
    """Runs up to `jobs` runs at a time, each in a process of its own, on this machine or on a cluster.

    A run whose process or machine dies goes on elsewhere from its latest checkpoint. Ctrl-C ends all.

    most: how many there ever are at a time. ray_address: "host:port" or "auto" joins a cluster; default: a private Ray
    on this machine. threads: of torch in each run; default: CPUs / jobs on this machine, 1 on a cluster. problems: how
    many of their problems are kept at hand.

    Raises BadInput for fewer than one run at a time; `run` raises BadInput for an address where no Ray answers, and
    RunFailed if Ray finds no room for a run.
    """

    def __init__(
        self,
        jobs: int,
        most: int,
        engine: EngineTable,
        *,
        ray_address: str | None = None,
        threads: int | None = None,
        problems: int = 1,
    ) -> None:
        for name, value, highest in (
            ("jobs", jobs, MOST_WORKERS),
            ("threads", 1 if threads is None else threads, MOST_THREADS),
        ):
            if not 1 <= value <= highest:
                raise BadInput(name, value, f"an integer of at least 1 and at most {highest}")
        jobs = min(jobs, most)
        if ray_address is None:
            require_processes(jobs, "jobs")
        self.at_once, self._address, self._engine = jobs, ray_address, engine
        self._threads = threads or (max(1, processors() // jobs) if ray_address is None else 1)
        self._reserve = self._threads if ray_address else 1
        self._running: dict[Any, Running] = {}
        self._parcels: dict[int, tuple[Problem, Any]] = {}
        self._problems = problems

    def run(self, begin: Callable[[], Running | None]) -> None:
        """Run what `begin` gives, which is asked when there is a place, until nothing runs and it gives nothing."""
        with connected(self._address, cpus=self.at_once):
            task = ray.remote(federation).options(
                num_cpus=self._reserve,
                num_gpus=self._engine.gpus,
                max_retries=0,
                scheduling_strategy="SPREAD",
            )
            try:
                self._run_side_by_side(task, begin)
            finally:
                for reports, running in self._running.items():
                    with contextlib.suppress(Exception):
                        ray.cancel(reports, force=True)
                    running.left()
                self._running.clear()
                self._parcels.clear()

    def stop(self, running: Running, *, cancel: bool = True) -> None:
        """Nothing is heard of a run any more, and it is made to end unless it does so by itself."""
        running.stopped = True
        for reports, each in self._running.items():
            if cancel and each is running:
                ray.cancel(reports)

    def _run_side_by_side(self, task: Any, begin: Callable[[], Running | None]) -> None:
        heard = time.monotonic()
        while True:
            while len(self._running) < self.at_once and (one := begin()) is not None:
                self._running[self._begin(task, one)] = one
            if not self._running:
                return
            ready: list[Any]
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0)
            if ready or any(running.begun for running in self._running.values()):
                heard = time.monotonic()
            elif time.monotonic() - heard > self._engine.patience:
                raise RunFailed(self._late(len(self._running)))
            for reports in ready:
                self._hear(task, reports, self._running.pop(reports))

    def _hear(self, task: Any, reports: Any, running: Running) -> None:
        """Take up the next report of a run, which is not among those that run while this lasts."""
        try:
            report: Any = next(reports)
            events: list[Event] = ray.get(report)
        except StopIteration:
            if not running.stopped:
                running.ended(running.error)
        except ray.exceptions.RayError as error:
            if running.stopped:
                return
            if running.all_told:
                running.ended(None)
            elif running.can_go_on(error):
                running.rewind()
                self._running[self._begin(task, running)] = running
            else:
                running.heard([])
                running.ended(running.error)
        else:
            self._running[reports] = running
            if not running.stopped:
                running.heard(events)

    def _late(self, waiting: int) -> str:
        """Say why no run has begun: there is no room for one, or it is slow to start."""
        patience, reserved = self._engine.patience, (self._reserve, self._engine.gpus)
        if has_room(1, waiting, *reserved):
            return f"slow start: no run has begun within {patience:g} s; engine.patience sets how long to wait"
        return f"no capacity: within {patience:g} s Ray has found no {room(*reserved)} for a run"

    def _begin(self, task: Any, running: Running) -> Any:
        """Let a run go on from its checkpoint; returns what its reports come from."""
        job = running.job
        problem = job.setup().problem()
        if id(problem) not in self._parcels:
            for old in list(self._parcels)[: len(self._parcels) - self._problems + 1]:
                del self._parcels[old]
            self._parcels[id(problem)] = (problem, ray.put(pack(problem)))
        parcel = self._parcels[id(problem)][1]
        run = (job.config, job.label, job.seed, running.checkpoint)
        return task.remote(parcel, running.files(), *run, self._threads, running.rule())


class Sweep(Experiment):
    """An experiment of which up to `jobs` jobs run at a time, in a `Pool`, whose parameters and errors it shares.

    Rows and checkpoints come to this process while the jobs run, so that files, display and resuming are those of an
    experiment; the jobs see no common files.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        observer: Observer,
        *,
        jobs: int,
        ray_address: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(config, directory, local, observer)
        self._pool = Pool(jobs, len(self.jobs), config.engine, ray_address=ray_address, threads=threads)

    def _run_all(self, jobs: list[Job]) -> None:
        waiting = deque(jobs)
        if waiting:
            self._pool.run(lambda: Recorded(Record(self, waiting.popleft()), self) if waiting else None)


class Recorded(Running):
    """A job of a sweep, whose reports go into the sweep's record of it."""

    def __init__(self, record: Record, sweep: Sweep) -> None:
        super().__init__(record.job, record.checkpoint)
        self._record, self._sweep = record, sweep

    def files(self) -> list[UserFile]:
        """As they were read when the sweep was planned: they may be gone by now."""
        return files_of(self._sweep.jobs)

    def started(self) -> None:
        """It begins."""
        self._sweep.observer.started(self.job)

    def hear(self, event: Event) -> None:
        """It reports something."""
        record = self._record
        if isinstance(event, Checkpoint):
            record.keep(event)
        elif isinstance(event, tuple):
            record.tick(*event)
        elif isinstance(event, str):
            record.say(event)
        elif not isinstance(event, RunFailed):
            record.row(event)

    @property
    def all_told(self) -> bool:
        """Whether its last row and its last checkpoint have been told."""
        return self._record.over

    def rewind(self) -> None:
        """Forget the rows after the checkpoint."""
        self._record.rewind()

    def ended(self, error: Exception | None) -> None:
        """It is done, or failed."""
        self._record.save(done=error is None)
        self._sweep._ended(self.job, error)

    def left(self) -> None:
        """It is interrupted: what is known of it is kept."""
        self._record.save()


def files_of(jobs: Sequence[Job]) -> list[UserFile]:
    """The users' own files that have entered the algorithms of these jobs."""
    return [job.entry.file for job in jobs if job.entry.file is not None]


def federation(
    packed: bytes,
    files: Sequence[UserFile],
    config: Config,
    label: str,
    seed: int,
    checkpoint: Checkpoint | None,
    threads: int,
    rule: Rule | None = None,
) -> Iterator[list[Event]]:
    """Run one job in this process and report, now and then, what has happened since; the first report is empty."""
    yield []
    happened: deque[Event] = deque()
    cancelled = threading.Event()

    def observe(row: Row) -> None:
        happened.append(row)
        if rule is not None:
            rule.take(row)

    def enough() -> bool:
        return cancelled.is_set() or (rule is not None and rule.enough())

    def work() -> None:
        torch.set_num_threads(threads)
        try:
            provide(files)
            problem = unpack(packed)
            [job] = [job for job in plan(config) if (job.label, job.seed) == (label, seed)]
            run_one(
                job.run(),
                problem,
                local(job.setup(), problem),
                observe=observe,
                resume=checkpoint,
                keep=happened.append,
                tick=lambda iteration, rounds: happened.append((iteration, rounds)),
                say=happened.append,
                enough=enough,
            )
        except RunFailed as error:
            happened.append(type(error)(str(error)))
        except Exception as error:
            happened.append(RunFailed(f"{label}, seed {seed}: {type(error).__name__}: {error}"))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from _reports(worker, happened)
    finally:
        cancelled.set()  # the process is there for the next run
        worker.join()


def _reports(worker: threading.Thread, happened: deque[Event]) -> Iterator[list[Event]]:
    """What has happened since, now and then while a thread works; of steps the latest, of checkpoints one a second."""
    saved = time.monotonic()
    latest: Checkpoint | None = None
    working = True
    while working:
        worker.join(REPORT_SECONDS)
        working = worker.is_alive()
        report: list[Event] = []
        step: tuple[int, int] | None = None
        for _ in range(len(happened)):
            event = happened.popleft()
            if isinstance(event, Checkpoint):
                latest = event
            elif isinstance(event, tuple):
                step = event
            else:
                report.append(event)
        if step is not None:
            report.append(step)
        if latest is not None and (time.monotonic() - saved >= WRITE_SECONDS or not working):
            report.append(latest)
            saved, latest = time.monotonic(), None
        if report:
            yield report

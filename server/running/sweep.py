"""A sweep: the jobs of an experiment side by side as Ray tasks, each a `local` federation in a process of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch

from fedbilevel.config.tables import Config
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.machine.processes import MOST_THREADS, MOST_WORKERS, require_processes
from fedbilevel.problem import Problem
from fedbilevel.report import RunDirectory
from fedbilevel.results.history import Row
from fedbilevel.user_files import UserFile, provide
from server.grids.actors import LIVES, reason
from server.grids.cluster import connected, has_room, processors, room
from server.grids.parcels import pack, unpack
from server.running.checkpoints import Checkpoint
from server.running.experiment import WRITE_SECONDS, Experiment, Observer, Record, local
from server.running.plan import Job, plan
from server.running.run import run_one

REPORT_SECONDS = 0.1
"""A job reports what has happened this often."""

Event = Row | Checkpoint | tuple[int, int] | str | RunFailed
"""What a job reports: an evaluation, where it can go on, iteration and rounds so far, a note, or what ended it."""


class Sweep(Experiment):
    """An experiment of which up to `jobs` jobs run at a time.

    Rows and checkpoints come to this process while the jobs run, so that files, display and resuming are those of an
    experiment; the jobs see no common files. A job whose process or machine dies goes on elsewhere from its latest
    checkpoint. Ctrl-C ends all.

    ray_address: "host:port" or "auto" joins a cluster; default: a private Ray on this machine. threads: of torch in
    each job; default: CPUs / jobs on this machine, 1 on a cluster.

    Raises BadInput for fewer than one job at a time; `run` raises BadInput for an address where no Ray answers, and
    RunFailed if Ray finds no room for a job.
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
        for name, value, most in (
            ("jobs", jobs, MOST_WORKERS),
            ("threads", 1 if threads is None else threads, MOST_THREADS),
        ):
            if not 1 <= value <= most:
                raise BadInput(name, value, f"an integer of at least 1 and at most {most}")
        super().__init__(config, directory, local, observer)
        jobs = min(jobs, len(self.jobs))
        if ray_address is None:
            require_processes(jobs, "jobs")
        self._at_once, self._address = jobs, ray_address
        self._threads = threads or (max(1, processors() // jobs) if ray_address is None else 1)
        self._reserve = self._threads if ray_address else 1
        self._parcel: tuple[Problem, Any] | None = None

    def _run_all(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        with connected(self._address, cpus=self._at_once):
            task = ray.remote(federation).options(
                num_cpus=self._reserve,
                num_gpus=self.config.engine.gpus,
                max_retries=0,
                scheduling_strategy="SPREAD",
            )
            running: dict[Any, Running] = {}
            try:
                self._run_side_by_side(task, deque(jobs), running)
            finally:
                for reports, job in running.items():
                    with contextlib.suppress(Exception):
                        ray.cancel(reports, force=True)
                    job.record.save()
                self._parcel = None

    def _run_side_by_side(self, task: Any, waiting: deque[Job], running: dict[Any, Running]) -> None:
        heard = time.monotonic()
        while waiting or running:
            while waiting and len(running) < self._at_once:
                job = Running(Record(self, waiting.popleft()))
                running[self._begin(task, job.record)] = job
            ready: list[Any]
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            if ready or any(job.started for job in running.values()):
                heard = time.monotonic()
            elif time.monotonic() - heard > self.config.engine.patience:
                raise RunFailed(self._late(len(running)))
            for reports in ready:
                job = running.pop(reports)
                try:
                    report: Any = next(reports)
                    events: list[Event] = ray.get(report)
                except StopIteration:
                    job.record.save(done=job.error is None)
                    self._ended(job.record.job, job.error)
                except ray.exceptions.RayError as error:
                    if job.can_go_on(error):
                        job.record.rewind()
                        running[self._begin(task, job.record)] = job
                    else:
                        self._hear(job, [])
                        job.record.save()
                        self._ended(job.record.job, job.error)
                else:
                    running[reports] = job
                    self._hear(job, events)

    def _late(self, waiting: int) -> str:
        """Say why no run has begun: there is no room for one, or it is slow to start."""
        patience, reserved = self.config.engine.patience, (self._reserve, self.config.engine.gpus)
        if has_room(1, waiting, *reserved):
            return f"slow start: no run has begun within {patience:g} s; engine.patience sets how long to wait"
        return f"no capacity: within {patience:g} s Ray has found no {room(*reserved)} for a run"

    def _begin(self, task: Any, record: Record) -> Any:
        """Let a job run from its checkpoint; returns what its reports come from."""
        job = record.job
        problem = job.setup().problem()
        if self._parcel is None or self._parcel[0] is not problem:
            self._parcel = (problem, ray.put(pack(problem)))
        files = [each.entry.file for each in self.jobs if each.entry.file is not None]
        return task.remote(self._parcel[1], files, job.config, job.label, job.seed, record.checkpoint, self._threads)

    def _hear(self, job: Running, events: list[Event]) -> None:
        record = job.record
        if not job.started:
            job.started = True
            self.observer.started(record.job)
        for event in events:
            if isinstance(event, Checkpoint):
                job.deaths = 0
                record.keep(event)
            elif isinstance(event, tuple):
                record.tick(*event)
            elif isinstance(event, str):
                record.say(event)
            elif isinstance(event, RunFailed):
                job.error = event
            else:
                record.row(event)


class Running:
    """A job that has been handed to Ray."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.started = False
        self.deaths = 0
        self.error: Exception | None = None

    def can_go_on(self, error: Exception) -> bool:
        """Whether to begin again after what Ray says of its process; if not, that is the job's error."""
        where = f"{self.record.job.label}, seed {self.record.job.seed}"
        self.deaths += 1
        if isinstance(error, ray.exceptions.RayTaskError):
            self.error = RunFailed(f"{where}: {reason(error)}")
        elif self.deaths >= LIVES:
            self.error = RunFailed(f"{where}: its process has died {LIVES} times in a row: {reason(error)}")
        return self.error is None


def federation(
    packed: bytes,
    files: Sequence[UserFile],
    config: Config,
    label: str,
    seed: int,
    checkpoint: Checkpoint | None,
    threads: int,
) -> Iterator[list[Event]]:
    """Run one job in this process and report, now and then, what has happened since; the first report is empty."""
    yield []
    happened: deque[Event] = deque()

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
                observe=happened.append,
                resume=checkpoint,
                keep=happened.append,
                tick=lambda iteration, rounds: happened.append((iteration, rounds)),
                say=happened.append,
            )
        except RunFailed as error:
            happened.append(type(error)(str(error)))
        except Exception as error:
            happened.append(RunFailed(f"{label}, seed {seed}: {type(error).__name__}: {error}"))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
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

"""What a person sees while runs go on: bars on a terminal, and elsewhere a plain line now and then.

Both are told of steps and evaluations by the experiment, and both estimate the time left over all runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from experiments.terminal import fancy, say
from server.experiment import Job, Observer

if TYPE_CHECKING:
    from rich.console import Console

    from server.simulation import Row

LINE_SECONDS = 10.0
"""A run that goes on prints a plain line at most this often."""

Clock = Callable[[], float]


class Estimate:
    """How long the jobs take: a job's pace while it runs, and the times of finished jobs for those to come.

    >>> now = [0.0]
    >>> estimate = Estimate(["a", "a"], lambda: now[0])
    >>> estimate.start("a"); estimate.reach(0.0); now[0] = 10.0; estimate.reach(0.5)
    >>> estimate.left()
    30.0
    """

    def __init__(self, labels: list[str], clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._waiting = list(labels)
        self._known: dict[str, list[float]] = {}
        self._label = ""
        self._began = self._job_began = clock()
        self._first = self._latest = 0.0
        self._fraction_at_first: float | None = None
        self._fraction = 0.0

    def start(self, label: str) -> None:
        """A job begins."""
        self._waiting.remove(label)
        self._label, self._job_began = label, self._clock()
        self._fraction_at_first, self._fraction = None, 0.0

    def reach(self, fraction: float) -> None:
        """The job has done this share of its work; the first call may come late, after a resume."""
        self._latest, self._fraction = self._clock(), fraction
        if self._fraction_at_first is None:
            self._first, self._fraction_at_first = self._latest, fraction

    def end(self) -> None:
        """The job is over."""
        if (whole := self._whole()) is not None:
            self._known.setdefault(self._label, []).append(whole)
        self._label = ""

    def elapsed(self) -> float:
        """Seconds since the first job began to be prepared."""
        return self._clock() - self._began

    def job_elapsed(self) -> float:
        """Seconds since the current job began."""
        return self._clock() - self._job_began

    def _whole(self) -> float | None:
        """Return what the current job takes from beginning to end."""
        done = self._fraction - (self._fraction_at_first or 0.0)
        return (self._latest - self._first) / done if done > 0 else None

    def left(self) -> float | None:
        """Seconds until the last job ends; None while nothing is known."""
        known = {label: sum(times) / len(times) for label, times in self._known.items()}
        whole = self._whole() if self._label else None
        if whole is not None:
            known.setdefault(self._label, whole)
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        current = 0.0
        if self._label:
            whole = known[self._label] if whole is None and self._label in known else (whole or usual)
            current = max(whole * (1.0 - self._fraction) - (self._clock() - self._latest) * bool(self._fraction), 0.0)
        return current + sum(known.get(label, usual) for label in self._waiting)


def duration(seconds: float) -> str:
    """Seconds as people write them.

    >>> [duration(s) for s in (0.04, 3.21, 75, 3700)]
    ['0.0 s', '3.2 s', '1:15', '1:01:40']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def measure(row: Row) -> str:
    """What a row says of the result: the test accuracy, or else the upper loss."""
    if row.get("test_accuracy") is not None:
        return f"test accuracy {float(str(row['test_accuracy'])):.4f}"
    return f"upper loss {float(str(row['upper_loss'])):.5g}"


class Display(Observer):
    """What both displays know: which job runs, how far it is, and what its last evaluation found."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self.jobs: list[Job] = []
        self.done = 0
        self.reached = 0
        self.found = ""
        self.estimate = Estimate([], clock)

    def planned(self, jobs: list[Job]) -> None:
        """The jobs that will run."""
        self.jobs = jobs
        self.estimate = Estimate([job.label for job in jobs], self._clock)

    def started(self, job: Job) -> None:
        """A job begins."""
        self.reached, self.found = 0, ""
        self.estimate.start(job.label)
        self.show(job)

    def stepped(self, job: Job, iteration: int, rounds: int) -> None:
        """An outer iteration is done."""
        self._reach(job, rounds if job.unit == "rounds" else iteration)
        self.show(job)

    def row(self, job: Job, row: Row) -> None:
        """An evaluation is done."""
        self.found = measure(row)
        self._reach(job, job.reached(row))
        self.show(job)

    def _reach(self, job: Job, reached: int) -> None:
        self.reached = min(reached, job.goal)
        self.estimate.reach(self.reached / job.goal)

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job is done, or failed."""
        self.done += 1
        outcome = "failed at" if error else "done,"
        facts = [f"{outcome} {self._count(job)} in {duration(self.estimate.job_elapsed())}", self.found]
        self.estimate.end()
        self.say(f"[{self.done}/{len(self.jobs)}] {self._name(job)}: {', '.join(filter(None, facts))}", error)
        self.show(None)

    def show(self, job: Job | None) -> None:
        """Bring what is shown up to date; None between jobs."""

    def say(self, line: str, error: Exception | None) -> None:
        """Print a line that stays."""
        say(self.console, line, "red" if error else "")

    @staticmethod
    def _name(job: Job) -> str:
        return f"{job.label}, seed {job.seed}"

    def _count(self, job: Job) -> str:
        return f"{self.reached}/{job.goal} {job.unit}"

    def _left(self) -> str:
        left = self.estimate.left()
        return "" if left is None else f"about {duration(round(left)).replace('.0 s', ' s')} left"


class Lines(Display):
    """Plain lines: one for every run that ends, and one every ten seconds while a run goes on."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(console, clock)
        self._said = clock()

    def started(self, job: Job) -> None:
        """A job begins: its own ten seconds begin too."""
        self._said = self._clock()
        super().started(job)

    def show(self, job: Job | None) -> None:
        """Print how far the job is, if the last line is old."""
        if job is None or self._clock() - self._said < LINE_SECONDS:
            return
        self._said = self._clock()
        facts = filter(None, [self._count(job), self.found, duration(self.estimate.job_elapsed()), self._left()])
        self.say(f"{self._name(job)}: {', '.join(facts)}", None)


class Bars(Display):
    """Two bars on a terminal, that of the current run and that of all runs; runs that end leave a line above."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(console, clock)
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
        columns += [TextColumn("{task.fields[facts]}", markup=False, style="dim")]
        self.progress = Progress(*columns, console=console, refresh_per_second=5, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def planned(self, jobs: list[Job]) -> None:
        """The jobs that will run."""
        super().planned(jobs)
        self._tasks = {name: self.progress.add_task("", total=1.0, facts="", visible=False) for name in ("run", "all")}

    def show(self, job: Job | None) -> None:
        """Move the bars."""
        total = len(self.jobs)
        left = [duration(self.estimate.elapsed()), self._left()]
        share = self.reached / job.goal if job else 0.0
        if job is not None:
            facts = [self._count(job), self.found, *([] if total > 1 else left)]
            self._update("run", self._name(job), share, facts)
        description = f"run {min(self.done + 1, total)} of {total}"
        if self.done == total:
            description, left = "all runs done", ["writing the summary and the figures"]
        if total > 1:
            self._update("all", description, (self.done + share) / total, left)

    def _update(self, name: str, description: str, share: float, facts: list[str]) -> None:
        text = "  ".join(filter(None, facts))
        self.progress.update(self._tasks[name], description=description, completed=share, facts=text, visible=True)


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """The display for this console; whatever happens inside, the terminal is left clean."""
    if not fancy(console):
        yield Lines(console)
        return
    bars = Bars(console)
    with bars.progress:
        yield bars

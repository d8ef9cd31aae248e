"""What a person sees while runs go on: bars on a terminal, and elsewhere a plain line now and then.

Both are told of steps and evaluations by the experiment, and both estimate the time left over all runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from experiments.terminal import fancy, say
from server.running.experiment import Observer
from server.running.plan import Job

if TYPE_CHECKING:
    from rich.console import Console

    from fedbilevel.results.history import Row

LINE_SECONDS = 10.0
"""A run that goes on prints a plain line at most this often."""

Clock = Callable[[], float]


class Pace:
    """How fast one job goes: what it has done since it was first heard of, which after a resume is late."""

    def __init__(self, label: str, clock: Clock) -> None:
        self.label, self._clock = label, clock
        self._began = self._first = self._latest = clock()
        self._at_first: float | None = None
        self._fraction = 0.0

    def reach(self, fraction: float) -> None:
        """The job has done this share of its work."""
        self._latest, self._fraction = self._clock(), fraction
        if self._at_first is None:
            self._first, self._at_first = self._latest, fraction

    def elapsed(self) -> float:
        """Seconds since the job began."""
        return self._clock() - self._began

    def whole(self) -> float | None:
        """Seconds that the job takes from beginning to end; None while nothing is known."""
        done = self._fraction - (self._at_first or 0.0)
        return (self._latest - self._first) / done if done > 0 else None

    def left(self, usual: float) -> float:
        """Seconds until it ends, if it takes `usual` seconds in all unless its own pace is known."""
        since = self._clock() - self._latest if self._fraction else 0.0
        return max((self.whole() or usual) * (1.0 - self._fraction) - since, 0.0)


class Estimate:
    """How long the jobs take: a job's pace while it runs, and the times of finished jobs for those to come.

    >>> now = [0.0]
    >>> estimate = Estimate(["a", "a"], lambda: now[0])
    >>> pace = estimate.start("a"); pace.reach(0.0); now[0] = 10.0; pace.reach(0.5)
    >>> estimate.left()
    30.0
    """

    def __init__(self, labels: list[str], clock: Clock = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._waiting = list(labels)
        self._running: list[Pace] = []
        self._known: dict[str, list[float]] = {}

    def start(self, label: str) -> Pace:
        """A job begins."""
        self._waiting.remove(label)
        self._running.append(Pace(label, self._clock))
        return self._running[-1]

    def end(self, pace: Pace) -> None:
        """A job is over."""
        self._running.remove(pace)
        if (whole := pace.whole()) is not None:
            self._known.setdefault(pace.label, []).append(whole)

    def elapsed(self) -> float:
        """Seconds since the first job began to be prepared."""
        return self._clock() - self._began

    def left(self) -> float | None:
        """Seconds until the last job ends, if as many run at a time as now; None while nothing is known."""
        known = {label: sum(times) / len(times) for label, times in self._known.items()}
        for pace in self._running:
            if (whole := pace.whole()) is not None:
                known.setdefault(pace.label, whole)
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        current = [pace.left(known.get(pace.label, usual)) for pace in self._running]
        waiting = sum(known.get(label, usual) for label in self._waiting)
        return max([(sum(current) + waiting) / max(len(current), 1), *current])


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


@dataclass
class Running:
    """A job that runs: how far it is, and what its last evaluation found."""

    job: Job
    pace: Pace
    reached: int = 0
    share: float = 0.0
    found: str = ""
    early: str = ""

    @property
    def name(self) -> str:
        """Algorithm and seed."""
        return f"{self.job.label}, seed {self.job.seed}"

    @property
    def count(self) -> str:
        """How far it is."""
        return f"{self.reached}/{self.job.goal} {self.job.unit}"

    def reach(self, reached: int, share: float = 0.0) -> None:
        """It is so far now; share: of its work that is done, where that is more than its rounds or iterations say."""
        self.reached = min(reached, self.job.goal)
        self.share = min(max(self.share, share, self.reached / self.job.goal), 1.0)
        self.pace.reach(self.share)

    def take(self, row: Row) -> None:
        """An evaluation is done."""
        cause = self.job.cause(row)
        self.found, self.early = measure(row), f"ended by run.{cause}" if cause else ""
        self.reach(self.job.reached(row), 1.0 if cause else self.job.share(row))


class Display(Observer):
    """What both displays know: which jobs run, one or several at a time, and how many are done."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self.jobs: list[Job] = []
        self.running: dict[tuple[str, int], Running] = {}
        self.done = 0
        self.estimate = Estimate([], clock)

    def planned(self, jobs: list[Job]) -> None:
        """The jobs that will run."""
        self.jobs = jobs
        self.estimate = Estimate([job.label for job in jobs], self._clock)

    def started(self, job: Job) -> None:
        """A job begins."""
        self.running[job.label, job.seed] = Running(job, self.estimate.start(job.label))
        self.show(self.running[job.label, job.seed])

    def stepped(self, job: Job, iteration: int, rounds: int) -> None:
        """An outer iteration is done."""
        running = self.running[job.label, job.seed]
        running.reach(rounds if job.unit == "rounds" else iteration)
        self.show(running)

    def row(self, job: Job, row: Row) -> None:
        """An evaluation is done."""
        running = self.running[job.label, job.seed]
        running.take(row)
        self.show(running)

    def noted(self, job: Job, text: str) -> None:
        """There is something that the reader of the results should know."""
        self.note(text)

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job is done, or failed."""
        self.done += 1
        ended = self.running.pop((job.label, job.seed), None) or Running(job, self.estimate.start(job.label))
        outcome = "failed at" if error else "done,"
        facts = [f"{outcome} {ended.count} in {duration(ended.pace.elapsed())}", ended.found, ended.early]
        self.estimate.end(ended.pace)
        self.say(f"[{self.done}/{len(self.jobs)}] {ended.name}: {', '.join(filter(None, facts))}", error)
        self.show(None)

    def note(self, text: str) -> None:
        """Print what the reader of the results should know."""
        self.say(f"note: {text}", None)

    def show(self, running: Running | None) -> None:
        """Bring what is shown up to date; None between jobs."""

    def say(self, line: str, error: Exception | None) -> None:
        """Print a line that stays."""
        say(self.console, line, "red" if error else "")

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

    def show(self, running: Running | None) -> None:
        """Print how far the job is, if the last line is old."""
        if running is None or self._clock() - self._said < LINE_SECONDS:
            return
        self._said = self._clock()
        facts = filter(None, [running.count, running.found, duration(running.pace.elapsed()), self._left()])
        self.say(f"{running.name}: {', '.join(facts)}", None)


class Bars(Display):
    """Bars on a terminal, one for each run that goes on and one for all; runs that end leave a line above."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(console, clock)
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
        columns += [TextColumn("{task.fields[facts]}", markup=False, style="dim")]
        self.progress = Progress(*columns, console=console, refresh_per_second=5, transient=True)
        self._own: list[TaskID] = []
        self._all: TaskID | None = None

    def show(self, running: Running | None) -> None:
        """Move the bars."""
        total = len(self.jobs)
        left = [duration(self.estimate.elapsed()), self._left()]
        while len(self._own) < len(self.running):
            self._own.append(self.progress.add_task("", total=1.0, facts=""))
        if self._all is None:
            self._all = self.progress.add_task("", total=1.0, facts="", visible=False)
        for task, own in zip(self._own, self.running.values(), strict=False):
            self._update(task, own.name, own.share, [own.count, own.found, *([] if total > 1 else left)])
        share = sum(own.share for own in self.running.values())
        last = min(self.done + max(len(self.running), 1), total)
        description = f"run {last} of {total}"
        if self.done == total:
            description, left = "all runs done", ["writing the summary and the figures"]
        if total > 1:
            self._update(self._all, description, (self.done + share) / total, left)

    def _update(self, task: TaskID, description: str, share: float, facts: list[str]) -> None:
        text = "  ".join(filter(None, facts))
        self.progress.update(task, description=description, completed=share, facts=text, visible=True)


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """The display for this console; whatever happens inside, the terminal is left clean."""
    if not fancy(console):
        yield Lines(console)
        return
    bars = Bars(console)
    with bars.progress:
        yield bars

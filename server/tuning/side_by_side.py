"""Studies side by side: each algorithm's trials one after another, and the runs of several at a time.

What is tried and what comes of it is the same as one after another: a trial depends on those before it in its own study
alone, and decides by the order of its runs, not of what is heard.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from fedbilevel.results.history import Row
from server.running.experiment import Observer
from server.running.sweep import Event, Pool, Running
from server.tuning.study import Begun, Study, Tried, Tuning
from server.tuning.trial import Course


def run_side_by_side(
    tuning: Tuning,
    studies: Sequence[Study],
    observer: Observer,
    told: Callable[[Tried], None],
    *,
    jobs: int,
    ray_address: str | None,
) -> None:
    """Run the trials that studies lack, so many runs at a time; `told` of each trial when it is kept.

    Raises as `Pool` does. Whatever ends it, the trials that were done are kept.
    """
    lanes = [Lane(study, observer, told) for study in studies if study.left]
    if not lanes:
        return
    seeds = len(tuning.trial_config.run.seeds)
    pool = Pool(
        jobs,
        len(lanes) * seeds,
        tuning.config.engine,
        ray_address=ray_address,
        threads=tuning.table.threads,
        problems=seeds,
    )

    def begin() -> Running | None:
        waiting = sorted(lanes, key=lambda lane: (lane.busy, lane.seconds_left), reverse=True)
        for needed in (True, False):  # runs that are needed go before those that may not be
            for lane in waiting:
                if (one := lane.begin(pool, needed=needed)) is not None:
                    return one
        return None

    pool.run(begin)


class Lane:
    """A study whose trials run in a pool."""

    def __init__(self, study: Study, observer: Observer, told: Callable[[Tried], None]) -> None:
        self.study, self.observer, self._told = study, observer, told
        self._begun: Begun | None = None
        self._runs: list[TrialRun] = []
        self._seconds: list[float] = []
        self._began = 0.0

    @property
    def busy(self) -> bool:
        """Whether a trial of it has begun."""
        return self._begun is not None

    @property
    def seconds_left(self) -> float:
        """About how long its trials take that are not done; infinite while none has been timed."""
        usual = sum(self._seconds) / len(self._seconds) if self._seconds else math.inf
        return self.study.left * usual if self.study.left else 0.0

    def begin(self, pool: Pool, *, needed: bool) -> Running | None:
        """A run that may begin: the one that the trial needs, or one of those after it; None where there is none."""
        if self._begun is None:
            if not self.study.left:
                return None
            self._begun, self._runs, self._began = self.study.begin(), [], time.monotonic()
        index = len(self._runs)
        if index == len(self._begun.jobs) or needed != (index == self._begun.course.current):
            return None
        self._runs.append(TrialRun(self, pool, self._begun, index))
        return self._runs[-1]

    def look(self, pool: Pool) -> None:
        """See whether the trial is over: then it is kept, and what still runs of it is stopped."""
        begun = self._begun
        if begun is None or begun.course.outcome is None:
            return
        for run in self._runs:
            if not run.over:
                pool.stop(run, cancel=run.ahead)
        self._begun = None
        self._seconds.append(time.monotonic() - self._began)
        self._told(self.study.keep(begun.options, begun.course.trial()))


class TrialRun(Running):
    """A run of a trial. ahead: it began before it was known whether it is needed, and cannot know when it is not."""

    def __init__(self, lane: Lane, pool: Pool, begun: Begun, index: int) -> None:
        super().__init__(begun.jobs[index])
        self._lane, self._pool, self._course, self._index = lane, pool, begun.course, index
        self.over, self.ahead = False, index > begun.course.current

    def rule(self) -> Rules:
        """When it may end early."""
        return Rules(self._course, self._index)

    def started(self) -> None:
        """It begins."""
        self._lane.observer.started(self.job)

    def hear(self, event: Event) -> None:
        """It reports something."""
        if isinstance(event, dict):
            self._course.take(self._index, event)
            self._lane.observer.row(self.job, event)
            self._lane.look(self._pool)

    def rewind(self) -> None:
        """Forget the rows after the checkpoint."""
        self._course.rewind(self._index, -1 if self.checkpoint is None else self.checkpoint.iteration)

    def ended(self, error: Exception | None) -> None:
        """It is done, or failed."""
        self.over = True
        self._course.end(self._index, failed=error is not None)
        self._lane.observer.ended(self.job, error)
        self._lane.look(self._pool)


class Rules:
    """The rules of a trial for one of its runs, as they were when it began; they travel to its process."""

    def __init__(self, course: Course, index: int) -> None:
        self._course, self._index = course, index

    def take(self, row: Row) -> None:
        """An evaluation is done."""
        self._course.take(self._index, row)

    def enough(self) -> bool:
        """Whether the run may end here."""
        return self._course.enough(self._index)

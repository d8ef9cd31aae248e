"""A trial: the runs of one point, for as long as it may still win, and what came of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedbilevel.errors import RunFailed
from fedbilevel.results.history import Row
from server.running.experiment import Observer, local
from server.running.plan import Job
from server.running.run import run_one
from server.tuning.objective import FAILED, UNREACHED, Goal, Track

MET = -1e300
"""What a run that has met the target before has at a rung."""
RUNGS = (0.125, 0.25, 0.5)
"""The shares of a run after which the worse half of all trials so far is given up."""
_FIRST = 4
"""At a rung nothing is given up before so many trials have come to it."""

Outcome = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """What came of the runs of one point. score: the median over seeds, less is better; rungs: by share of the run."""

    outcome: Outcome
    score: float
    objective: float | None
    value: float | None
    reached: int
    rounds: int
    rungs: Mapping[str, float]


class Course:
    """A trial as far as it is: its runs, one per seed, all of one length, and when each of them is over.

    best: the best score so far, which it has to beat; others: what earlier trials had at each rung. A run ends when it
    meets the target; the trial, with `stopping`, when the median over its seeds cannot be below `best` any more, or
    when its first run is in the worse half at a rung; and when a run fails, which is worth less than all else.

    The runs may go on side by side and be told of in any order: what a run brings counts once those before it are over.
    So what comes of the trial is the same, and depends on no clock. outcome: None while it goes on.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        goal: Goal,
        best: float = FAILED,
        others: Mapping[str, Sequence[float]] | None = None,
        *,
        stopping: bool = True,
    ) -> None:
        self._goal, self._best, self._others, self._stopping = goal, best, others or {}, stopping
        self._ending = jobs[0].config.run.ending  # and not the job, whose code a process may not have
        self._rows: list[list[Row]] = [[] for _ in jobs]
        self._ends: dict[int, bool] = {}
        self._start()

    def _start(self) -> None:
        self.outcome: Outcome | None = None
        self._tracks, self._next, self._over = [Track(self._goal)], 0, False
        self._rungs: dict[str, float] = {}

    def take(self, index: int, row: Row) -> None:
        """An evaluation of a run is done."""
        self._rows[index].append(row)
        self._go_on()

    def end(self, index: int, *, failed: bool = False) -> None:
        """A run has come to its end."""
        self._ends[index] = failed
        self._go_on()

    def rewind(self, index: int, iteration: int) -> None:
        """Forget what a run has brought after an iteration."""
        self._rows[index] = [row for row in self._rows[index] if int(str(row["iteration"])) <= iteration]
        self._start()
        self._go_on()

    @property
    def current(self) -> int:
        """The run that is looked at: those before it are over, those after it have to wait."""
        return len(self._tracks) - 1

    def enough(self, index: int) -> bool:
        """Whether a run may end here."""
        if self.outcome is not None or index < self.current:
            return True
        if index == self.current:
            return self._over
        ahead = Track(self._goal)
        for row in self._rows[index][-1:]:
            ahead.take(row)
        return ahead.reached or (self._stopping and self._hopeless(ahead))

    def _go_on(self) -> None:
        while self.outcome is None:
            index, rows = self.current, self._rows[self.current]
            while self._next < len(rows) and not self._over:
                self._next += 1
                if self._look(rows[self._next - 1]):
                    self.outcome = "stopped"
                    return
            if index not in self._ends:
                return
            if self._ends[index] and not self._over:  # what it does after its end does not count
                self.outcome = "failed"
            elif index + 1 == len(self._rows):
                self.outcome = "complete"
            else:
                self._tracks.append(Track(self._goal))
                self._next, self._over = 0, False

    def _look(self, row: Row) -> bool:
        """Take up a row of the current run; whether the trial is given up."""
        track = self._tracks[-1]
        track.take(row)
        self._over = track.reached
        if self._over or not self._stopping or self._ending.over(dict(row)):
            return False
        return self._hopeless(track) or self._in_worse_half(row)

    def _hopeless(self, track: Track) -> bool:
        """Whether the median cannot be below the best, with what is over, with this run, and if the others cost 0."""
        over = [done.score() for done in self._tracks[:-1]]
        bounds = [*over, track.cost] + [0.0] * (len(self._rows) - len(over) - 1)
        return self._goal.target is not None and statistics.median(bounds) >= self._best

    def _in_worse_half(self, row: Row) -> bool:
        for share in RUNGS if self.current == 0 else ():
            rung, latest = str(share), self._tracks[0].latest
            if rung in self._rungs or self._ending.share(dict(row)) < share:
                continue
            self._rungs[rung] = now = FAILED if latest is None else latest
            before = self._others.get(rung, ())
            better = sum(value < now for value in before)
            if len(before) + 1 >= _FIRST and better >= math.ceil((len(before) + 1) / 2):
                return True
        return False

    def trial(self) -> Trial:
        """What came of it, when it is over."""
        assert self.outcome is not None
        tracks, outcome, goal = self._tracks, self.outcome, self._goal
        values = [track.value for track in tracks if track.value is not None]
        value = statistics.median(values) if values else None
        score = FAILED if outcome == "failed" else statistics.median(track.score() for track in tracks)
        if score == FAILED and outcome == "complete":
            outcome = "failed"  # the column never had a value
        met = outcome == "complete" and (goal.target is None or score < UNREACHED / 4)
        reached, rounds = sum(track.reached for track in tracks), sum(track.rounds for track in tracks)
        objective = (score if goal.target is not None else value) if met else None
        missing = {rung: MET for rung in map(str, RUNGS) if rung not in self._rungs} if tracks[0].reached else {}
        return Trial(outcome, score, objective, value, reached, rounds, self._rungs | missing)


def run_trial(jobs: Sequence[Job], course: Course, observer: Observer) -> Trial:
    """Run one job per seed, one after another, until the trial is over."""
    for index, job in enumerate(jobs):

        def take(row: Row, index: int = index, job: Job = job) -> None:
            course.take(index, row)
            observer.row(job, row)

        def enough(index: int = index) -> bool:
            return course.enough(index)

        observer.started(job)
        error: RunFailed | None = None
        try:
            setup = job.setup()
            problem = setup.problem()
            run_one(job.run(), problem, local(setup, problem), observe=take, say=lambda text: None, enough=enough)
        except RunFailed as failed:
            error = failed
        course.end(index, failed=error is not None)
        observer.ended(job, error)
        if course.outcome is not None:
            break
    return course.trial()

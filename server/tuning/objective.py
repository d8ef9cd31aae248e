"""What a trial is worth: its runs held against what is looked for, and the rules by which one is given up early."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedbilevel.config.tables import Config
from fedbilevel.config.tune import Spent, TuneTable
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.results.history import Row, number
from fedbilevel.results.targets import Target, accuracy, measured, named
from server.running.experiment import Observer, local
from server.running.plan import Job
from server.running.run import run_one

UNREACHED, FAILED, MET = 1e15, 1e300, -1e300
"""Scores: of a run that does not meet the target, UNREACHED to twice as much; of one that fails; at a rung, of one that
has met the target before. Rounds, bytes and seconds are far below."""
RUNGS = (0.125, 0.25, 0.5)
"""The shares of a run after which the worse half of all trials so far is given up."""
_FIRST = 4
"""At a rung nothing is given up before so many trials have come to it."""
_NATURAL = ("test_accuracy", "value", "upper_loss")
_UP = ("accuracy", "auroc", "auc", "f1")

Outcome = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Goal:
    """What is looked for: the least of `spent` until `target` is met, or the best of `column` at the end.

    column: None for the first of the test accuracy, the value and the upper loss that the runs have.
    """

    spent: Spent | None = None
    target: Target | None = None
    column: str | None = None

    @classmethod
    def of(cls, config: Config) -> Goal:
        """Raises BadInput for `fewest` without a target."""
        tune = config.tune or TuneTable()
        given = tune.target
        if given is None and config.run.targets:
            given = config.run.targets[-1]
        if tune.best is not None or (given is None and tune.fewest is None):
            return cls(column=tune.best)
        if given is None:
            raise BadInput("tune.fewest", tune.fewest, "with a target: tune.target, or run.targets")
        return cls(tune.fewest or "rounds", given if isinstance(given, Target) else accuracy(float(given)))

    @property
    def text(self) -> str:
        """The goal in words."""
        if self.target is None:
            return f"best {named(self.column)} at the end" if self.column else "best measure at the end"
        return f"fewest {(self.spent or '').replace('_', ' ')} to {self.target.text}"

    def in_column(self, rows: Sequence[Row]) -> str | None:
        """The column that is looked at."""
        if self.target is not None:
            return self.target.column
        return self.column or next(iter(measured(rows, _NATURAL)), None)

    def sign(self, column: str) -> float:
        """By which a value is multiplied so that less is better."""
        up = self.target.direction == "at_least" if self.target else any(word in column for word in _UP)
        return -1.0 if up else 1.0

    def cost(self, row: Row) -> float:
        """What is spent at a row."""
        columns = {"rounds": ("round",), "bytes": ("uplink_bytes", "downlink_bytes")}.get(
            self.spent or "rounds", (str(self.spent),)
        )
        return sum(number(row, column) or 0.0 for column in columns)


@dataclass
class Track:
    """One run of a trial, as far as it is."""

    goal: Goal
    rows: list[Row] = field(default_factory=list)
    best: float | None = None
    latest: float | None = None
    cost: float = 0.0
    reached: bool = False
    sign: float = 1.0

    ended: bool = False

    def enough(self) -> bool:
        """Whether it may end here."""
        return self.ended

    def take(self, row: Row) -> None:
        """An evaluation is done."""
        self.rows.append(row)
        self.cost = self.goal.cost(row)
        column = self.goal.in_column(self.rows)
        value = None if column is None else number(row, column)
        if column is None or value is None:
            return
        self.sign = self.goal.sign(column)
        self.latest = self.sign * value
        self.best = self.latest if self.best is None else min(self.best, self.latest)
        self.reached = self.goal.target is not None and self.goal.target.met(value)

    @property
    def seen(self) -> float:
        """What a run that ends here is worth: its best value, or the latest where the end counts; less is better."""
        found = self.best if self.goal.target is not None else self.latest
        return FAILED if found is None else found

    def score(self) -> float:
        """What it is worth: less is better."""
        if self.goal.target is None or self.seen == FAILED:
            return self.seen
        if self.reached:
            return self.cost
        gap = max(self.seen - self.sign * self.goal.target.threshold, 0.0)
        return UNREACHED * (1.0 + gap / (1.0 + gap))

    @property
    def value(self) -> float | None:
        """The measure itself: the best, or the latest where the end counts."""
        return None if self.seen == FAILED else self.sign * self.seen

    @property
    def rounds(self) -> int:
        """Communication rounds so far."""
        return int(str(self.rows[-1]["round"])) if self.rows else 0


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


def run_trial(
    jobs: Sequence[Job],
    goal: Goal,
    best: float,
    others: Mapping[str, Sequence[float]],
    observer: Observer,
    *,
    stopping: bool = True,
) -> Trial:
    """Run one job per seed, in order, for as long as the trial may still beat `best`, the best score so far.

    others: what earlier trials had at each rung. A run ends when it meets the target; the trial when the median over
    its seeds cannot be below `best` any more, or when its first run is in the worse half at a rung (neither without
    `stopping`); and when a run fails, which is worth less than all else.
    """
    tracks: list[Track] = []
    rungs: dict[str, float] = {}
    outcome: Outcome = "complete"

    def give_up(job: Job, row: Row) -> bool:
        track = tracks[-1]
        if goal.target is not None:
            bounds = [done.score() for done in tracks[:-1]] + [track.cost] + [0.0] * (len(jobs) - len(tracks))
            if statistics.median(bounds) >= best:
                return True
        for rung in map(str, RUNGS) if len(tracks) == 1 else ():
            if rung in rungs or job.reached(row) < float(rung) * job.goal:
                continue
            rungs[rung] = now = FAILED if track.latest is None else track.latest
            before = others.get(rung, ())
            better = sum(value < now for value in before)
            if len(before) + 1 >= _FIRST and better >= math.ceil((len(before) + 1) / 2):
                return True
        return False

    for job in jobs:
        track = Track(goal)
        tracks.append(track)

        def take(row: Row, job: Job = job, track: Track = track) -> None:
            nonlocal outcome
            track.take(row)
            observer.row(job, row)
            if track.reached:
                track.ended = True
            elif stopping and job.reached(row) < job.goal and give_up(job, row):
                track.ended, outcome = True, "stopped"

        observer.started(job)
        error: RunFailed | None = None
        try:
            setup = job.setup()
            problem = setup.problem()
            run_one(job.run(), problem, local(setup, problem), observe=take, say=lambda text: None, enough=track.enough)
        except RunFailed as failed:
            error, outcome = failed, "failed"
        observer.ended(job, error)
        if outcome != "complete":
            break
    if tracks[0].reached:
        rungs |= {rung: MET for rung in map(str, RUNGS) if rung not in rungs}
    return _trial(tracks, outcome, goal, rungs)


def _trial(tracks: Sequence[Track], outcome: Outcome, goal: Goal, rungs: Mapping[str, float]) -> Trial:
    values = [track.value for track in tracks if track.value is not None]
    value = statistics.median(values) if values else None
    score = FAILED if outcome == "failed" else statistics.median(track.score() for track in tracks)
    if score == FAILED and outcome == "complete":
        outcome = "failed"  # the column never had a value
    met = outcome == "complete" and (goal.target is None or score < UNREACHED / 4)
    reached, rounds = sum(track.reached for track in tracks), sum(track.rounds for track in tracks)
    objective = (score if goal.target is not None else value) if met else None
    return Trial(outcome, score, objective, value, reached, rounds, rungs)

"""What a run of a trial is worth: its rows held against what is looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedbilevel.config.tables import Config
from fedbilevel.config.tune import Best, Spent, TuneTable
from fedbilevel.errors import BadInput
from fedbilevel.results.history import Row, number
from fedbilevel.results.targets import Target, accuracy, measured, named

UNREACHED, FAILED = 1e15, 1e300
"""Scores: of a run that does not meet the target, UNREACHED to twice as much; of one that fails. Rounds, bytes and
seconds are far below."""
_NATURAL = ("test_accuracy", "value", "upper_loss")


@dataclass(frozen=True)
class Goal:
    """What is looked for: the least of `spent` until `target` is met, or the best of `column` at the end.

    column: None for the first of the test accuracy, the value and the upper loss that the runs have. direction: of the
    column, None for one of which it is known.
    """

    spent: Spent | None = None
    target: Target | None = None
    column: str | None = None
    direction: Literal["max", "min"] | None = None

    @classmethod
    def of(cls, config: Config) -> Goal:
        """Raises BadInput for `fewest` without a target."""
        tune = config.tune or TuneTable()
        given = tune.target
        if given is None and config.run.targets:
            given = config.run.targets[-1]
        if tune.best is not None or (given is None and tune.fewest is None):
            best = Best(column=tune.best) if isinstance(tune.best, str) else tune.best
            return cls() if best is None else cls(column=best.column, direction=best.direction)
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
        if self.target is not None:
            return -1.0 if self.target.direction == "at_least" else 1.0
        return -1.0 if Best(column=column, direction=self.direction).higher else 1.0

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

"""Targets: which value of which column of the history counts as having arrived."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedbilevel.errors import NOTHING, BadInput
from fedbilevel.results.history import (
    COLUMNS,
    METRIC_PREFIX,
    PRIVACY_COLUMNS,
    SOLUTION_COLUMNS,
    WORK_COLUMNS,
    Row,
    number,
)
from fedbilevel.strict import Strict

SPENT = frozenset(
    (
        *("algorithm", "seed", "iteration", "round", "uplink_bytes", "downlink_bytes"),
        *("simulated_seconds", "wall_seconds", *WORK_COLUMNS),
    )
)
"""The columns of a history that say which evaluation a row is and what it cost; all others say what it found."""
MEASURES = (*(column for column in COLUMNS if column not in SPENT), *SOLUTION_COLUMNS, *PRIVACY_COLUMNS)
"""The columns with a measure that every problem may have; a problem's own, `metric_*`, come on top."""
HIGHER = frozenset(("test_accuracy", "value_accuracy"))
"""The measures of which more is better; of the others in MEASURES less is, of a problem's own nobody else knows."""

_EVALUATED = ("test_loss", "test_accuracy")
# Tried in turn: the levels that the field reports, then those of runs too short or too hard to get there.
_LADDERS = ((0.5, 0.6, 0.7, 0.8, 0.9, 0.95), (0.1, 0.2, 0.3, 0.4), (0.01, 0.02, 0.05))
Bound = Annotated[float, Field(allow_inf_nan=False)]


def hold_measure(column: str, key: str) -> None:
    """Raises BadInput for the name of a column that cannot hold a measure, with the nearest that can."""
    if column in MEASURES or (column.startswith(METRIC_PREFIX) and column != METRIC_PREFIX):
        return
    near = difflib.get_close_matches(column, MEASURES, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise BadInput(key, column, f"{', '.join(MEASURES)} or {METRIC_PREFIX}NAME{hint}")


class Target(Strict):
    """A column of the history and the bound that a run has to meet in it: `at_most` or `at_least`.

    >>> Target(column="metric_distance", at_most=1e-3).text
    'distance ≤ 0.001'
    """

    column: str
    at_most: Bound | None = None
    at_least: Bound | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Target:
        hold_measure(self.column, "column")
        if self.at_most is None and self.at_least is None:
            raise BadInput("at_most", NOTHING, "a number; or at_least in its place")
        if self.at_most is not None and self.at_least is not None:
            raise BadInput("at_most", self.at_most, f"only one of at_most and at_least (= {self.at_least:g})")
        return self

    @property
    def direction(self) -> Literal["at_most", "at_least"]:
        """Which side of the threshold is the goal."""
        return "at_least" if self.at_most is None else "at_most"

    @property
    def threshold(self) -> float:
        """The value to reach."""
        bound = self.at_least if self.at_most is None else self.at_most
        assert bound is not None  # of two, `_one_bound` leaves one
        return bound

    @property
    def text(self) -> str:
        """The target in words."""
        return f"{named(self.column)} {'≥' if self.direction == 'at_least' else '≤'} {self.threshold:g}"

    def met(self, value: float) -> bool:
        """Whether a value meets the target; NaN meets none."""
        return value >= self.threshold if self.direction == "at_least" else value <= self.threshold


def accuracy(level: float) -> Target:
    """The target that a bare number stands for: a test accuracy of at least this."""
    return Target(column="test_accuracy", at_least=level)


def named(column: str) -> str:
    """A column in words.

    >>> named("upper_loss"), named("metric_distance")
    ('upper loss', 'distance')
    """
    return column.removeprefix(METRIC_PREFIX).replace("_", " ")


def measured(rows: Iterable[Row], among: Iterable[str] | None = None) -> list[str]:
    """The columns (of these; else of all measures, a problem's own last) in which some row has a value."""
    found = {key for row in rows for key, value in row.items() if value is not None}
    if among is None:
        among = [*MEASURES, *sorted(key for key in found if key.startswith(METRIC_PREFIX))]
    return [column for column in among if column in found]


def column_of(measure: str) -> str:
    """The column of a measure that a problem's `evaluate` names.

    >>> column_of("test_accuracy"), column_of("distance")
    ('test_accuracy', 'metric_distance')
    """
    return measure if measure in _EVALUATED else f"{METRIC_PREFIX}{measure}"


def hold_targets(targets: Sequence[float | Target] | None, columns: Iterable[str]) -> None:
    """See that what an evaluation gives is there for every target: `columns` are those of a first evaluation.

    Columns that do not come of the evaluation (the hypergradient, measures at the lower solution) may come later.
    Raises `BadInput`, naming the target in the table `[run]`.
    """
    there = list(columns)
    for position, target in enumerate(targets or ()):
        hold_target(target, there, f"run.targets[{position}]")


def hold_target(target: float | Target, columns: Sequence[str], key: str) -> None:
    """Hold one target against these columns as `hold_targets` does. Raises `BadInput`, naming `key`."""
    bound = target if isinstance(target, Target) else accuracy(float(target))
    evaluated = bound.column in _EVALUATED or bound.column.startswith(METRIC_PREFIX)
    if evaluated and bound.column not in columns:
        part, value = ".column" * isinstance(target, Target), getattr(target, "column", target)
        has = ", ".join(column for column in columns if column not in SPENT)
        near = difflib.get_close_matches(bound.column, columns, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = f"a column that is measured here: {has}, and there is no {bound.column}{hint}"
        raise BadInput(f"{key}{part}", value, allowed)


def has_accuracy(rows: Iterable[Row]) -> bool:
    """Whether the problem of these rows measures an accuracy."""
    return any(row.get("test_accuracy") is not None for row in rows)


def resolve_targets(rows: Sequence[Row], targets: Sequence[float | Target] | None) -> list[Target]:
    """The targets to report: those given, in their order, each once; for None, common accuracies that some run reached.

    A bare number is a test accuracy. Raises `BadInput` for one outside (0, 1].
    """
    if targets is not None:
        for target in targets:
            if not isinstance(target, Target) and not 0.0 < target <= 1.0:
                raise BadInput("targets", target, "accuracies above 0 and up to 1")
        return list(dict.fromkeys(t if isinstance(t, Target) else accuracy(float(t)) for t in targets))
    values = [value for row in rows if (value := number(row, "test_accuracy")) is not None]
    for ladder in _LADDERS:
        if reached := [level for level in ladder if any(value >= level for value in values)]:
            return [accuracy(level) for level in reached]
    return []

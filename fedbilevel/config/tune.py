"""The `[tune]` table of a config: what is looked for, over which ranges, and on which seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedbilevel.errors import NOTHING, BadInput
from fedbilevel.machine.processes import MOST_THREADS
from fedbilevel.results.targets import HIGHER, MEASURES, Target, hold_measure
from fedbilevel.strict import MOST, Strict

Spent = Literal["rounds", "uplink_bytes", "bytes", "simulated_seconds"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Bound = Annotated[int, Field(ge=-MOST, le=MOST)] | Finite
Choice = bool | int | Finite | str


class Range(Strict):
    """The numbers of an option between two ends: integers where both are written as such, or with `integer`.

    >>> Range(low=1, high=8).integers, Range(low=0.1, high=1).integers
    (True, False)
    """

    low: Bound
    high: Bound
    log: bool = Field(False, description="equal shares of the range to equal factors")
    integer: bool | None = Field(None, description="whole numbers only; default: where low and high are written so")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise BadInput("high", self.high, f"a number above low (= {self.low:g})")
        if self.log and self.low <= 0:
            raise BadInput("low", self.low, "a number above 0 with log = true")
        for name, end in (("low", self.low), ("high", self.high)):
            if self.integer and end != int(end):
                raise BadInput(name, end, "an integer with integer = true")
        return self

    @property
    def integers(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int) if self.integer is None else self.integer


class Best(Strict):
    """A column of the history, and whether more or less of it is better; a problem's own measures need that said.

    >>> Best(column="test_accuracy").higher, Best(column="metric_regret", direction="min").higher
    (True, False)
    """

    column: str
    direction: Literal["max", "min"] | None = Field(None, description="which is best; default: as the column is known")

    @model_validator(mode="after")
    def _known(self) -> Best:
        hold_measure(self.column, "column")
        if self.direction is None and self.column not in MEASURES:
            raise BadInput("direction", NOTHING, f'"max" or "min": of {self.column} it is not known which is better')
        return self

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.column in HIGHER if self.direction is None else self.direction == "max"


Choices = Annotated[list[Choice], Field(min_length=1)]
Ranges = dict[str, Range | Choices]
"""By option: a range of numbers, or the values to choose from."""


class TuneTable(Strict):
    """The `[tune]` table; every key of it may be left out."""

    fewest: Spent | None = Field(None, description="what is to be least when a run meets the target")
    target: Annotated[float, Field(gt=0, le=1)] | Target | None = Field(
        None, description="as an entry of run.targets; default: the last of them"
    )
    best: str | Best | None = Field(
        None,
        description="in place of fewest: the column to be best at the end of the run, with its direction if its own",
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**62)]], Field(min_length=1)] | None = Field(
        None, description="of every trial's runs, none of run.seeds; default: the first two that are free"
    )
    trials: int = Field(16, ge=1, le=10_000, description="of each algorithm")
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**62, description="draws what is tried")
    threads: int = Field(1, ge=1, le=MOST_THREADS, description="of torch in each run; another number rounds otherwise")
    stopping: bool = Field(True, description="give a trial up as soon as it cannot win; false: the full search")
    defaults: bool = Field(
        True, description="whether steps and penalties that no range is named for have their usual ones"
    )
    fixed: list[str] = Field(default_factory=list, description="labels of algorithms that are not tuned: no trials")
    ranges: Ranges = Field(default_factory=dict, description="of every algorithm that has the option")
    algorithms: dict[str, Ranges] = Field(default_factory=dict, description="of one algorithm, by its label")

    @model_validator(mode="after")
    def _one_goal(self) -> TuneTable:
        if isinstance(self.best, str):
            hold_measure(self.best, "best")
            if self.best not in MEASURES:
                allowed = f'{{ column = "{self.best}", direction = "max" }}, or "min": which is better is not known'
                raise BadInput("best", self.best, allowed)
        if self.best is not None:
            best = self.best if isinstance(self.best, str) else self.best.column
            for name, value in (("fewest", self.fewest), ("target", self.target)):
                if value is not None:
                    raise BadInput(name, value, f"only one of best (= {best}) and {name}")
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            raise BadInput("seeds", self.seeds, "seeds that differ from each other")
        return self

    def seeds_beside(self, taken: list[int]) -> list[int]:
        """The seeds of the trials where these are the run's. Raises BadInput where they overlap.

        >>> TuneTable().seeds_beside([0, 2])
        [1, 3]
        """
        if self.seeds is None:
            return [seed for seed in range(len(taken) + 2) if seed not in taken][:2]
        if common := [seed for seed in self.seeds if seed in taken]:
            allowed = f"seeds that run.seeds does not have (both have {', '.join(map(str, common))})"
            raise BadInput("tune.seeds", self.seeds, allowed)
        return self.seeds

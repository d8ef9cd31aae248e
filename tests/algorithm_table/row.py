"""What a row of the table says of an algorithm, and what rows have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Options = dict[str, Any]
Transcript = list[tuple[str, str]]
"""Per round the vectors down and up, by the names of what they are: "x y" are two vectors down."""

STEPS: Options = {"upper_step": 0.2, "lower_step": 0.3}
T, N = 3, 4
"""Lower-level rounds and Neumann terms of the cases."""
INDICES = [2, 0, 3]
"""Q or N' of their iterations."""
TAU = [1, 2, 4, 1, 3]
"""Unequal local steps of the five clients of `quadratic`, on y ..."""
UPPER_TAU = [2, 1, 1, 3, 2]
"""... and on x."""
SUM: Options = {"estimator": "sum"}
SAMPLE: Options = {"estimator": "sample", "indices": INDICES}


@dataclass(frozen=True)
class Row:
    """One algorithm for a global lower level.

    cases: held against the second implementation and `rounds`, all clients taking part, on top of STEPS
    rounds: the paper's count of an iteration's rounds, from the options and Q or N' (None for the fixed sum)
    counts: options and that number as the paper's table has it, with T = 3 (and N = 3 for aggitd), N = 4, N' = Q = 2
    sampled: held against the second implementation with sampled clients, with every option that it has
    travels: options and what two iterations carry
    pooled: with these options and one local step, many clients equal the pooled problem; None: they need not
    """

    cases: Sequence[Options]
    rounds: Callable[[Options, int | None], int]
    counts: Sequence[tuple[Options, int]]
    sampled: Options
    travels: Sequence[tuple[Options, list[Transcript]]]
    pooled: Options | None = None


@dataclass(frozen=True)
class TaskRow:
    """One algorithm for a local lower level.

    exact: options under which quadratic tasks have the meta-gradient's closed form
    work: options under which the passes charged are counted one by one
    variants: by name, options of runs that are held over workers and in single precision
    size: of the one vector that travels each way, for a network of so many parameters
    beside: of a second vector that travels up; 0: there is none
    """

    exact: Sequence[Options] = ()
    work: Sequence[Options] = ()
    variants: dict[str, Options] = field(default_factory=dict)
    size: Callable[[int], int] = lambda parameters: parameters
    beside: int = 0


def combined(*choices: Sequence[Options]) -> list[Options]:
    """Every combination of one choice each."""
    return [{key: value for each in chosen for key, value in each.items()} for chosen in product(*choices)]


def choices(option: str, *values: Any) -> list[Options]:
    """The values of one option, to be combined."""
    return [{option: value} for value in values]


def lower_rounds(o: Options) -> int:
    """Of T FedSGD steps, one each."""
    return int(o.get("lower_rounds", 1))


def svrg_rounds(o: Options) -> int:
    """Of T FedSVRG steps: two each, or one where the server takes the single local step."""
    merged = o.get("accounting", "paper") == "merged" and o.get("local_steps", 1) == 1
    return lower_rounds(o) * (1 if merged else 2)


def outer_rounds(o: Options) -> int:
    """Of the x step: none where the server takes it."""
    upper = o.get("upper_local_steps", 1)
    return 0 if upper == 0 or (o.get("accounting", "paper") == "merged" and upper == 1) else 1

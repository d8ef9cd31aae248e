"""What came out under several conditions, as one table: a column per value of the first, and the worst of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedbilevel.results.crossing import AS_CONFIGURED, crossing, ended
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.history import Row
from fedbilevel.results.targets import HIGHER, has_accuracy, named
from fedbilevel.tables.outcome import NEVER, digits, share
from fedbilevel.tables.sheet import Sheet


def crossed(rows: Sequence[Row], algorithms: Mapping[str, Mapping[str, Any]], ends: Ends = WHOLE) -> Sheet | None:
    """Where the runs ended under each condition, medians over seeds; None for a config of one condition.

    algorithms: the config's `[algorithms]`. The first of the tables in which they differ gives the columns; a row is an
    algorithm under what is in the others. A run that broke off has no number, and then no worst one has it.
    """
    under = crossing(algorithms)
    if under is None:
        return None
    column = "test_accuracy" if has_accuracy(rows) else "upper_loss"
    worst, form = (min, share) if column in HIGHER else (max, digits)

    def cell(value: float | None) -> str:
        return NEVER if value is None else form(value)

    lines = []
    for key, there in under.cells(ended(rows, column, ends)).items():
        whole = [value for value in there if value is not None]
        lines.append([*key, *map(cell, there), cell(worst(whole) if len(whole) == len(there) else None)])
    first, *rest = under.factors
    columns = ["algorithm", *rest, *(level or AS_CONFIGURED for level in under.levels(1)), "worst"]
    return Sheet(f"{named(column)} at the end, by {first}", columns, lines)

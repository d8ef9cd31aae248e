"""What came out under several conditions, as one table: a column per value of the first, and the worst of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedbilevel.config.cross import CONDITIONS, UNDER, shown
from fedbilevel.results.history import Row, number
from fedbilevel.results.summary import runs
from fedbilevel.results.targets import HIGHER, has_accuracy, named
from fedbilevel.tables.outcome import NEVER, digits, share
from fedbilevel.tables.sheet import Sheet


def crossed(rows: Sequence[Row], algorithms: Mapping[str, Mapping[str, Any]]) -> Sheet | None:
    """Where the runs ended under each condition, medians over seeds; None for a config of one condition.

    algorithms: the config's `[algorithms]`. The first of the tables in which they differ gives the columns; a row is an
    algorithm under what is in the others. A run that has failed has no number, and then no worst one has it.
    """
    told = {label: table.get(UNDER, {}) for label, table in algorithms.items()}
    factors = [name for name in CONDITIONS if len({shown(under.get(name, {})) for under in told.values()}) > 1]
    if not factors:
        return None
    first, others = factors[0], factors[1:]
    column = "test_accuracy" if has_accuracy(rows) else "upper_loss"
    ended = {label: _end(list(by_seed.values()), column) for label, by_seed in runs(rows).items()}
    levels = list(dict.fromkeys(shown(under.get(first, {})) for under in told.values()))
    found: dict[tuple[str, ...], dict[str, float | None]] = {}
    for label, under in told.items():
        name = str(label)
        for value in (shown(under.get(each, {})) for each in factors):
            name = name.replace(f", {value}", "", 1) if value else name
        key = (name, *(shown(under.get(each, {})) for each in others))
        found.setdefault(key, {})[shown(under.get(first, {}))] = ended.get(label)
    worst, form = (min, share) if column in HIGHER else (max, digits)

    def cell(value: float | None) -> str:
        return NEVER if value is None else form(value)

    lines = []
    for key, values in found.items():
        there = [values.get(level) for level in levels]
        whole = [value for value in there if value is not None]
        lines.append([*key, *map(cell, there), cell(worst(whole) if len(whole) == len(there) else None)])
    columns = ["algorithm", *others, *(level or "as configured" for level in levels), "worst"]
    return Sheet(f"{named(column)} at the end, by {first}", columns, lines)


def _end(seeds: Sequence[Sequence[Row]], column: str) -> float | None:
    last = [number(run[-1], column) for run in seeds if run]
    values = [value for value in last if value is not None]
    return statistics.median(values) if len(values) == len(last) > 0 else None

"""Curves of one config under several conditions: which algorithm each is, under which value of every table crossed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbilevel.config.cross import CONDITIONS, UNDER, shown
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.history import Row, number
from fedbilevel.results.summary import runs

AS_CONFIGURED = "as configured"


@dataclass(frozen=True)
class Crossing:
    """places: of each label its algorithm, and what it is under of each of the factors, the tables that differ.

    short: each of these levels in few words, for a figure.
    """

    factors: tuple[str, ...]
    places: Mapping[str, tuple[str, ...]]
    short: Mapping[str, str]

    def levels(self, factor: int) -> list[str]:
        """The levels of the factor of this number, counted from 1; of 0 the algorithms."""
        return list(dict.fromkeys(place[factor] for place in self.places.values()))

    def cells(self, found: Mapping[str, float | None]) -> dict[tuple[str, ...], list[float | None]]:
        """What was found of each label, by its algorithm and the other factors, under each level of the first."""
        cells: dict[tuple[str, ...], dict[str, float | None]] = {}
        for label, (algorithm, first, *others) in self.places.items():
            cells.setdefault((algorithm, *others), {})[first] = found.get(label)
        return {key: [row.get(level) for level in self.levels(1)] for key, row in cells.items()}

    def named(self, levels: Sequence[str]) -> str:
        """Levels of one curve in few words."""
        return "; ".join(self.short.get(level, level) for level in levels)


def crossing(algorithms: Mapping[str, Mapping[str, Any]]) -> Crossing | None:
    """How the config's `[algorithms]` are crossed; None for a config of one condition."""
    told = {str(label): table.get(UNDER, {}) for label, table in algorithms.items()}
    factors = [name for name in CONDITIONS if len({shown(under.get(name, {})) for under in told.values()}) > 1]
    if not factors:
        return None
    places = {}
    for label, under in told.items():
        levels = [shown(under.get(factor, {})) for factor in factors]
        algorithm = label
        for level in levels:
            algorithm = algorithm.replace(f", {level}", "", 1) if level else algorithm
        places[label] = (algorithm, *levels)
    short: dict[str, str] = {}
    for factor in factors:
        short |= _shortened([under.get(factor, {}) for under in told.values()])
    return Crossing(tuple(factors), places, short)


def ended(rows: Sequence[Row], column: str, ends: Ends = WHOLE) -> dict[str, float | None]:
    """Where the runs of each label ended, the median over seeds; None where one broke off, or has no number there."""
    lost = {label for label, _ in ends.broken_off}
    return {
        label: None if label in lost else _median([number(run[-1], column) for run in by_seed.values()])
        for label, by_seed in runs(rows).items()
    }


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if len(there) == len(values) else None


def _shortened(levels: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Levels of one factor in few words: what several say, and all of these alike, goes without saying.

    >>> _shortened([{"rule": "mean"}, {"rule": "krum", "byzantine": 4}, {"rule": "multi_krum", "byzantine": 4}])
    {'mean': 'mean', 'krum byzantine 4': 'krum', 'multi_krum byzantine 4': 'multi krum'}
    """
    told = {shown(level): dict(_leaves(level)) for level in levels}
    values: dict[str, list[object]] = {}
    for level in told.values():
        for key, value in level.items():
            values.setdefault(key, []).append(value)
    idle = {key for key, found in values.items() if len(found) > 1 and all(value == found[0] for value in found)}
    for without in (idle, set[str]()):
        names = {
            text: ", ".join(shown(value, key) for key, value in level.items() if key not in without)
            for text, level in told.items()
        }
        if len(set(names.values())) == len(names) and all(name or not told[text] for text, name in names.items()):
            break
    return {text: name.replace("_", " ") or AS_CONFIGURED for text, name in names.items()}


def _leaves(table: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value

"""What a trial may choose: the ranges of each algorithm's options, given or by default, and points in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedbilevel.config.tables import Config
from fedbilevel.config.tune import Range, Ranges, TuneTable
from fedbilevel.config.validation import unknown_key
from fedbilevel.errors import BadInput, unknown
from server.kit.algorithm import Entry
from server.running.plan import Job

Space = Mapping[str, Range | list[Any]]
"""By option: its range, or the values to choose from."""

_LOWER = Range(low=1e-3, high=3.0, log=True)
DEFAULTS: Mapping[str, Range] = {
    "upper_step": Range(low=1e-2, high=100.0, log=True),
    "lower_step": _LOWER,
    "upper_level_lower_step": _LOWER,
    "neumann_step": _LOWER,
    "penalty": Range(low=1.0, high=1000.0, log=True),
}
"""The ranges of options that a config names none for: of those that every problem needs set anew."""
EDGE = 0.05
"""The share of a range at either end in which an optimum may well lie beyond it."""


def spaces(config: Config, jobs: Sequence[Job]) -> dict[str, Space]:
    """The ranges of every algorithm of a config, by label; empty for one whose options all stay as they are.

    What `[tune]` names for an algorithm wins over what it names for all, and that over DEFAULTS, which hold for the
    other options that an algorithm has and does not find by itself, set or not, unless `defaults` is false. A list of
    one value holds an option, and `fixed` all of those of an algorithm.

    Raises BadInput for a label or an option that is not there, and for ends that an algorithm does not take.
    """
    tune = config.tune or TuneTable()
    entries = {job.label: job.entry for job in jobs}
    _hold_labels(tune, entries)
    known = sorted({name for entry in entries.values() for name in entry.options.model_fields})
    for name, given in tune.ranges.items():
        if name not in known:
            raise unknown_key("tune.ranges", name, _shown(given), known)
    found: dict[str, Space] = {}
    for label, entry in entries.items():
        fields = entry.options.model_fields
        own = tune.algorithms.get(label, {})
        for name, given in own.items():
            if name not in fields:
                raise unknown_key(f"tune.algorithms.{label}", name, _shown(given), sorted(fields))
        shared: Ranges = {name: given for name, given in tune.ranges.items() if name in fields}
        _hold(entry, shared, "tune.ranges")
        _hold(entry, own, f"tune.algorithms.{label}")
        needed = fields.keys() - entry.options.automatic if tune.defaults else set()
        usual: Ranges = {name: given for name, given in DEFAULTS.items() if name in needed}
        found[label] = {} if label in tune.fixed else _over(entry, _over(entry, usual, shared), own)
    return found


def _hold_labels(tune: TuneTable, entries: Mapping[str, Entry]) -> None:
    for key, labels in (("tune.algorithms", list(tune.algorithms)), ("tune.fixed", tune.fixed)):
        for label in labels:
            if label not in entries:
                raise unknown(key, label, entries)
    for label in tune.fixed:
        if label in tune.algorithms:
            allowed = f"an algorithm without ranges of its own, or no tune.algorithms.{label}"
            raise BadInput("tune.fixed", label, allowed)


def _over(entry: Entry, ranges: Ranges, wins: Ranges) -> Ranges:
    """Both, where `wins` does: also over the other name of the same number; of two names in one table the first."""
    for names in entry.options.aliases:
        if set(names) & set(wins):
            ranges = {name: given for name, given in ranges.items() if name not in names}
        if set(names) <= set(wins):
            wins = {name: given for name, given in wins.items() if name != names[1]}
    return ranges | wins


def _hold(entry: Entry, ranges: Ranges, key: str) -> None:
    for name, given in ranges.items():
        ends = [cast(given, given.low), cast(given, given.high)] if isinstance(given, Range) else given
        for end in ends:
            entry.parse({name: end}, key)


def _shown(given: Range | list[Any]) -> object:
    return given.model_dump(exclude_none=True) if isinstance(given, Range) else given


def cast(given: Range, value: float) -> float | int:
    """A number of a range as the option takes it: an integer, or four digits of it that do not leave the range.

    >>> cast(Range(low=0.1, high=1.0), 0.123456), cast(Range(low=1, high=9), 3.0)
    (0.1235, 3)
    """
    if given.integers:
        return round(value)
    return min(max(float(f"{value:.4g}"), float(given.low)), float(given.high))


def with_options(config: Config, label: str, options: Mapping[str, Any], entry: Entry) -> Config:
    """The config with these options in the algorithm's own table; the other name of the same number is taken out."""
    own = dict(config.algorithms[label])
    for names in entry.options.aliases:
        if set(names) & set(options):
            own = {name: value for name, value in own.items() if name not in names}
    return config.model_copy(update={"algorithms": config.algorithms | {label: own | dict(options)}})


def grid(space: Space, trials: int) -> list[dict[str, Any]]:
    """At most so many points, every value of one option with every value of the others.

    Each range has as many values, its ends among them, as fit; choices are whole. Raises BadInput where not even two
    values of each range fit.

    >>> [point["a"] for point in grid({"a": Range(low=0.01, high=1.0, log=True)}, 3)]
    [0.01, 0.1, 1.0]
    """
    ranges = [given for given in space.values() if isinstance(given, Range)]
    fixed = math.prod(len(given) for given in space.values() if isinstance(given, list))
    count = next((n for n in range(trials, 1, -1) if fixed * n ** len(ranges) <= trials), 0) if ranges else 1
    if count == 0 or fixed * count ** len(ranges) > trials:
        raise BadInput("tune.trials", trials, f"at least {fixed * 2 ** len(ranges)} for a grid of {', '.join(space)}")
    values = [
        list(dict.fromkeys(cast(given, at(given, step / (count - 1))) for step in range(count)))
        if isinstance(given, Range)
        else given
        for given in space.values()
    ]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def at(given: Range, share: float) -> float:
    """The number at this share of a range."""
    if given.log:
        return float(given.low * math.pow(given.high / given.low, share))
    return float(given.low) + share * (given.high - given.low)


def share_of(given: Range, value: float) -> float:
    """At which share of its range a number lies, by factors where the range is logarithmic."""
    if given.log:
        return math.log(value / given.low) / math.log(given.high / given.low)
    return (value - given.low) / (given.high - given.low)


def edge(label: str, name: str, given: Range, value: float) -> str | None:
    """What to say of an optimum in the outer EDGE of its range, with the range to try next; None for one inside.

    >>> edge("f2sa", "penalty", Range(low=1.0, high=100.0, log=True), 95.0)
    'f2sa: penalty = 95 is at the upper end of its range, 1 to 100; next try 10 to 1000'
    """
    share = share_of(given, value)
    if EDGE < share < 1.0 - EDGE:
        return None
    upper = share > 0.5
    low, high = (at(given, 0.5), at(given, 1.5)) if upper else (at(given, -0.5), at(given, 0.5))
    if not given.log and given.low >= 0:  # no option becomes negative that was not
        low = max(low, 1.0 if given.integers and given.low > 0 else 0.0)
    if given.integers:
        low, high = math.floor(low), math.ceil(high)
        if given.log:
            low = max(low, 1)
    here = f"{label}: {name} = {value:.4g} is at the {'upper' if upper else 'lower'} end of its range"
    return f"{here}, {given.low:g} to {given.high:g}; next try {low:.3g} to {high:.4g}"

"""The middle of several seeds and how far they lie apart, where some may never have arrived."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

QUARTILES_FROM = 4
"""Fewer seeds than this are spread from the lowest to the highest, as many or more from quartile to quartile."""


@dataclass(frozen=True)
class Amount:
    """A value; or, of a seed that never arrived, all that is known of it: that it lies beyond `value`."""

    value: float
    censored: bool = False


@dataclass(frozen=True)
class Spread:
    """The median of some seeds, and the ends of what they span."""

    median: Amount
    low: Amount
    high: Amount
    kind: Literal["quartiles", "range"]


def spread(values: Sequence[float], beyond: Sequence[float] = ()) -> Spread | None:
    """The median and the quartiles (of four seeds and more) or the range (of fewer); None of nothing.

    values: of the seeds that arrived; beyond: of each seed that never did, what it had spent at its end. A seed that
    never arrived ranks behind every seed that did, and behind its own end. Quartiles, and the median of an even number,
    are interpolated linearly between the two seeds beside them, and lie beyond the result where one of the two does.
    NaN among the values makes everything NaN.

    >>> spread([500.0, 700.0], beyond=[900.0]).median, spread([500.0], beyond=[900.0, 900.0]).median
    (Amount(value=700.0, censored=False), Amount(value=900.0, censored=True))
    """
    if any(map(math.isnan, values)):
        values = [math.nan] * len(values)
    ranked = [Amount(value) for value in sorted(values)]
    least = ranked[-1].value if ranked else -math.inf
    ranked += [Amount(max(end, least), censored=True) for end in sorted(beyond)]
    if not ranked:
        return None
    quartiles = len(ranked) >= QUARTILES_FROM
    low, median, high = (_quantile(ranked, q) for q in ((0.25, 0.5, 0.75) if quartiles else (0.0, 0.5, 1.0)))
    return Spread(median, low, high, "quartiles" if quartiles else "range")


def _quantile(ranked: Sequence[Amount], q: float) -> Amount:
    """The value at the share q of the way from the first to the last."""
    place = q * (len(ranked) - 1)
    below, weight = int(place), place - int(place)
    a = ranked[below]
    if weight == 0.0:
        return a
    b = ranked[below + 1]
    return Amount((1.0 - weight) * a.value + weight * b.value, b.censored)

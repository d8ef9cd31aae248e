"""The robust rules: by name, how many Byzantine vectors each takes, and the one function that aggregates."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fedbilevel.robust.centres import centred_clipping, geometric_median
from fedbilevel.robust.columns import means
from fedbilevel.robust.coordinates import median, trimmed_mean
from fedbilevel.robust.neighbours import buckets, krum_order, neighbourhoods

Rule = Literal["mean", "median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "centred_clipping"]
RULES: tuple[Rule, ...] = get_args(Rule)

Before = Literal["nnm", "bucketing"]
"""What may be done to the vectors first: each the mean of its nearest neighbours, or the means of buckets of them."""


def most_byzantine(rule: Rule, n: int, before: Before | None, bucket: int) -> int:
    """The largest number f of Byzantine vectors among n that a rule takes; negative: n are too few even for f = 0.

    The mean takes none; Krum 2f + 2 < n (Blanchard et al., 2017), all others and nearest-neighbour mixing 2f < n. After
    bucketing n is the number of buckets, and each Byzantine vector may spoil another one.

    >>> most_byzantine("median", 10, None, 2), most_byzantine("krum", 10, None, 2)
    (4, 3)
    >>> most_byzantine("median", 10, "bucketing", 2)
    2
    """
    left = -(-n // bucket) if before == "bucketing" else n
    if rule == "mean":
        return min(0, left - 1)
    return (left - 3) // 2 if rule in ("krum", "multi_krum") else (left - 1) // 2


def aggregate(
    rows: Tensor,
    rule: Rule,
    f: int,
    *,
    before: Before | None = None,
    bucket: int = 2,
    radius: float = 1.0,
    last: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """One vector [d] of the clients' vectors, rows [n, d] of any float dtype on the CPU; in float64 throughout.

    f: so many of them are taken to be Byzantine. before: "nnm" or "bucketing", by which the rule is given n vectors or
    ceil(n / bucket) of them. bucket, order: the size of a bucket, and the permutation [n] of the rows that is cut into
    buckets (None: as they come). radius, last: of centred clipping, how far a vector counts whole and where it starts
    ([d]; None: 0).

    The order of the rows does not matter, beyond rounding, but for buckets and for which of equal scores Krum takes.
    All values are finite and at most 1e150.

    Raises ValueError if f is negative or more than `most_byzantine`, or if something else is not as said here.

    >>> rows = torch.tensor([[1.0, 8.0], [2.0, 6.0], [1e30, 7.0]])
    >>> aggregate(rows, "median", 1)
    tensor([2., 7.], dtype=torch.float64)
    """
    _see_to(rows, rule, f, before, bucket, radius, last, order)
    rows = rows.detach()
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.double()
    if before is not None:
        rows = means(rows, neighbourhoods(rows, f) if before == "nnm" else buckets(len(rows), bucket, order))
    match rule:
        case "mean":
            return means(rows, torch.ones(len(rows)))
        case "median":
            return median(rows)
        case "trimmed_mean":
            return trimmed_mean(rows, f)
        case "geometric_median":
            return geometric_median(rows)
        case "krum":
            return rows[krum_order(rows, f)[0]].double()
        case "multi_krum":
            best = krum_order(rows, f)[: len(rows) - f]
            return means(rows, torch.zeros(len(rows)).index_fill_(0, best, 1.0))
        case "centred_clipping":
            return centred_clipping(rows, radius, last)


def _see_to(
    rows: Tensor,
    rule: Rule,
    f: int,
    before: Before | None,
    bucket: int,
    radius: float,
    last: Tensor | None,
    order: Tensor | None,
) -> None:
    """Raise ValueError for what `aggregate` does not take."""
    if rows.ndim != 2 or not rows.is_floating_point() or len(rows) == 0:
        raise ValueError(f"rows: got {rows.dtype} {list(rows.shape)}; allowed: floats [n, d] with n of at least 1")
    n, d = rows.shape
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}; allowed: {', '.join(RULES)}")
    if before is not None and before not in get_args(Before):
        raise ValueError(f"before: got {before!r}; allowed: None, {', '.join(get_args(Before))}")
    if bucket < 1:
        raise ValueError(f"bucket: got {bucket}; allowed: an integer of at least 1")
    if not radius > 0:
        raise ValueError(f"radius: got {radius}; allowed: a number above 0")
    if last is not None and last.shape != (d,):
        raise ValueError(f"last: got {list(last.shape)}; allowed: [{d}], as long as a row")
    if order is not None and sorted(order.tolist()) != list(range(n)):
        raise ValueError(f"order: allowed: a permutation of 0 to {n - 1}")
    most = most_byzantine(rule, n, before, bucket)
    if not 0 <= f <= most:
        taken = f"an integer from 0 to {most}" if most >= 0 else "no number, they are too few"
        after = f" after {before}" if before else ""
        raise ValueError(f"f: got {f}; {rule}{after} allows of {n} vectors: {taken}")

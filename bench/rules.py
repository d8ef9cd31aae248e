"""What a robust rule costs: 100 clients' vectors of 157,000 float32 values, of which 20 are taken to be Byzantine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.timing import median
from fedbilevel.robust.rules import Rule, aggregate

CLIENTS, VALUES, BYZANTINE = 100, 157_000, 20


def _ms(rule: Rule, **before: Any) -> float:
    rows = torch.randn(CLIENTS, VALUES, generator=torch.Generator().manual_seed(0))
    return 1e3 * median(lambda: aggregate(rows, rule, BYZANTINE, **before), 7)


MEASURES: dict[str, Callable[[], float]] = {
    "trimmed_mean_ms": lambda: _ms("trimmed_mean"),
    "nnm_trimmed_mean_ms": lambda: _ms("trimmed_mean", before="nnm"),
}

"""Clocks that all benchmarks share, and the compute unit in which the figure's iterations are counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def compute_unit() -> Callable[[], object]:
    """The compute unit: one float32 product 3000x784 @ 784x200."""
    a, b = torch.randn(3000, 784), torch.randn(784, 200)
    return lambda: a @ b


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def median(call: Callable[[], object], repeats: int, warm: int = 3) -> float:
    """Seconds of a call: the median of repeated ones, after some that do not count."""
    for _ in range(warm):
        call()
    return statistics.median(seconds(call) for _ in range(repeats))


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int, warm: int) -> float:
    """Seconds of one call over those of another: medians of runs that alternate, after some that do not count."""
    for _ in range(warm):
        one(), other()
    pairs = [(seconds(one), seconds(other)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)

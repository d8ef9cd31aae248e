"""How far two results are apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from server.running.run import Result
from tests.reference import Entry


def relative(found: Any, expected: Any) -> float:
    """|found - expected| / |expected| of two vectors (or arrays) of one shape."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def agree(result: Result, entries: list[Entry], tolerance: float = 1e-10) -> None:
    """A run's trace is that of the second implementation."""
    assert result.trace is not None
    assert len(result.trace) == len(entries)
    for found, expected in zip(result.trace, entries, strict=True):
        for ours, theirs in ((found.x, expected.x), (found.y, expected.y), (found.hypergradient, expected.h)):
            assert ours is not None
            assert ours.dtype == torch.float64
            assert relative(ours, theirs) <= tolerance
    assert torch.equal(result.x, result.trace[-1].x)
    assert torch.equal(result.y, result.trace[-1].y)

"""A config that makes engines differ if anything does, and histories held against each other."""

from typing import Any

import pytest

from fedbilevel.results.history import SOLUTION_COLUMNS

PARTIAL: dict[str, Any] = {
    "run": {
        "seeds": [3, 4],
        "iterations": 3,
        "dtype": "float64",
        "batch": 2,
        "gradient_batch": 3,
        "clients_per_round": 4,
    },
    "problem": {"name": "quadratic", "clients": 9, "dim_x": 3, "dim_y": 4, "examples": [1, 4]},
    "systems": {"availability": 0.7},
    "options": {"upper_step": 0.05, "lower_step": 0.1, "neumann_terms": 2, "lower_rounds": 2, "local_steps": 2},
    "algorithms": {"aggitd": {"estimator": "sample"}, "fednest": {}, "memfbo": {}, "f2sa": {}},
}


def without_wall_seconds(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in rows]


def assert_same(rows: list[dict[str, object]], expected: list[dict[str, object]], tolerance: float = 1e-12) -> None:
    """Every column but wall_seconds: numbers to the tolerance (relative and absolute), the rest exactly."""
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(without_wall_seconds(rows), without_wall_seconds(expected), strict=True):
        assert row.keys() == wanted.keys()
        for name, value in row.items():
            allowed = max(tolerance, 1e-9) if name in SOLUTION_COLUMNS else tolerance  # found by iteration
            if isinstance(value, float):
                assert value == pytest.approx(wanted[name], rel=allowed, abs=allowed), name
            else:
                assert value == wanted[name], name

"""Waits for room on the tests' Ray cluster."""

from __future__ import annotations

import time

import ray


def free(cpus: int) -> None:
    """Wait until so many CPUs are free on the cluster: its books are late when actors have ended."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0.0) < cpus:
        assert time.monotonic() < deadline
        time.sleep(0.05)

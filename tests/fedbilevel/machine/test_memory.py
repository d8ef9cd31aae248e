"""How much memory is left, and the refusal of what cannot fit in it."""

from __future__ import annotations

import pytest

from fedbilevel.errors import BadInput
from fedbilevel.machine import memory
from fedbilevel.machine.processes import require_processes


def test_this_machine_has_memory_left() -> None:
    assert 2**20 < memory.available() < 2**50


def test_what_cannot_fit_is_refused_with_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.require(1000.0, "run", "less")
    monkeypatch.setattr(memory, "available", lambda device=None: 2**30)
    with pytest.raises(BadInput, match=r"run: got .*3\.0 GiB.*; allowed: at most the 1\.0 GiB .*: less"):
        memory.require(3 * 2**30, "run", "less")


def test_every_process_takes_two_hundred_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device=None: 600_000_000)
    require_processes(3, "jobs")
    with pytest.raises(BadInput, match=r"jobs: got .*0\.7 GiB.*0\.6 GiB .*: fewer than 4 worker processes"):
        require_processes(4, "jobs")

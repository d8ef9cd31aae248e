"""An interrupted run of a local lower level goes on with the moments of its optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import server.running.experiment
from experiments.cli import main
from experiments.runs.progress import Lines
from tests.processes.console import rows

CONFIG = """
[run]
seeds = [0]
iterations = 6
evaluate_every = 1
dtype = "float64"
clients_per_round = 3
[problem]
name = "quadratic_tasks"
clients = 5
[options]
upper_optimiser = "adam"
upper_schedule = "halving"
upper_period = 4
tasks_per_client = 2
evaluation_tasks = 20
[algorithms.maml]
truncation = 2
[algorithms.memfbo]
local_steps = 3
"""


KEPT = """
[run]
seeds = [0]
iterations = 6
evaluate_every = 1
dtype = "float64"
clients_per_round = 3
gradient_batch = 2
[problem]
name = "quadratic"
clients = 7
[options]
upper_optimiser = "momentum"
lower_step = 0.3
upper_schedule = "inverse_sqrt"
[algorithms.momenta]
algorithm = "br-fedbi"
variant = "momentum"
[algorithms.page]
algorithm = "br-fedbi"
variant = "page"
page_probability = 0.3
[algorithms.fedbioacc]
"""


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, KEPT], ids=["moments", "what clients keep"])
def test_an_interrupted_run_goes_on_with_what_it_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    monkeypatch.setattr(server.running.experiment, "WRITE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(config)
    assert main(["run", "config.toml", "--out", "whole"]) == 0
    left = [4]

    def stop(self: Any, job: Any, iteration: int, rounds: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    for moment in (4, 9):
        left[0] = moment
        out = f"stopped{moment}"
        with monkeypatch.context() as patch:
            patch.setattr(Lines, "stepped", stop)
            assert main(["run", "config.toml", "--out", out]) == 130
        assert rows(out) != rows("whole")
        assert main(["resume", out]) == 0
        assert rows(out) == rows("whole")

"""Peak memory is estimated before a run, and what cannot fit is refused with the estimate."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from fedbilevel import simulate
from fedbilevel.data import federate
from fedbilevel.errors import BadInput
from fedbilevel.machine import memory
from fedbilevel.problems import HyperRepresentation, Quadratic
from fedbilevel.problems.quadratic_tasks import QuadraticTasks
from server.kit.algorithm import find
from server.running.estimate import estimate

PEAK = """
import re
from pathlib import Path
from fedbilevel import simulate
from fedbilevel.data import federate
from fedbilevel.problems import HyperRepresentation
from server.kit.algorithm import find
from server.running.estimate import estimate
from server.running.run import initial

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

problem = HyperRepresentation(federate("digits", clients=40, partition_name="iid"), hidden=[{width}])
options = {{"upper_local_steps": {steps}, "neumann_terms": 1, "upper_step": 1e-3, "lower_step": 1e-3}}
simulate(problem, "fednest", iterations=1, neumann_terms=1)
before = peak()
simulate(problem, "fednest", iterations=2, **options)
after = peak()
entry = find("fednest")
print(after - before, estimate(problem, initial(problem, 0), entry.parse(options), None).total)
"""

TASKS = """
import re
from pathlib import Path
from bench.meta import FewShot
from fedbilevel import simulate
from server.kit.algorithm import find
from server.running.estimate import estimate
from server.running.run import initial

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

problem = FewShot()
common = {{"evaluation_tasks": 2, "upper_step": 1e-3, "lower_step": 1e-3}}
options = {{"tasks_per_client": 100, "local_steps": {steps}, **common}}
simulate(problem, "{name}", iterations=1, tasks_per_client=1, local_steps=1, **common)
before = peak()
simulate(problem, "{name}", iterations=2, **options)
after = peak()
print(after - before, estimate(problem, initial(problem, 0), find("{name}").parse(options), None).total)
"""


def test_this_machine_has_memory_left() -> None:
    assert 2**20 < memory.available() < 2**50


def test_what_cannot_fit_is_refused_with_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.require(1000.0, "run", "less")
    monkeypatch.setattr(memory, "available", lambda device=None: 2**30)
    with pytest.raises(BadInput, match=r"run: got .*3\.0 GiB.*; allowed: at most the 1\.0 GiB .*: less"):
        memory.require(3 * 2**30, "run", "less")


def test_problems_too_large_to_build_are_refused_before_they_are_built() -> None:
    with pytest.raises(BadInput, match=r"problem: .*GiB"):
        Quadratic(clients=10**6, dim_y=1000)
    with pytest.raises(BadInput, match=r"problem\.hidden: .*GiB"):
        HyperRepresentation(federate("digits", clients=3, partition_name="iid"), hidden=[10**8])


def test_rows_that_cannot_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Quadratic(clients=50, dim_x=2000, dim_y=2, examples=1)
    monkeypatch.setattr(memory, "available", lambda device=None: 3 * 2**20)
    with pytest.raises(BadInput, match=r"run: .*GiB"):
        simulate(problem, "fednest", iterations=1, upper_local_steps=2)
    simulate(problem, "fednest", iterations=1, upper_local_steps=2, clients_per_round=2)
    simulate(problem, "fednest", iterations=1, upper_local_steps=1)


def test_more_clients_with_a_path_of_their_own_need_more() -> None:
    problem = Quadratic(clients=30, dim_x=100, dim_y=5)
    start = problem.initial(torch.Generator())
    options = find("fednest").parse({"upper_local_steps": 3, "local_steps": 2})
    sizes = [estimate(problem, start, options, sampled).rows for sampled in (1, 10, None)]
    assert sizes[1] == pytest.approx(10 * sizes[0])
    assert sizes[2] == pytest.approx(30 * sizes[0])
    assert estimate(problem, start, find("fednest").parse({}), None).rows == 0


@pytest.mark.parametrize(("width", "steps"), [(2000, 1), (4000, 3)])
def test_the_estimate_is_of_the_size_of_the_peak(width: int, steps: int) -> None:
    code = PEAK.format(width=width, steps=steps)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.fullmatch(r"(\d+) ([\d.e+]+)\n", out)
    assert match
    measured, estimated = float(match[1]), float(match[2])
    assert measured < 1.5 * estimated
    if steps > 1:
        assert estimated < 4 * measured


def test_tasks_that_cannot_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device=None: 8 * 2**20)
    options = {"iterations": 1, "evaluation_tasks": 2}
    with pytest.raises(BadInput, match=r"run: .*an estimated .*GiB"):
        simulate("quadratic_tasks", "maml", local_steps=10_000, tasks_per_client=20, **options)
    with pytest.raises(BadInput, match=r"run: .*an estimated .*GiB"):
        simulate("quadratic_tasks", "fomaml", tasks_per_client=10_000, **options)
    simulate("quadratic_tasks", "maml", local_steps=10, tasks_per_client=20, **options)


def test_the_path_of_maml_counts_and_other_paths_do_not() -> None:
    problem = QuadraticTasks(clients=6, dim=50, tasks=3)
    start = problem.initial(torch.Generator())

    def rows(name: str, steps: int, sampled: int | None = None) -> float:
        options = find(name).parse({"local_steps": steps, "tasks_per_client": 7, "evaluation_tasks": 1})
        return estimate(problem, start, options, sampled).rows

    assert rows("maml", 30) - rows("maml", 10) == 20 * 6 * 7 * 50 * 8
    assert rows("maml", 1000, 2) - rows("maml", 990, 2) == 10 * 2 * 7 * 50 * 8
    for name in ("fomaml", "reptile", "memfbo", "bome"):
        assert 0 < rows(name, 30) == rows(name, 10) < rows("maml", 10)


@pytest.mark.parametrize(("name", "steps"), [("maml", 20), ("fomaml", 20), ("memfbo", 3)])
def test_the_estimate_of_tasks_is_of_the_size_of_the_peak(name: str, steps: int) -> None:
    code = TASKS.format(name=name, steps=steps)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    measured, estimated = map(float, out.split())
    assert measured < 1.5 * estimated
    assert estimated < 4 * measured

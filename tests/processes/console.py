# What the tests of the command line share: configs, and what a folder, a history or a process holds.

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from experiments.cli import main
from fedbilevel.results import read_history

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "config.toml",
    "history.csv",
    "summary.csv",
    "environment.toml",
    "report.html",
    *(f"{x}_vs_upper_loss.{kind}" for x in ("rounds", "bytes") for kind in ("png", "svg", "pdf")),
}
# Everything that must survive a checkpoint: a warm start, random indices, samples, minibatches, absent clients.
QUADRATIC = """
[run]
seeds = [0, 1]
iterations = 6
evaluate_every = 7
dtype = "float64"
clients_per_round = 3
batch = 2
[problem]
name = "quadratic"
clients = 5
[systems]
availability = 0.7
[options]
lower_step = 0.2
lower_rounds = 2
[algorithms.aggitd]
warm_start = true
[algorithms.mine]
algorithm = "fednest"
estimator = "sample"
local_steps = { low = 1, high = 3 }
"""


def config(text=QUADRATIC, name="config.toml"):
    Path(name).write_text(text)
    return name


def tree(folder="."):
    """Every path below a folder with its bytes."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))}


def rows(folder):
    """A history but for the wall clock, in an order of its own: exact floats."""
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in read_history(Path(folder) / "history.csv")]


def process(*arguments, first="", **more):
    """A process of the command line, with as many threads as this one: its floats are to be the same.

    first: what it does before, in Python.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    code = f"{first}\nimport sys\nfrom experiments.cli import main\nsys.exit(main())"
    started = ["-c", code] if first else ["-m", "experiments.cli"]
    command = [sys.executable, *started, *map(str, arguments)]
    # a shell without job control lets what it starts in the background ignore Ctrl-C, and children inherit that
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c, **more)


def heed_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def refused(capsys, *arguments):
    """The line that bad input gives, when the status is 2 and nothing else was said or changed."""
    before = tree()
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert {path for path in tree() if "__pycache__" not in path} == set(before)
    assert all(tree()[path] == content for path, content in before.items())
    assert said.err.count("\n") == 1
    assert said.err.startswith("fedbilevel: ")
    assert ": got " in said.err
    assert "; allowed: " in said.err
    return said.err

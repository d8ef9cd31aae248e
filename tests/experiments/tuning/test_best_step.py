# The step that a tuning finds for gradient descent, against a fine grid of steps in numpy.

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import torch

from experiments.cli import main
from fedbilevel.problems import Quadratic
from tests.processes.console import config
from tests.reference.quadratic import clients_of

STEPS = 4
# x stays; every iteration is one step on y along the mean of the clients' gradients: gradient descent on the pooled g
DESCENT = f"""
[run]
seeds = [0]
iterations = {STEPS}
dtype = "float64"
solution_every = 0
[problem]
name = "quadratic"
clients = 6
mu = 0.2
L = 1.0
seed = 3
[options]
upper_step = 0.0
lower_rounds = 1
[algorithms.aggitd]
[tune]
best = "lower_loss"
seeds = [1]
trials = 32
defaults = false
ranges.lower_step = {{ low = 0.02, high = 20.0, log = true }}
"""


def test_the_step_of_gradient_descent_is_that_of_a_fine_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", config(DESCENT), "--out", "a"]) == 0
    found = tomllib.loads(Path("a/tuned.toml").read_text())["algorithms"]["aggitd"]["lower_step"]

    problem = Quadratic(clients=6, mu=0.2, L=1.0, seed=3)
    clients = clients_of(problem)
    x, y0 = (start.numpy() for start in problem.initial(torch.Generator().manual_seed(1)))
    A = sum(client.p * client.A for client in clients)
    q = sum(client.p * (client.B @ x + client.b) for client in clients)

    def loss(step):
        y = y0
        for _ in range(STEPS):
            y = y - step * (A @ y - q)
        return 0.5 * y @ A @ y - q @ y

    grid = np.geomspace(0.02, 20.0, 4001)
    best = grid[np.argmin([loss(step) for step in grid])]
    assert 1.0 < best < 3.0  # the range has it well inside
    assert abs(found / best - 1.0) < 0.05

"""The peak memory of one client's meta-gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from clients.cohort import Cohort
from clients.held import Draw, Held
from clients.methods import methods
from fedbilevel.errors import unknown
from fedbilevel.machine.peak import peak_memory
from fedbilevel.tasks import TaskProblem
from server.kit.algorithm import algorithms, find
from server.running.run import initial


def meta_gradient_peak(problem: TaskProblem, algorithm: str, options: Mapping[str, Any], seed: int = 0) -> int:
    """Bytes that the meta-gradient of the first client takes beyond its tasks, at the start of a run.

    Raises BadInput for an algorithm without a clients' method, options that it cannot use, and a problem that it does
    not solve.
    """
    if algorithm not in methods():
        raise unknown("algorithm", algorithm, set(methods()) & set(algorithms("local")))
    entry, method = find(algorithm), methods()[algorithm]
    entry.hold(problem, "algorithm")
    o: Any = entry.parse(options)
    x = entry.build(o).init(*initial(problem, seed)).x
    cohort = Cohort(Held.of(problem, np.array([0])), Draw(seed, 0, "meta_gradient"), pooled=False)
    with torch.no_grad():
        tasks = cohort.tasks(method.parameters(x), o.tasks_per_client)
        settings = o.settings()
        return peak_memory(lambda: method.meta_gradient(tasks, x, settings), x.device)

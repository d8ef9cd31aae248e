"""The directions of an algorithm at one point: what it takes for the hypergradient, iteration by iteration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from clients.node import Setting
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.machine.device import Device
from fedbilevel.problem import Problem
from fedbilevel.tasks import is_local
from server.grids.engines import in_process
from server.kit.algorithm import Entry, State
from server.kit.options import Options


def directions(
    entry: Entry, options: Options, problem: Problem, x: Tensor, y: Tensor, *, seed: int = 0, device: Device = "auto"
) -> Iterator[State]:
    """The states after the first outer iteration from (x, y), the second, and so on, each begun at the same x.

    x is taken back after every iteration; y and whatever else the algorithm carries go on. `hypergradient` of a state
    is the direction of its iteration. All clients take part, with full batches. Raises what a run raises.

    >>> import torch
    >>> from fedbilevel.problems import Quadratic
    >>> from server.kit.algorithm import find
    >>> problem, entry = Quadratic(clients=2), find("fedavg-alternating")
    >>> x, y = problem.initial(torch.Generator().manual_seed(0))
    >>> found = directions(entry, entry.parse({"lower_step": 0.0}), problem, x, y)
    >>> torch.allclose(next(found).hypergradient, next(found).hypergradient)  # y stays as well
    True
    """
    algorithm = entry.build(options)
    sizes = problem.task_sizes if is_local(problem) else None
    exchange = in_process(problem, Setting(seed, device=device, files=entry.client_files))
    fed = Federation(
        exchange, Population.of(problem.clients, sizes), seed=seed, x_shapes=getattr(problem, "x_shapes", ())
    )
    state: State = algorithm.init(x, y)
    start = state.x
    for iteration in itertools.count():
        fed.begin(iteration)
        state = algorithm.step(state, fed)
        yield state
        state = replace(state, x=start)

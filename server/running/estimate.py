"""An estimate of the peak memory of a run, from the sizes of its problem and the way its clients work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedbilevel import derivatives
from fedbilevel.federation.participation import Population
from fedbilevel.problem import Examples, Problem, leaves, map_examples
from fedbilevel.tasks import TaskProblem, is_local
from server.kit.meta import EVALUATION_CHUNK, TaskOptions
from server.kit.options import Options

_VECTORS = 12
"""Copies of x and y at one time: the server's state, the message, the node's copies, and float64 sums."""
_ROWS = 6
"""Copies of each client's own x or y in a local step: the iterate, two gradients, their difference, temporaries."""
_APART = 5
"""Copies in float64 of every client's answer: as it came, its displacement, what is left of it, and the rule's own."""
_TASK = 12
"""Copies of each task's own parameters: the iterate, a direction, its derivatives, temporaries."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes beyond the clients' data, which are loaded already.

    gathered: the sampled clients' examples; prepared: what `prepare` makes of examples, with as much again for its
    intermediate results, or the sets of tasks; vectors: x, y and their copies; rows: one x or y per client or task,
    what differentiating them keeps, and what clients keep between rounds; solution: the problem once more in float64,
    where its lower level is solved.
    """

    gathered: float
    prepared: float
    vectors: float
    rows: float
    solution: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.gathered + self.prepared + self.vectors + self.rows + self.solution


def estimate(
    problem: Problem,
    start: tuple[Tensor, Tensor],
    options: Options,
    clients_per_round: int | None,
    *,
    solved: bool = False,
    apart: bool = False,
) -> Estimate:
    """Estimate the peak of a run of one worker that evaluates on all clients; solved: at the lower solution too;
    apart: every client's own answer is needed.
    """
    x, y = start
    population = Population.of(problem.clients)
    m = len(population)
    sampled = m if clients_per_round is None else min(clients_per_round, m)
    data = sum(_bytes(level.values) for level in (problem.clients.lower, problem.clients.upper))
    everyone = float(population.lower_sizes.sum() + population.upper_sizes.sum())
    gathered, vectors = data * sampled / m if sampled < m else 0.0, float(_VECTORS * 8 * (x.numel() + y.numel()))
    if is_local(problem):
        own = options if isinstance(options, TaskOptions) else TaskOptions()
        sets, rows = _of_tasks(problem, x, own, m, sampled)
        return Estimate(gathered, sets, vectors, rows + (_APART * 8.0 * sampled * x.numel() if apart else 0.0))
    own_x = x.numel() if problem.clients.blocks is None else int(problem.clients.blocks.sizes.max())
    kept = options.kept_by_clients(own_x, y.numel())
    rows = float(m * kept * x.element_size())
    local_x = kept > 0 or getattr(options, "upper_local_steps", 1) not in (0, 1)
    local_y = kept > 0 or getattr(options, "local_steps", 1) not in (None, 1)
    if local_x or (local_y and not hasattr(options, "upper_local_steps")):
        rows += _ROWS * sampled * own_x * x.element_size()
    if local_y:
        rows += _ROWS * sampled * y.numel() * y.element_size()
    if apart:
        rows += _APART * 8.0 * sampled * (x.numel() + y.numel())
    prepared = 2.0 * everyone * _prepared_bytes(problem, x)
    wider = 8 / x.element_size()
    copied = wider * data if wider > 1 else 0.0
    return Estimate(gathered, prepared, vectors, rows, copied + wider * prepared if solved else 0.0)


def _of_tasks(problem: TaskProblem, y: Tensor, o: TaskOptions, m: int, sampled: int) -> tuple[float, float]:
    """Bytes of the sets and of the parameters of all tasks at one time, in a round or in an evaluation.

    What a loss keeps to be differentiated is taken from one task.
    """
    one = problem.tasks(problem.clients.lower.take(np.array([0])), np.zeros((1, 1, problem.draws)))
    support, query = (map_examples(lambda t: t[0], part) for part in (one.support, one.query))
    kept = [_saved(problem.lower, y, support), _saved(problem.upper, y, query)]
    row = float(y.numel() * y.element_size())
    state = row + (kept[0] if o.kept() and hasattr(problem, "lower_expansion") else 0.0)
    sets = _bytes(support) + _bytes(query)
    round, seen = sampled * o.tasks_per_client, max(m * o.tasks_per_client, min(o.evaluation_tasks, EVALUATION_CHUNK))
    training = round * _TASK * row + o.held(round, state, kept[0], kept[1])
    evaluation = seen * _TASK * row + o.held_to_judge(seen, row, kept[0], kept[1])
    return 2.0 * sets * max(round, seen), max(training, evaluation)


def _saved(loss: Callable[[Tensor, Tensor, Examples], Tensor], y: Tensor, examples: Examples) -> float:
    """Bytes that the loss of one task keeps for its derivative, the parameters themselves left out."""
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        held = tensor.untyped_storage()
        found[held.data_ptr()] = held.nbytes()
        return tensor

    y = y.detach().clone().requires_grad_()
    known = {tensor.untyped_storage().data_ptr() for tensor in (y, *leaves(examples))}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = loss(y.detach(), y, examples)
    del kept
    return float(sum(size for place, size in found.items() if place not in known))


def _bytes(examples: Examples) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in leaves(examples)))


def _prepared_bytes(problem: Problem, x: Tensor) -> float:
    """Bytes that one example takes once it is prepared; none where the problem prepares nothing."""
    if not hasattr(problem, "prepare"):
        return 0.0
    one = problem.clients.lower.take(np.array([0]))
    with torch.no_grad():
        return _bytes(derivatives.prepare(problem, x, one.values)) / float(one.sizes[0])

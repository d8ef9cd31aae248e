"""Derivatives of many tasks at once: the losses of a batch of tasks, each at parameters of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fedbilevel import derivatives, randomness
from fedbilevel.derivatives import Expansion, Level
from fedbilevel.problem import Problem, leaves
from fedbilevel.tasks import Tasks


class TaskBatch:
    """B tasks of a problem with a local lower level. Parameters are y [B, dy] (or [dy], the same for all tasks).

    words: what keys each task's own random numbers, uint64 [B]; default: its place.

    Every derivative is taken by itself, all tasks at once; only what `hessian` returns holds a graph, of one gradient,
    and an `expansion` what a closed form keeps of one.
    """

    def __init__(self, problem: Problem, tasks: Tasks, x: Tensor, words: NDArray[np.uint64] | None = None) -> None:
        self.problem, self.tasks, self.x = problem, tasks, x
        self.words = np.arange(len(tasks), dtype=np.uint64) if words is None else words
        self.examples = {"lower": tasks.support, "upper": tasks.query}

    def __len__(self) -> int:
        return len(self.tasks)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Each task's own random numbers for a purpose, from their beginning."""
        words = [
            int(randomness.bits(int(word) % 2**63, np.zeros(1, np.int64), 0, purpose, 1)[0, 0]) for word in self.words
        ]
        return [torch.Generator().manual_seed(word % 2**63) for word in words]

    def spread(self, vector: Tensor) -> Tensor:
        """One copy of a common vector per task, [B, d]."""
        return vector.expand(len(self), -1) if vector.ndim == 1 else vector

    def weights(self, level: Level) -> Tensor:
        """1/n for each of the n examples of every task, [B, n]."""
        n = int(leaves(self.examples[level])[0].shape[1])
        return torch.full((len(self), n), 1.0 / n, dtype=self.x.dtype, device=self.x.device)

    def losses(self, level: Level, y: Tensor) -> Tensor:
        """`L(y)` or `f(y)` of every task, [B]."""
        y = self.spread(y)
        return derivatives.losses(self.problem, level, self.x, y, self.examples[level], self.weights(level))

    def gradient(self, level: Level, y: Tensor) -> Tensor:
        """`grad L(y)` (level "lower", the support set) or `grad f(y)` (level "upper", the query set), [B, dy]."""
        y = self.spread(y)
        return derivatives.gradient_y(self.problem, level, self.x, y, self.examples[level], self.weights(level))

    def hvp(self, y: Tensor, v: Tensor) -> Tensor:
        """`Hess L(y) v`, [B, dy]."""
        y, v = self.spread(y), self.spread(v)
        return derivatives.hvp(self.problem, self.x, y, v, self.examples["lower"], self.weights("lower"))

    def expansion(self, y: Tensor) -> Expansion:
        """`grad L(y)` [B, dy] and `v -> Hess L(y) v`."""
        y = self.spread(y)
        closed = getattr(self.problem, "lower_expansion", None)
        if closed is None:
            return Expansion(self.gradient("lower", y), partial(self.hvp, y))
        result: Expansion = closed(self.x, y, self.examples["lower"], self.weights("lower"))
        return result

    def hessian(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        """`v -> Hess L(y) v` for y and v [B, dy] or, several points of every task, [samples, B, dy]."""
        y = self.spread(y)
        if y.ndim == 2 and hasattr(self.problem, "lower_expansion"):
            return self.expansion(y).product
        if hasattr(self.problem, "lower_hvp"):
            return partial(vmap(self.hvp) if y.ndim == 3 else self.hvp, y)
        loss = partial(self.losses, "lower")
        return derivatives.hessian(vmap(loss) if y.ndim == 3 else loss, y)

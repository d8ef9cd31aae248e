"""A cohort: the clients that one worker answers for, stacked so that one call differentiates for all of them.

A cohort looks the same whether it has one row per client (each client's own losses) or a single pooled row (the
p_i-weighted mean of the clients' losses). What is linear in the losses is computed on the pooled row; what depends on a
client's own path needs the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.held import Batch, Draw, Held, Rows
from clients.tasks import TaskBatch
from fedbilevel import derivatives, randomness
from fedbilevel.blocks import OWN
from fedbilevel.derivatives import Level
from fedbilevel.federation.systems import LocalSteps, local_steps
from fedbilevel.problem import Examples, leaves, map_examples
from fedbilevel.tasks import is_local

_AHEAD = 1 << 19
"""The most positions of minibatches that are drawn before they are used."""


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    """tensor[index] along the first dimension, by the faster of torch's two ways."""
    rows = tensor.index_select(0, index.flatten())
    return rows.view(*index.shape, *tensor.shape[1:])


class Cohort:
    """Derivatives of the clients' losses at the points given.

    Vectors are [d] (the same for all clients) or [S, d] (one per client). Results are [S, d], or [d] for a pooled
    cohort. A call without a batch averages over the operation's examples: all of them, or one minibatch per client.
    apart: every client's result is wanted by itself, and nothing may be summed over them.
    """

    def __init__(self, held: Held, draw: Draw, *, pooled: bool, apart: bool = False) -> None:
        self.held, self.draw, self.pooled, self.apart = held, draw, pooled, apart
        first = next(tensor for tensor in leaves(held.levels["lower"].values))
        self.device = first.device
        self._drawn: dict[Level, Rows] = {}

    def __len__(self) -> int:
        return len(self.held.clients)

    def spread(self, vector: Tensor) -> Tensor:
        """One copy of a common vector per client, [S, d]; a pooled cohort keeps the one."""
        return vector if self.pooled else vector.expand(len(self), -1)

    def spread_x(self, x: Tensor) -> Tensor:
        """One copy of x per client, or the block that is its own [S, the largest block], zeros behind it."""
        if self.pooled or self.held.blocks is None:
            return self.spread(x)
        rows = x.new_zeros(self._inside.shape)
        rows[self._inside] = x
        return rows

    def beside_rows(self, x: Tensor) -> Tensor:
        """A common vector of the dimension of x, such that it can stand beside rows of `spread_x`."""
        return x if self.pooled or self.held.blocks is None else self.spread_x(x)

    def joined(self, x: Tensor) -> Tensor:
        """The clients' blocks one after another, from a row for each; what is so already stays."""
        return x if x.ndim == 1 else x[self._inside]

    def share_of_x(self, weights: Tensor) -> Tensor:
        """The weight of the client that owns it for each entry of these blocks."""
        assert self.held.blocks is not None
        return weights.repeat_interleave(torch.from_numpy(self.held.blocks.sizes).to(weights.device))

    @functools.cached_property
    def _inside(self) -> Tensor:
        """Which entries of a row for each client are of its block."""
        assert self.held.blocks is not None
        sizes = self.held.blocks.sizes
        return self._tensor(np.arange(int(sizes.max()))[None, :] < sizes[:, None])

    # ---- which examples ----

    def _tensor(self, array: NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=self.device, dtype=dtype)

    def _full(self, level: Level, dtype: torch.dtype) -> Rows:
        """Every example of the level: padded, one row per client, or flat and pooled."""
        kept = self.held.pooled_rows if self.pooled else self.held.full_rows
        if level not in kept or kept[level].weights.dtype != dtype:
            ragged = self.held.levels[level]
            sizes = ragged.sizes
            if self.pooled:
                share = self.held.weights / self.held.weights.sum() / sizes
                kept[level] = Rows(None, self._tensor(np.repeat(share, sizes), dtype))
            else:
                columns = np.arange(int(sizes.max()))[None, :]
                inside = columns < sizes[:, None]
                index = ragged.offsets[:-1, None] + np.where(inside, columns, 0)
                kept[level] = Rows(self._tensor(index), self._tensor(inside / sizes[:, None], dtype))
        return kept[level]

    def _positions(self, level: Level, local: NDArray[np.int64], inside: NDArray[np.bool_], dtype: torch.dtype) -> Rows:
        """Rows from positions within each client [..., S, b]; what is not inside weighs nothing. Pooled: flat rows."""
        index = self.held.levels[level].offsets[:-1, None] + np.where(inside, local, 0)
        weights = inside / inside.sum(axis=-1, keepdims=True)
        if self.pooled:
            share = self.held.weights / self.held.weights.sum()
            flat = (*index.shape[:-2], -1)
            index, weights = index.reshape(flat), (weights * share[:, None]).reshape(flat)
        return Rows(self._tensor(index), self._tensor(weights, dtype))

    def _own(self, level: Level, dtype: torch.dtype) -> Rows:
        """The examples that a call without a batch means."""
        size = self.draw.gradient_batch
        if size is None:
            return self._full(level, dtype)
        if level not in self._drawn:
            sizes = self.held.levels[level].sizes
            order = randomness.permutations(
                self.draw.seed, self.held.clients, self.draw.round, f"{self.draw.purpose} {level}", sizes
            )[:, :size]
            inside = np.arange(order.shape[1])[None, :] < sizes[:, None]
            self._drawn[level] = self._positions(level, order, inside, dtype)
        return self._drawn[level]

    def everything(self, *levels: Level, dtype: torch.dtype) -> Batch:
        """All examples of the levels as a batch, whatever the minibatch size."""
        return Batch({level: self._full(level, dtype) for level in levels})

    def drawn(self, *levels: Level, dtype: torch.dtype) -> Batch:
        """The operation's own examples as a batch: what a call without one averages over."""
        return Batch({level: self._own(level, dtype) for level in levels})

    def _rows(self, level: Level, y: Tensor, batch: Batch | None) -> Rows:
        return batch.rows[level] if batch else self._own(level, y.dtype)

    def batches(self, spec: LocalSteps, dtype: torch.dtype, *levels: Level) -> Iterator[Batch]:
        """The batches of the local steps: tau_i of them for client i, until the last client is done.

        tau_i counts epochs by the client's examples of the first level named. Without a minibatch size every step sees
        all examples; otherwise each level is walked through in a new random order per epoch, the last minibatch of an
        epoch short.
        """
        size = self.draw.batch
        taus = local_steps(spec, self.draw.seed, self.held.clients, self.held.levels[levels[0]].sizes, size)
        steps = int(taus.max())
        walks = {} if size is None else {level: self._walk(level, size, steps, dtype) for level in levels}
        for k in range(steps):
            active = None if k < taus.min() else self._tensor((k < taus)[:, None], dtype)
            rows = {level: next(walks[level]) if walks else self._full(level, dtype) for level in levels}
            yield Batch(rows, active)

    def _walk(self, level: Level, size: int, steps: int, dtype: torch.dtype) -> Iterator[Rows]:
        """The minibatches of `steps` local steps, those up to the next epoch of any client drawn together."""
        draw, clients, sizes = self.draw, self.held.clients, self.held.levels[level].sizes
        per_epoch = -(-sizes // size)
        columns = np.arange(min(size, int(sizes.max())))
        order = np.zeros((len(clients), int(sizes.max())), dtype=np.int64)
        own, k = np.arange(len(clients))[:, None], 0
        most = max(1, _AHEAD // (len(clients) * len(columns)))
        while k < steps:
            epochs, places = np.divmod(k, per_epoch)
            new = places == 0
            order[new, : int(sizes[new].max(initial=0))] = randomness.permutations(
                draw.seed, clients[new], draw.round, f"{draw.purpose} {level} epoch", sizes[new], laps=epochs[new]
            )
            ahead = min(int((per_epoch - places).min()), most, steps - k)
            batches = places + np.arange(ahead)[:, None]
            positions = batches[:, :, None] * size + columns
            inside = positions < sizes[:, None]
            rows = self._positions(level, order[own, np.where(inside, positions, 0)], inside, dtype)
            assert rows.index is not None
            for index, weights in zip(rows.index, rows.weights, strict=True):
                yield Rows(index, weights)
            k += ahead

    def tasks(self, x: Tensor, count: int, *, fixed: bool = False) -> TaskBatch:
        """`count` tasks of each client, drawn for this round (fixed: the same in every round), as one batch.

        Every method draws the same tasks for a seed, a client and a round.
        """
        problem = self.held.problem
        assert is_local(problem)
        round, purpose = (0, "tasks to evaluate") if fixed else (self.draw.round, "tasks")
        numbers = randomness.uniform(self.draw.seed, self.held.clients, round, purpose, count * problem.draws)
        drawn = problem.tasks(self.held.levels["lower"], numbers.reshape(len(self), count, problem.draws))
        words = randomness.bits(self.draw.seed, self.held.clients, round, f"noise of {purpose}", count)
        return TaskBatch(problem, drawn, x, words.ravel())

    # ---- what does not depend on y ----

    def _examples(self, level: Level, rows: Rows, x: Tensor) -> Examples:
        """The examples of some rows; where each client has an x of its own, places are those in its own block."""
        values, index = self.held.levels[level].values, rows.index
        taken = values if index is None else map_examples(lambda tensor: _take(tensor, index), values)
        if x.ndim == 1 or self.held.blocks is None or not (isinstance(taken, Mapping) and OWN in taken):
            return taken
        starts = torch.from_numpy(self.held.blocks.offsets[:-1]).to(self.device)
        return {**taken, OWN: taken[OWN] - starts[:, None]}

    def _prepared(self, level: Level, x: Tensor, rows: Rows, y: Tensor | None = None) -> Examples:
        """Prepared examples for x: once per x for all examples of a common x, then rows are taken from them.

        Linearised at y, where that is common too: once per (x, y) for an operation on all examples. A minibatch takes
        from that where gradients see all examples anyway, so that it pays for none that nobody sees.
        """
        held, index = self.held, rows.index
        if x.ndim == 2:
            return self._kept((level, "own x"), (x, index), lambda: self._prepare(level, x, rows))
        everything = index is None or rows is held.full_rows.get(level)
        key = (level, "x")
        flat = self._kept(key, (x,), lambda: self._prepare(level, x, None))
        if y is not None and y.ndim == 1 and (everything or self.draw.gradient_batch is None):
            prepared, key = flat, (level, "x y")
            flat = self._kept(key, (x, y), lambda: derivatives.linearise(held.problem, x, y, prepared))
        if index is None:
            return flat

        def taken() -> Examples:
            return map_examples(lambda tensor: _take(tensor, index), flat)

        return self._kept((level, f"rows {key[1]}"), (flat, index), taken) if everything else taken()

    def _prepare(self, level: Level, x: Tensor, rows: Rows | None) -> Examples:
        values = self.held.levels[level].values if rows is None else self._examples(level, rows, x)
        return derivatives.prepare(self.held.problem, x, values)

    def _kept(self, key: tuple[Level, str], of: tuple[object, ...], make: Callable[[], Examples]) -> Examples:
        """The latest value under the key, made anew unless it was made of these very objects."""
        kept = self.held.prepared.get(key)
        if kept is None or not all(a is b for a, b in zip(kept[0], of, strict=True)):
            kept = self.held.prepared[key] = (of, make())
        return kept[1]

    # ---- derivatives ----

    def lower_gradient(self, x: Tensor, y: Tensor, batch: Batch | None = None) -> Tensor:
        """`gy_i(x, y)`."""
        rows = self._rows("lower", y, batch)
        prepared = self._prepared("lower", x, rows, y)
        return derivatives.gradient_y(self.held.problem, "lower", x, y, prepared, rows.weights)

    def lower_gradient_difference(self, x: Tensor, y: Tensor, anchor: Tensor, batch: Batch | None = None) -> Tensor:
        """`gy_i(x, y) - gy_i(x, anchor)` on the same examples."""
        rows = self._rows("lower", y, batch)
        prepared = self._prepared("lower", x, rows, anchor)
        return derivatives.gradient_difference(self.held.problem, x, y, anchor, prepared, rows.weights)

    def upper_gradient_y(self, x: Tensor, y: Tensor, batch: Batch | None = None) -> Tensor:
        """`fy_i(x, y)`."""
        rows = self._rows("upper", y, batch)
        prepared = self._prepared("upper", x, rows, y)
        return derivatives.gradient_y(self.held.problem, "upper", x, y, prepared, rows.weights)

    def hvp(self, x: Tensor, y: Tensor, v: Tensor, batch: Batch | None = None) -> Tensor:
        """`H_i v`."""
        rows = self._rows("lower", y, batch)
        return derivatives.hvp(self.held.problem, x, y, v, self._prepared("lower", x, rows, y), rows.weights)

    def sketched_hessian(self, x: Tensor, y: Tensor, examples: int) -> Tensor:
        """H of a pooled cohort, on about so many of its lower examples alone, written down: [dy, dy]."""
        rows = self._own("lower", y.dtype)
        stride = max(1, len(rows.weights) // examples)
        prepared = map_examples(lambda tensor: tensor[::stride], self._prepared("lower", x, rows, y))
        weights = rows.weights[::stride] * (rows.weights.sum() / rows.weights[::stride].sum())
        return derivatives.dense_hessian(self.held.problem, x, y, prepared, weights)

    def upper_gradient_x(self, x: Tensor, y: Tensor, batch: Batch | None = None) -> Tensor:
        """`fx_i(x, y)`."""
        return self._gradient_x("upper", x, y, self._rows("upper", y, batch))

    def lower_gradient_x(self, x: Tensor, y: Tensor, batch: Batch | None = None) -> Tensor:
        """`gx_i(x, y)`."""
        return self._gradient_x("lower", x, y, self._rows("lower", y, batch))

    def _gradient_x(self, level: Level, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        examples, prepared = self._examples(level, rows, x), self._prepared_for_x(level, x, y, rows)
        return derivatives.gradient_x(self.held.problem, level, x, y, examples, prepared, rows.weights)

    def cross_vjp(self, x: Tensor, y: Tensor, v: Tensor, batch: Batch | None = None) -> Tensor:
        """`J_i v` = d/dx <grad_y g_i(x, y), v>."""
        rows = self._rows("lower", y, batch)
        examples, prepared = self._examples("lower", rows, x), self._prepared_for_x("lower", x, y, rows)
        return derivatives.cross_vjp(self.held.problem, x, y, v, examples, prepared, rows.weights)

    def lower_derivatives(
        self, x: Tensor, y: Tensor, v: Tensor, batch: Batch | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`gy_i`, `H_i v` and `J_i v` at one point, at less than half of their costs where none has a closed form."""
        if not derivatives.is_differentiated(self.held.problem):
            return self.lower_gradient(x, y, batch), self.hvp(x, y, v, batch), self.cross_vjp(x, y, v, batch)
        rows = self._rows("lower", y, batch)
        return derivatives.lower_derivatives(self.held.problem, x, y, v, self._examples("lower", rows, x), rows.weights)

    def mean_hypergradient(self, x: Tensor, y: Tensor, v: Tensor, batch: Batch) -> Tensor:
        """The p_i-weighted mean of `fx_i - J_i v_i` at a common x and y for rows v [S, dy], shape [dx].

        Apart it is each client's own, [S, dx].
        """
        if self.apart:
            return self.upper_gradient_x(x, y, batch) - self.cross_vjp(x, y, v, batch)
        upper, lower = batch.rows["upper"], batch.rows["lower"]
        share = self._tensor(self.held.weights / self.held.weights.sum(), x.dtype)[:, None]
        assert upper.index is not None
        flat = Rows(upper.index.flatten(), (upper.weights * share).flatten())
        examples, prepared = self._examples("lower", lower, x), self._prepared("lower", x, lower, y)
        cross = derivatives.cross_vjp_sum(self.held.problem, x, y, v, examples, prepared, lower.weights * share)
        return self._gradient_x("upper", x, y, flat) - cross

    def _prepared_for_x(self, level: Level, x: Tensor, y: Tensor, rows: Rows) -> Examples | None:
        """Only a closed form at one common point reads prepared examples when the derivative is in x."""
        return self._prepared(level, x, rows, y) if x.ndim == 1 and rows.weights.ndim == 1 else None

    def losses(self, level: Level, x: Tensor, y: Tensor) -> Tensor:
        """`f_i` or `g_i` averaged over the clients' examples, shape [] or [S]."""
        rows = self._own(level, y.dtype)
        prepared = self._prepared(level, x, rows)
        return derivatives.losses(self.held.problem, level, x, y, prepared, rows.weights)

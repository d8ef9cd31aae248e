"""The shared language: what a bilevel problem is, and how the examples of its clients are held.

A problem is two losses. Losses are per example, so that the library averages them, masks ragged clients and draws
minibatches; vectors x and y are flat, so that the server's algebra is plain vector algebra.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedbilevel.blocks import Blocks
from fedbilevel.errors import BadInput

Examples = Any
"""A tensor, a tuple of tensors or a dict of tensors that share their first dimension: one row per example."""


class Part(NamedTuple):
    """A part of x: its name, its shape, and whether its outputs are the last dimension instead of the first."""

    name: str
    shape: tuple[int, ...]
    outputs_last: bool = False


@runtime_checkable
class Problem(Protocol):
    """A federated bilevel problem: min_x sum_i p_i f_i(x, y*(x)), y*(x) = argmin_y sum_i p_i g_i(x, y).

    Required are two losses, a start, an evaluation and the clients' data. A problem without a method `lower` has one
    loss, `upper`: it is the minimax problem min_x max_y sum_i p_i f_i(x, y), whose lower loss is g = -f on the same
    examples (`ClientData.single`). Optional, found by name:

    * `prepare(x, examples) -> prepared` computes what does not depend on y (a representation). It is called once per x;
      `lower` and `upper` then receive its result in place of the examples, and derivatives in x pass through it.
    * `linearise(x, y, prepared) -> prepared` adds what closed forms share at a common (x, y), whatever the direction
      (probabilities). It is called once per (x, y); closed forms may receive its result in place of prepared.
    * closed forms, used instead of automatic differentiation: `lower_gradient(x, y, prepared, weights)`,
      `lower_hvp(x, y, v, prepared, weights)`, `upper_gradient_y(x, y, prepared, weights)`,
      `lower_gradient_difference(x, y, anchor, prepared, weights)` = gy(x, y) - gy(x, anchor) (prepared may be
      linearised at the anchor), where weights [..., n] holds the weight of each example, x, y, v and anchor may have
      the same leading dimensions, and the result is [..., dy]; and, at one common point,
      `upper_gradient_x(x, y, examples, prepared, weights)` and `cross_vjp(x, y, v, examples, prepared, weights)` with
      result [dx]; and `cross_vjp_sum`, the same summed over rows v [S, dy] with weights [S, n];
      `lower_expansion(x, y, prepared, weights)` is a `derivatives.Expansion`, the lower gradient and `v -> H v`, where
      the two share what they compute.
    * `x_shapes`, the parts of x in order (`Part`, or a name and a shape), where x holds the matrices of a network: what
      steps matrix by matrix (`upper_optimiser = "spectral"`) reads them; without it x is one vector.
    """

    clients: ClientData

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the start (x0 [dx], y0 [dy])."""
        ...

    def lower(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Return the lower loss g of each example, shape [n]; a regulariser is added to every example's loss."""
        ...

    def upper(self, x: Tensor, y: Tensor, examples: Examples) -> Tensor:
        """Return the upper loss f of each example, shape [n]."""
        ...

    def evaluate(self, x: Tensor, y: Tensor) -> Mapping[str, float]:
        """Return measures on held-out data: `test_loss` and `test_accuracy` have columns, others become `metric_*`."""
        ...


def has_one_loss(problem: Any) -> bool:
    """Whether the problem (or its class) has no lower loss of its own: a minimax problem, g = -f."""
    return not callable(getattr(problem, "lower", None))


def loss_of(problem: Problem, level: Literal["lower", "upper"]) -> Callable[[Tensor, Tensor, Examples], Tensor]:
    """The loss of a level, per example [n]; of a problem with one loss the lower one is g = -f.

    >>> class Saddle:
    ...     def upper(self, x, y, examples):
    ...         return examples * x * y
    >>> loss_of(Saddle(), "lower")(torch.ones(1), 2 * torch.ones(1), torch.tensor([3.0]))
    tensor([-6.])
    """
    if level == "lower" and has_one_loss(problem):
        return lambda x, y, examples: -problem.upper(x, y, examples)
    loss: Callable[[Tensor, Tensor, Examples], Tensor] = getattr(problem, level)
    return loss


def map_examples(function: Callable[[Tensor], Tensor], examples: Examples) -> Examples:
    """Apply a function to every tensor of some examples and keep their structure."""
    if isinstance(examples, Tensor):
        return function(examples)
    if isinstance(examples, Mapping):
        return {name: map_examples(function, value) for name, value in examples.items()}
    return tuple(map_examples(function, value) for value in examples)


def leaves(examples: Examples) -> list[Tensor]:
    """Return the tensors of some examples in a fixed order."""
    found: list[Tensor] = []
    map_examples(lambda tensor: found.append(tensor) or tensor, examples)  # type: ignore[func-returns-value]  # append
    return found


def _join(parts: Sequence[Examples]) -> Examples:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {name: _join([part[name] for part in parts]) for name in first}
    return tuple(_join([part[k] for part in parts]) for k in range(len(first)))


def client_by_client(owners: NDArray[np.int64], clients: int) -> tuple[Tensor, NDArray[np.int64]]:
    """The order [n] in which examples of these owners stand client by client, each one's as they stood; the offsets.

    >>> client_by_client(np.array([1, 0, 1, 0]), clients=2)
    (tensor([1, 3, 0, 2]), array([0, 2, 4]))
    """
    order = torch.from_numpy(np.argsort(owners, kind="stable"))
    return order, np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=clients))]).astype(np.int64)


_LONG = 20
"""The mean number of examples per client from which on they are gathered client by client."""


@dataclass(frozen=True)
class Ragged:
    """The examples of many clients, client-major: client i owns the rows offsets[i]..offsets[i+1]-1 of every tensor."""

    values: Examples
    offsets: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[Examples], key: str) -> Ragged:
        """Stack one client's examples after another's.

        Raises BadInput (naming `key` and the client) for an empty client or tensors of different lengths.
        """
        parts = [map_examples(torch.as_tensor, part) for part in parts]
        counts = []
        for client, part in enumerate(parts):
            lengths = {int(tensor.shape[0]) if tensor.ndim else 0 for tensor in leaves(part)}
            if len(lengths) != 1 or 0 in lengths:
                allowed = "tensors that share their first dimension, at least one example per client"
                raise BadInput(f"{key}[{client}]", sorted(lengths), allowed)
            counts.append(lengths.pop())
        try:
            values = _join(parts)
        except (RuntimeError, KeyError, TypeError, IndexError) as error:
            raise BadInput(key, str(error), "examples of the same structure and shape for every client") from None
        return cls(values, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of examples of each client, shape [clients]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The client that every example is of, [n]."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def shares(self, weights: NDArray[np.float64]) -> Tensor:
        """What every example counts in sum_i p_i mean_e, where p_i are these weights [m]: p_i / n_i, [n], float64."""
        return torch.from_numpy(np.repeat(weights / self.sizes, self.sizes))

    def take(self, clients: NDArray[np.int64]) -> Ragged:
        """Return the examples of some clients in the order given; all clients in order cost nothing."""
        if len(clients) == len(self.offsets) - 1 and bool((clients == np.arange(len(clients))).all()):
            return self
        starts, sizes = self.offsets[clients], self.sizes_of(clients)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if offsets[-1] >= _LONG * len(clients):  # whole slices copy three times as fast as their rows, if they are long
            ends = list(zip(starts.tolist(), (starts + sizes).tolist(), strict=True))
            return Ragged(map_examples(lambda t: torch.cat([t[a:b] for a, b in ends]), self.values), offsets)
        rows = torch.from_numpy(np.repeat(starts - offsets[:-1], sizes) + np.arange(offsets[-1]))
        return Ragged(map_examples(lambda t: t.index_select(0, rows.to(t.device)), self.values), offsets)

    def sizes_of(self, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of examples of these clients."""
        return self.offsets[clients + 1] - self.offsets[clients]


class ClientData:
    """Per client: the examples of the lower loss, the examples of the upper loss, and the weight p_i.

    Parameters
    ----------
    lower, upper
        One entry per client (a tensor, a tuple or a dict of tensors, first dimension = examples), or a `Ragged`.
    weights
        "size" (p_i proportional to the client's number of examples on both levels, the default), "uniform", or positive
        numbers, one per client. They are scaled to sum 1.
    blocks
        Where every client has a block of x to itself: how many entries each one owns; x is these blocks, client after
        client. A client then is sent its own block alone, and a loss gets the blocks of some clients as its x: what it
        reads of x, it has to take from the place that `examples["own"]` says (see `fedbilevel.blocks`).

    Raises BadInput for an empty client, for lists of different lengths, and for weights that are not positive.
    """

    def __init__(
        self,
        lower: Sequence[Examples] | Ragged,
        upper: Sequence[Examples] | Ragged,
        weights: str | ArrayLike = "size",
        blocks: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        for key, level in (("clients.lower", lower), ("clients.upper", upper)):
            if not isinstance(level, Ragged) and len(level) == 0:
                raise BadInput(key, [], "the examples of at least one client")
        self.lower = lower if isinstance(lower, Ragged) else Ragged.join(lower, "clients.lower")
        self.upper = upper if isinstance(upper, Ragged) else Ragged.join(upper, "clients.upper")
        m = len(self.lower.offsets) - 1
        if len(self.upper.offsets) - 1 != m:
            raise BadInput(
                "clients.upper", len(self.upper.offsets) - 1, f"one entry per client, {m} as in clients.lower"
            )
        self.weights = self._weights(weights)
        self.blocks = None if blocks is None else Blocks.of(blocks)
        if self.blocks is not None and len(self.blocks) != m:
            raise BadInput("clients.blocks", len(self.blocks), f"one size per client, {m} as in clients.lower")

    @classmethod
    def single(cls, parts: Sequence[Examples] | Ragged, weights: str | ArrayLike = "size") -> ClientData:
        """The clients of a problem with one loss: both levels are the same examples, held once."""
        level = parts if isinstance(parts, Ragged) else Ragged.join(parts, "clients.upper") if len(parts) else parts
        return cls(level, level, weights)

    def each(self, change: Callable[[Ragged], Ragged]) -> tuple[Ragged, Ragged]:
        """The lower and the upper level after a change; levels that are the same object stay so."""
        lower = change(self.lower)
        return lower, lower if self.upper is self.lower else change(self.upper)

    def _weights(self, weights: str | ArrayLike) -> NDArray[np.float64]:
        allowed = f'"size", "uniform" or {len(self)} positive numbers'
        if isinstance(weights, str):
            if weights not in ("size", "uniform"):
                raise BadInput("clients.weights", weights, allowed)
            sizes = self.lower.sizes + self.upper.sizes
            values = sizes.astype(np.float64) if weights == "size" else np.ones(len(self))
        else:
            values = np.asarray(weights, dtype=np.float64)
        if values.shape != (len(self),) or not bool(np.all(np.isfinite(values) & (values > 0))):
            raise BadInput("clients.weights", weights, allowed)
        with np.errstate(over="ignore"):
            shares = np.asarray(values / values.sum(), dtype=np.float64)
        if not bool(np.all(shares > 0)):
            raise BadInput("clients.weights", weights, f"{allowed} whose sum does not hide or overflow any of them")
        return shares

    def __len__(self) -> int:
        return len(self.lower.offsets) - 1

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> ClientData:
        """Return the same clients with floating-point tensors in `dtype`, all tensors on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)

        levels = self.each(lambda level: Ragged(map_examples(move, level.values), level.offsets))
        return ClientData(*levels, self.weights, None if self.blocks is None else self.blocks.sizes)

    def only(self, first: int, end: int) -> ClientData:
        """Return the same clients with the examples of first..end-1 alone (copies): the others keep number and p_i."""

        def cut(level: Ragged) -> Ragged:
            a, b = int(level.offsets[first]), int(level.offsets[end])
            return Ragged(map_examples(lambda t: t[a:b].clone(), level.values), level.offsets.clip(a, b) - a)

        held = copy.copy(self)
        held.lower, held.upper = self.each(cut)
        return held

    def pooled(self) -> ClientData:
        """Return one client that owns everybody's examples: the same global problem where p_i is by size."""
        return ClientData(*self.each(lambda level: Ragged(level.values, level.offsets[[0, -1]])))

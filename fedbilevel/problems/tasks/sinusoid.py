r"""Regression of sine curves with a local lower level (Finn, Abbeel & Levine, ICML 2017, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.errors import BadInput
from fedbilevel.machine.memory import require
from fedbilevel.problem import ClientData, Examples, Ragged
from fedbilevel.problems.networks.layers import Activation, Perceptron
from fedbilevel.tasks import Tasks

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
INPUT = (-5.0, 5.0)

Interval = tuple[float, float]


class Sinusoid:
    """A task: fit A sin(t + phase) from `shots` points, t uniform in [-5, 5]; squared error on `queries` more points.

    A in [0.1, 5] and the phase in [0, pi] are uniform over the client's own ranges, which are all that a client holds.
    Tasks for testing come from the whole ranges, or from others that no client has seen.

    Parameters
    ----------
    clients
        How many; they tile the plane of amplitude and phase.
    heterogeneity
        0: every client draws from the whole ranges; 1: each from a tile of its own; between: in proportion.
    shots, queries
        Points of a task's support and query set.
    hidden, activation
        Of the network: widths of the hidden layers; "relu" or "tanh".
    noise
        Standard deviation of the normal noise on every point, of queries too.
    amplitude, phase, inputs
        The ends of the whole ranges.
    test_amplitude, test_phase, test_inputs
        Those of the tasks for testing; default: the whole ranges.
    seed
        Of the tasks for testing.
    """

    kind = "regression"

    def __init__(
        self,
        clients: int = 10,
        heterogeneity: float = 1.0,
        shots: int = 10,
        queries: int = 10,
        hidden: Sequence[int] = (40, 40),
        activation: Activation = "relu",
        noise: float = 0.0,
        amplitude: Interval = AMPLITUDE,
        phase: Interval = PHASE,
        inputs: Interval = INPUT,
        test_amplitude: Interval | None = None,
        test_phase: Interval | None = None,
        test_inputs: Interval | None = None,
        seed: int = 0,
    ) -> None:
        for key, value in (("clients", clients), ("shots", shots), ("queries", queries)):
            if value < 1:
                raise BadInput(f"problem.{key}", value, "an integer of at least 1")
        if not 0 <= heterogeneity <= 1:
            raise BadInput("problem.heterogeneity", heterogeneity, "a number from 0 to 1")
        if len(hidden) == 0 or min(hidden) < 1:
            raise BadInput("problem.hidden", list(hidden), "a list of at least one width of at least 1")
        if not 0 <= noise < math.inf:
            raise BadInput("problem.noise", noise, "a number of at least 0")
        if seed < 0:
            raise BadInput("problem.seed", seed, "an integer of at least 0")
        whole = {"amplitude": amplitude, "phase": phase, "inputs": inputs}
        test = {"test_amplitude": test_amplitude, "test_phase": test_phase, "test_inputs": test_inputs}
        for key, ends in {**whole, **test}.items():
            if ends is not None and not (math.isfinite(ends[1] - ends[0]) and ends[0] < ends[1]):
                raise BadInput(f"problem.{key}", list(ends), "two numbers [low, high] with low below high")
        self.noise_variance, self._inputs, self._test_inputs = noise**2, inputs, test_inputs or inputs
        self._test_ends = np.array([test_amplitude or amplitude, test_phase or phase], np.float64).T
        # a task's numbers: amplitude and phase, where the points lie, and two for the noise of each
        self.draws, self.task_sizes = 2 + (shots + queries) * (3 if noise else 1), (shots, queries)
        self.shots = shots
        self.network = Perceptron([1, *hidden], 1, activation)
        require(12.0 * 8 * self.network.size, "problem.hidden", "narrower layers")
        tiles = _tiles(clients, heterogeneity, np.array([amplitude, phase], np.float64).T)
        ranges = {name: torch.from_numpy(array) for name, array in tiles.items()}
        held = Ragged(ranges, np.arange(clients + 1, dtype=np.int64))
        self.clients = ClientData(held, held)
        self._seed = seed

    def initial(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random start of the network; y0 = x0."""
        x0 = self.network.initial(generator)
        return x0, x0.clone()

    def tasks(self, held: Ragged, draws: NDArray[np.float64]) -> Tasks:
        """Curves of each client's own ranges."""
        low, high = (held.values[key].cpu().double().numpy()[:, None, :] for key in ("low", "high"))
        curve = low + draws[:, :, :2] * (high - low)
        numbers = draws[:, :, 2:].reshape(len(curve) * curve.shape[1], -1)
        return self._tasks(curve.reshape(-1, 2), numbers, self._inputs)

    def test_tasks(self, count: int) -> Tasks:
        """Curves of the ranges for testing."""
        draws = np.random.Generator(np.random.Philox(self._seed)).random((count, self.draws))
        low, high = self._test_ends
        return self._tasks(low + draws[:, :2] * (high - low), draws[:, 2:], self._test_inputs)

    def _tasks(self, curve: NDArray[np.float64], draws: NDArray[np.float64], ends: Interval) -> Tasks:
        """Tasks of curves (amplitude, phase) [B, 2] and uniform numbers [B, n] or, with noise, [B, 3 n]."""
        n = sum(self.task_sizes)
        t = ends[0] + draws[:, :n] * (ends[1] - ends[0])
        height = curve[:, :1] * np.sin(t + curve[:, 1:])
        if self.noise_variance:
            height = height + math.sqrt(self.noise_variance) * randomness.normal_of(draws[:, n:].reshape(*t.shape, 2))
        arrays = t[..., None], height
        inputs, label = (torch.from_numpy(array).to(self.clients.lower.values["low"]) for array in arrays)
        k = self.shots
        return Tasks({"input": inputs[:, :k], "label": label[:, :k]}, {"input": inputs[:, k:], "label": label[:, k:]})

    def outputs(self, y: Tensor, examples: Examples) -> Tensor:
        """The curve that the network draws, [n]."""
        return self.network(y, examples["input"]).squeeze(-1)

    def lower(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`L`: squared error of each point, [n]."""
        return (self.outputs(y, examples) - examples["label"]).square()

    def upper(self, x: Tensor, y: Tensor, examples: dict[str, Tensor]) -> Tensor:
        """`f`: the same loss."""
        return self.lower(x, y, examples)

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing without an adaptation."""
        return {}


def _tiles(clients: int, heterogeneity: float, whole: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Lower and upper ends [clients, 2] of the ranges of amplitude and phase, within the ends of the whole ones [2, 2].

    The tiles have the same share of the plane: a grid of as many columns as the largest divisor of `clients` up to its
    root, so that together they cover every curve.
    """
    columns = max(k for k in range(1, math.isqrt(clients) + 1) if clients % k == 0)
    grid = np.array([columns, clients // columns])
    cell = np.stack(np.unravel_index(np.arange(clients), tuple(grid)), -1)
    ends = {"low": heterogeneity * cell / grid, "high": 1 - heterogeneity * (1 - (cell + 1) / grid)}
    low, high = whole
    return {name: low + end * (high - low) for name, end in ends.items()}

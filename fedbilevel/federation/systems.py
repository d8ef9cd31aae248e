"""Systems heterogeneity: how many local steps a client makes, when it is there, how fast it computes and talks.

Every draw is keyed by (seed, client), so registering a client costs nothing and only sampled clients are drawn.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedbilevel import randomness
from fedbilevel.conditions.attacks import Byzantine
from fedbilevel.strict import MOST, Positive, PositiveInt, Strict

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BatchSize = int | None
"""The number of examples in a minibatch; None is the full batch."""


class Epochs(Strict):
    """Local work given in passes over the client's own examples: epochs x ceil(examples / batch) steps."""

    epochs: PositiveInt


class Between(Strict):
    """A whole number drawn once per seed and client, uniformly from low to high."""

    low: PositiveInt
    high: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Between:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


LocalSteps = PositiveInt | list[PositiveInt] | Epochs | Between
"""tau: one number for all clients, one per client, a number of epochs, or a range to draw from."""


def local_steps(
    spec: LocalSteps | dict[str, int], seed: int, clients: IntArray, sizes: IntArray, batch: BatchSize
) -> IntArray:
    """tau_i of each client in `clients`, whose numbers of examples are `sizes`, shape [S].

    A spec that has travelled as a plain table (`{"epochs": 5}`) is read back.
    """
    if isinstance(spec, dict):
        spec = Epochs(**spec) if "epochs" in spec else Between(**spec)
    if isinstance(spec, int):
        return np.full(len(clients), spec, dtype=np.int64)
    if isinstance(spec, list):
        return np.asarray(spec, dtype=np.int64)[clients]
    if isinstance(spec, Epochs):
        per_epoch = np.ones_like(sizes) if batch is None else -(-sizes // batch)
        return spec.epochs * per_epoch
    u = randomness.uniform(seed, clients, 0, "local steps")[:, 0]
    return spec.low + (u * (spec.high - spec.low + 1)).astype(np.int64)


class Network(Strict):
    """Bandwidth, latency and compute speed of a client: the median, and a log-normal spread around it.

    The time of a round is that of its slowest client: two latencies, the bytes down and up over the client's
    bandwidths, and the examples it differentiates over its speed.
    """

    downlink_mbps: Positive = Field(50.0, description="10^6 bits a second to a client, the median")
    uplink_mbps: Positive = Field(10.0, description="and from it")
    latency_ms: float = Field(50.0, ge=0, allow_inf_nan=False, description="of a message, twice in a round")
    examples_per_second: Positive = Field(20_000.0, description="gradients of single examples, the median")
    spread: float = Field(0.0, ge=0, le=5, allow_inf_nan=False, description="standard deviation of the logarithm")


class Systems(Strict):
    """The `[systems]` table: which clients are there, which of them answer, in time and honestly, and their network."""

    availability: float = Field(1.0, gt=0, le=1, description="chance that a client is there in an outer iteration")
    availability_pattern: Literal["drawn", "blocks", "day"] = Field(
        "drawn",
        description="who is there: drawn in every iteration, or for a whole period; or a share `availability` of every "
        "period, from an hour of the client's own on (day and night)",
    )
    availability_period: PositiveInt = Field(10, description="iterations of a period of blocks and day")
    sampling: Literal["fixed", "poisson"] = Field(
        "fixed", description="clients_per_round clients, or each one by a chance of its own, so many in the mean"
    )
    over_selection: int = Field(
        0, ge=0, le=MOST, description="clients that are asked beyond clients_per_round, of which the fastest count"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="chance that a client that was asked fails to answer")
    dropout_lasts: Literal["round", "iteration"] = Field(
        "round", description="for how long it has failed: the round, or the rest of the iteration"
    )
    deadline_seconds: Positive | None = Field(
        None, description="of a round in simulated seconds: later answers are lost, and the round ends there"
    )
    failures: Literal["end", "drop"] = Field(
        "end", description="a real client that fails ends the run, or its answer is lost like that of a dropout"
    )
    byzantine: Byzantine | None = None
    network: Network = Network()

    @property
    def everybody_answers(self) -> bool:
        """Whether whoever is asked answers."""
        return self.dropout == 0.0 and self.deadline_seconds is None and self.over_selection == 0

    def available(self, seed: int, clients: IntArray, iteration: int, attempt: int) -> NDArray[np.bool_]:
        """Which clients are there, shape [clients]; a further attempt draws anew, or waits for the next hour."""
        if self.availability == 1.0:
            return np.ones(len(clients), dtype=np.bool_)
        period = self.availability_period
        if self.availability_pattern == "day":
            begins = randomness.uniform(seed, clients, 0, "day")[:, 0]
            return ((iteration + attempt) / period - begins) % 1.0 < self.availability
        when = iteration // period if self.availability_pattern == "blocks" else iteration
        draws = randomness.uniform(seed, clients, when, f"availability {attempt}")[:, 0]
        return draws < self.availability

    def longest_night(self, seed: int, clients: IntArray) -> float:
        """For how many iterations nobody is there at a stretch, with the pattern day; inf: nobody ever is."""
        period, begins = self.availability_period, randomness.uniform(seed, clients, 0, "day")[:, 0]
        comes, goes = (np.ceil(period * (begins + share)) for share in (0.0, self.availability))
        there = goes > comes
        if not there.any():
            return math.inf
        order = np.argsort(comes[there], kind="stable")
        comes, goes = (np.concatenate([hours, hours + period]) for hours in (comes[there][order], goes[there][order]))
        return max(float((comes[1:] - np.maximum.accumulate(goes)[:-1])[len(order) - 1 :].max()), 0.0)

    def seconds(
        self, seed: int, clients: IntArray, down_bytes: FloatArray, up_bytes: FloatArray, examples: FloatArray
    ) -> FloatArray:
        """Return the simulated time of one round of each client; all arrays are per client, shape [S]."""
        n = self.network

        def drawn(median: float, what: str) -> FloatArray | float:
            if n.spread == 0:
                return median
            return np.asarray(median * np.exp(n.spread * randomness.normal(seed, clients, 0, what)), dtype=np.float64)

        seconds = 2e-3 * drawn(n.latency_ms, "latency")
        seconds = seconds + 8e-6 * down_bytes / drawn(n.downlink_mbps, "downlink")
        seconds = seconds + 8e-6 * up_bytes / drawn(n.uplink_mbps, "uplink")
        return np.asarray(seconds + examples / drawn(n.examples_per_second, "speed"), dtype=np.float64)

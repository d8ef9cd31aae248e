"""Differential privacy of the clients (central model): clipping, noise, and the budget that is spent."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.strict import Positive, Strict


class Adaptive(Strict):
    """The `[privacy.adaptive]` table: each output's clip follows a quantile of the norms (Andrew et al., 2021)."""

    quantile: float = Field(0.5, gt=0, lt=1, description="share of answers that the clip leaves as they are")
    rate: Positive = Field(0.2, description="of the geometric steps of the clip")
    count_noise: Positive | None = Field(
        None, description="deviation of the noise on how many were not clipped; default: a twentieth of the answers"
    )

    def noise(self, expected: float) -> float:
        """Deviation of the noise on a count, of so many expected answers."""
        return self.count_noise or expected / 20


class PrivacyTable(Strict):
    """The `[privacy]` table: `clip` of every output of a client, noise of deviation `noise_multiplier * clip`.

    The server adds the noise to the sum, once, and divides by the expected number of answers; every client counts
    alike, and iterates are protected as displacements. Two federations are neighbours if one client's answers are
    nothing in one of them.
    """

    clip: Positive = Field(description="largest norm of an output of a client; the first one if adaptive")
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False, description="z: deviation of the noise, in clips")
    delta: float = Field(1e-5, gt=0, lt=1, description="for which epsilon is told")
    adaptive: Adaptive | None = None


class Privacy:
    """What a run does to be private: `mean` of one output, and `epsilon` of everything so far.

    expected: the expected number of answers; asked: how many of the clients are drawn, `poisson` or a fixed number
    without replacement; None: all are asked, or nothing is known of who is there, and sampling amplifies nothing.
    """

    def __init__(
        self, table: PrivacyTable, seed: int, *, clients: int, expected: float, asked: int | None, poisson: bool = False
    ) -> None:
        self.table, self._seed, self._clients = table, seed, clients
        self.expected, self._asked, self._poisson = expected, asked, poisson
        self.clips: dict[str, float] = {}
        self.groups: Counter[int] = Counter()
        self._open: Counter[str] = Counter()
        self._set = ""

    @property
    def count_noise(self) -> float:
        """Deviation of the noise on the count of answers that were not clipped."""
        assert self.table.adaptive is not None
        return self.table.adaptive.noise(self.expected)

    @property
    def multiplier(self) -> float:
        """The noise multiplier of the sums: larger where counts are told beside them, so that both cost what z does.

        `(z^-2 - (2 s)^-2)^(-1/2)` with s the deviation of the noise on a count (Andrew et al., 2021, theorem 1).
        """
        z = self.table.noise_multiplier
        if self.table.adaptive is None or z == 0:
            return z
        return float((z**-2 - (2 * self.count_noise) ** -2) ** -0.5)

    def begun(self) -> None:
        """An iteration begins, whose sets are drawn anew: what each one of the last answered is one group."""
        self.groups.update(self._open.values())
        self._open.clear()

    def drawn(self, purpose: str) -> None:
        """Clients are asked that were drawn for this purpose: within an iteration always the same."""
        self._set = purpose

    def told(self) -> dict[int, int]:
        """How often so many outputs of one drawn set were told."""
        return dict(self.groups + Counter(self._open.values()))

    def mean(self, rows: Tensor, round: int, output: str) -> Tensor:
        """`(sum of clipped rows + N(0, (z c)^2)) / expected` of rows [n, d], in float64."""
        rows = rows.double()
        clip = self.clips.get(output, self.table.clip)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        total = (rows * (clip / norms.clamp(min=clip))).sum(0)
        draw = randomness.generator(self._seed, randomness.SERVER, round, f"privacy {output}")
        noise = torch.from_numpy(draw.standard_normal(rows.shape[1])).to(rows)
        self._open[self._set] += 1
        adaptive = self.table.adaptive
        if adaptive is not None:
            # each counts 1/2 or -1/2: somebody who is missing moves that by 1/2, a count of those within the clip by 1
            told = float((norms <= clip).sum()) - len(rows) / 2
            if self.table.noise_multiplier > 0:
                told += self.count_noise * float(draw.standard_normal())
            self.clips[output] = clip * math.exp(-adaptive.rate * (told / self.expected + 0.5 - adaptive.quantile))
        noisy: Tensor = total + self.multiplier * clip * noise
        return noisy / self.expected

    def epsilon(self) -> float:
        """Epsilon at `delta` of all that was told so far.

        The outputs of one drawn set are released together: they are one subsampled composition of Gaussians, since the
        same clients answered all of them. By Renyi's divergence (dp-accounting); inf without noise.
        """
        groups = self.told()
        if not groups:
            return 0.0
        if self.table.noise_multiplier == 0:
            return math.inf
        from dp_accounting.rdp import compute_epsilon

        of = functools.partial(_divergences, self.table.noise_multiplier, self._clients, self._asked, self._poisson)
        total = sum(times * of(outputs)[1] for outputs, times in groups.items())
        return float(compute_epsilon(of(1)[0], total, self.table.delta)[0])


@functools.lru_cache(maxsize=256)
def _divergences(
    z: float, clients: int, asked: int | None, poisson: bool, outputs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The orders, and Renyi's divergence of `outputs` Gaussians on one drawn set, by each order."""
    import dp_accounting as dp  # a second: only private runs pay for it
    from dp_accounting.rdp import RdpAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)  # it tells of every order that it leaves out
    event: dp.DpEvent = dp.SelfComposedDpEvent(dp.GaussianDpEvent(z), outputs)
    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    if asked is not None and poisson:
        event = dp.PoissonSampledDpEvent(asked / clients, event)
    elif asked is not None and asked < clients:
        # a client whose answers are nothing stands for one that is replaced: the sum moves by one clip at most
        event, relation = dp.SampledWithoutReplacementDpEvent(clients, asked, event), dp.NeighboringRelation.REPLACE_ONE
    accountant = RdpAccountant(neighboring_relation=relation)
    accountant.compose(event)
    return accountant._orders, accountant._rdp  # of one event: of many it is so many times as much

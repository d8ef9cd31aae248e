"""Thin wires: what is left of vectors that were compressed, and the bytes that they took."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.strict import MOST, Strict

Wire = Literal["exact", "float16", "quantise", "random_k", "top_k"]
_LARGEST = torch.finfo(torch.float16).max


class ChannelTable(Strict):
    """The `[channel]` table: how vectors are compressed in each direction.

    Iterates travel as displacements from what was sent, downlink vectors (but for float16) as displacements from the
    last vector of that name, which a client that has missed it gets whole. `quantise` and uplink `random_k` are
    unbiased; `float16` and `top_k` are not, nor is `random_k` downlink, which keeps coordinates as they are.
    """

    uplink: Wire = Field("exact", description="from clients to the server")
    downlink: Wire = Field("exact", description="from the server to clients")
    bits: int = Field(8, ge=2, le=16, description="of a number that is quantised, its sign among them")
    keep: Annotated[int, Field(ge=1, le=MOST)] | Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        0.1, description="k of random_k and top_k: so many coordinates, or this share of them"
    )

    @model_validator(mode="after")
    def _read(self) -> ChannelTable:
        for key, wires in (("bits", {"quantise"}), ("keep", {"random_k", "top_k"})):
            told = getattr(self, key) != type(self).model_fields[key].default
            if told and not wires & {self.uplink, self.downlink}:
                raise ValueError(f"{key} is read by {' and '.join(sorted(wires))} alone, and neither direction is one")
        return self

    @property
    def polite(self) -> bool:
        """Whether every vector arrives as it was sent."""
        return self.uplink == self.downlink == "exact"

    def kept(self, d: int) -> int:
        """How many of d coordinates are kept: at least one."""
        k = self.keep if isinstance(self.keep, int) else max(1, round(self.keep * d))
        return min(k, d)

    def bytes(self, wire: Wire, d: int, itemsize: int) -> int:
        """What a vector of d numbers takes on a wire.

        quantise: `bits` a number and the largest in full; random_k: values alone, since both sides draw the places;
        top_k: values, and places of 4 bytes each.
        """
        if wire == "float16":
            return 2 * d
        if wire == "quantise":
            return -(-d * self.bits // 8) + itemsize
        if wire == "random_k":
            return self.kept(d) * itemsize
        if wire == "top_k":
            return min(self.kept(d) * (itemsize + 4), d * itemsize)
        return d * itemsize


def compressed(
    rows: Tensor,
    wire: Wire,
    table: ChannelTable,
    seed: int,
    clients: NDArray[np.int64],
    round: int,
    purpose: str,
    *,
    scaled: bool = True,
) -> Tensor:
    """What arrives of rows [n, d], one of each of these clients, in float64.

    float16: rounded to the nearest, the largest numbers to the largest there is; quantise: QSGD (Alistarh et al., 2017)
    by the largest entry of a row, |u| / max|u| rounded up or down to one of 2^(bits-1) - 1 levels so that it is right
    in the mean; random_k: k coordinates that the key draws, times d/k if `scaled`; top_k: the k largest ones. Rows that
    hold what is no number arrive as they are.
    """
    rows = rows.double()
    if wire == "exact" or not rows.numel():
        return rows
    if wire == "float16":
        return torch.where(rows.isfinite(), rows.clamp(-_LARGEST, _LARGEST).half().double(), rows)
    d = rows.shape[1]
    if wire == "quantise":
        levels = 2 ** (table.bits - 1) - 1
        largest = rows.abs().amax(1, keepdim=True)
        scaled_ = torch.where(largest > 0, rows.abs() / largest, 0.0) * levels
        chance = torch.from_numpy(randomness.uniform(seed, clients, round, f"quantise {purpose}", d)).to(rows.device)
        level = (scaled_.floor() + (chance < scaled_ - scaled_.floor())).clamp(max=levels)
        coded = rows.sign() * level * (largest / levels)
        return torch.where(rows.isfinite().all(1, keepdim=True), coded, rows)
    k = table.kept(d)
    if k == d:
        return rows
    if wire == "top_k":
        places = rows.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).topk(k, dim=1, sorted=False).indices
        return torch.zeros_like(rows).scatter(1, places, rows.gather(1, places))
    words = randomness.bits(seed, clients, round, f"random_k {purpose}", d)
    places = torch.from_numpy(np.argpartition(words, k - 1, axis=1)[:, :k].copy()).to(rows.device)
    return torch.zeros_like(rows).scatter(1, places, rows.gather(1, places) * (d / k if scaled else 1.0))

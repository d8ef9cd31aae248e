"""Byzantine clients: who they are, and what they send in place of their answers."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.strict import Positive, PositiveInt, Strict

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Attack = Literal["none", "sign_flip", "ipm", "alie", "gaussian", "mimic", "nan", "label_flip"]


class Byzantine(Strict):
    """The `[systems.byzantine]` table: the share of clients that attack, how, and how strongly.

    The attackers are drawn once per seed: clients have a random order, of which the first round(share * m) attack; of a
    changing share the smaller set lies within the larger one. They know every honest answer of the round.
    """

    share: Share | Annotated[list[Share], Field(min_length=1)] = Field(
        description="of all clients; a list: one share after another, and from the start again (bursts)"
    )
    attack: Attack = Field(description="what attackers send")
    strength: Positive = Field(1.0, description="a factor of what they send (of z for alie, of the noise for gaussian)")
    share_lasts: PositiveInt = Field(1, description="iterations for which each share of a list lasts")

    @model_validator(mode="after")
    def _one_share_of_labels(self) -> Byzantine:
        if self.attack == "label_flip" and isinstance(self.share, list):
            raise ValueError("label_flip changes the data of its clients, once and for all: one share")
        return self

    @property
    def of_answers(self) -> bool:
        """Whether it is answers that are falsified, and not data, or nothing."""
        return self.attack not in ("none", "label_flip")

    @property
    def largest_share(self) -> float:
        """The largest share that attacks at one time."""
        return max(self.share) if isinstance(self.share, list) else self.share

    def count(self, clients: int, iteration: int = 0) -> int:
        """How many of so many clients attack in an iteration."""
        share = self.share
        if isinstance(share, list):
            share = share[iteration // self.share_lasts % len(share)]
        return round(share * clients)

    def attackers(self, seed: int, clients: int, iteration: int = 0) -> NDArray[np.int64]:
        """Who attacks in an iteration, sorted."""
        order = np.argsort(randomness.uniform(seed, np.arange(clients), 0, "byzantine")[:, 0], kind="stable")
        return np.sort(order[: self.count(clients, iteration)])


def attacked(
    rows: Tensor,
    byzantine: NDArray[np.bool_],
    table: Byzantine,
    seed: int,
    clients: NDArray[np.int64],
    round: int,
    purpose: str,
) -> Tensor:
    """The answers [n, d] of these clients in float64, with those of the attackers replaced.

    m and s are mean and standard deviation (of the population) of the honest answers per coordinate, f the number of
    attackers among the n. sign_flip: `-strength u_i`; ipm: `-strength m` (Xie et al., UAI 2019); alie: `m - z s`, z =
    strength Phi^-1((n-f-q)/(n-f)), q = floor(n/2 + 1) - f (Baruch et al., NeurIPS 2019); gaussian: strength times
    standard normal numbers; mimic: the answer of the first honest client (Karimireddy et al., ICLR 2022); nan: nothing
    that is a number; none: the truth. Where no honest client answers, the attackers' own answers stand for theirs.
    """
    if not byzantine.any() or table.attack in ("none", "label_flip"):
        return rows
    n, f = len(rows), int(byzantine.sum())
    bad = torch.from_numpy(byzantine).to(rows.device)
    honest = rows[~bad] if f < n else rows
    result = rows.clone()
    if table.attack == "sign_flip":
        result[bad] = -table.strength * rows[bad]
    elif table.attack == "ipm":
        result[bad] = -table.strength * honest.mean(0)
    elif table.attack == "alie":
        result[bad] = honest.mean(0) - table.strength * alie_z(n, f) * honest.std(0, correction=0)
    elif table.attack == "gaussian":
        for place in np.flatnonzero(byzantine):
            draw = randomness.generator(seed, int(clients[place]), round, f"attack {purpose}")
            result[place] = table.strength * torch.from_numpy(draw.standard_normal(rows.shape[1])).to(rows)
    elif table.attack == "mimic":
        result[bad] = honest[0]
    else:
        result[bad] = math.nan
    return result


def alie_z(n: int, f: int) -> float:
    """Z of ALIE for n answers, f of them the attackers': how far a lie may lie from the mean, in deviations.

    Where the attackers need nobody's company, z is that of one supporter.

    >>> round(alie_z(20, 4), 4)
    0.1573
    """
    from scipy.stats import norm

    honest = n - f
    supporters = max(n // 2 + 1 - f, 1)
    return float(norm.ppf((honest - supporters) / honest)) if honest > supporters else 0.0

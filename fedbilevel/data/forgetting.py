"""Which of the clients' examples are to be forgotten, and the upper examples that tell whether they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedbilevel import randomness
from fedbilevel.data.scaling import plain_mean
from fedbilevel.errors import NOTHING, BadInput
from fedbilevel.problem import ClientData, Ragged, client_by_client


@dataclass(frozen=True)
class Forget:
    """What is to be forgotten: `kind` is the parameter that says it ("forget_class", ...), `value` what it says."""

    kind: str
    value: Any

    @classmethod
    def of(cls, forget_class: int | None, forget_clients: Sequence[int] | None, forget_share: float | None) -> Forget:
        """The one of the three that is given. Raises BadInput for none or several."""
        three = {"forget_class": forget_class, "forget_clients": forget_clients, "forget_share": forget_share}
        given = {key: value for key, value in three.items() if value is not None}
        if not given:
            raise BadInput("problem.forget_class", NOTHING, "a class; or forget_clients or forget_share in its place")
        if len(given) > 1:
            *_, (key, value) = given.items()
            raise BadInput(f"problem.{key}", value, "only one of forget_class, forget_clients and forget_share")
        return cls(*given.popitem())

    def marked(self, clients: ClientData, classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Which lower and which upper examples are of the class or the clients, or of the share: boolean [n] each.

        Of a share no upper example is. Raises BadInput for a value out of range, where nothing is to be forgotten, and
        where nothing would be left on one of the levels.
        """
        m = len(clients)
        if self.kind == "forget_class" and not 0 <= self.value < classes:
            raise self._refused(f"a class, from 0 to {classes - 1}")
        if self.kind == "forget_clients" and not (self.value and all(0 <= client < m for client in self.value)):
            raise self._refused(f"a list of numbers from 0 to {m - 1}")
        if self.kind == "forget_share" and not 0 < self.value < 1:
            raise self._refused("a number above 0 and below 1: less than everything")
        lower, upper = self._of(clients.lower, seed), self._of(clients.upper, seed)
        if self.kind == "forget_share":
            upper = torch.zeros_like(upper)
        if lower.all() or upper.all():
            raise self._refused("less than everything: nothing would be left on one of the levels")
        if not lower.any():
            raise self._refused("what some client holds a lower example of: there is nothing to forget")
        return lower, upper

    def _refused(self, allowed: str) -> BadInput:
        return BadInput(f"problem.{self.kind}", self.value, allowed)

    def _of(self, level: Ragged, seed: int) -> Tensor:
        m = len(level.sizes)
        if self.kind == "forget_class":
            return torch.as_tensor(level.values["label"] == self.value)
        if self.kind == "forget_clients":
            return torch.from_numpy(np.isin(level.owners, self.value))
        order = randomness.permutations(seed, np.arange(m), 0, "forgotten", level.sizes)
        first = np.arange(order.shape[1]) < np.rint(self.value * level.sizes)[:, None]
        marks = torch.zeros(int(level.offsets[-1]), dtype=torch.bool)
        marks[torch.from_numpy((level.offsets[:-1, None] + order)[first])] = True
        return marks


def with_forgotten(clients: ClientData, forget: Tensor, gone: Tensor) -> Ragged:
    """The upper examples: each client's validation part, and behind it its lower examples to forget.

    "forget" marks these; "scale" makes a plain mean of either part, over the validation examples that are not `gone`.
    """
    lower, upper = clients.lower, clients.upper
    chosen = torch.nonzero(forget)[:, 0]
    order, offsets = client_by_client(np.concatenate([upper.owners, lower.owners[chosen]]), len(clients))
    values = {name: torch.cat([upper.values[name], lower.values[name][chosen]])[order] for name in ("input", "label")}
    lost = (torch.arange(len(order)) >= len(gone))[order]
    kept = torch.cat([~gone, torch.zeros(len(chosen), dtype=torch.bool)])[order]
    joined = Ragged(values, offsets)
    scale = plain_mean(joined, clients.weights, kept) + plain_mean(joined, clients.weights, lost)
    return Ragged({**values, "scale": scale, "forget": lost}, offsets)

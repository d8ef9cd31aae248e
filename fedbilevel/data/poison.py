"""Byzantine clients that lie about their data: class k becomes C-1-k in all that they hold."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbilevel.conditions.attacks import Byzantine
from fedbilevel.errors import BadInput
from fedbilevel.problem import Problem, Ragged

LABEL = "label"


def flipped_share(table: Byzantine | None) -> float:
    """The share of clients whose labels are flipped."""
    return table.largest_share if table is not None and table.attack == "label_flip" else 0.0


def poisoned(problem: Problem, share: float, seed: int) -> Problem:
    """The same problem with the labels of the attackers among its clients flipped on both levels.

    Raises BadInput for a problem whose examples have no whole-numbered labels.
    """
    clients = problem.clients
    levels = (clients.lower, clients.upper)
    if not all(isinstance(each.values, Mapping) and _whole(each.values.get(LABEL)) for each in levels):
        raise BadInput(
            "systems.byzantine.attack", "label_flip", "a problem whose examples have labels, for this attack"
        )
    classes = 1 + max(int(each.values[LABEL].max()) for each in levels)
    attackers = Byzantine(share=share, attack="label_flip").attackers(seed, len(clients))
    result, held = copy.copy(problem), copy.copy(clients)
    held.lower, held.upper = clients.each(lambda level: _flipped(level, attackers, classes))
    result.clients = held
    return result


def _whole(label: object) -> bool:
    return isinstance(label, Tensor) and not label.is_floating_point()


def _flipped(level: Ragged, attackers: NDArray[np.int64], classes: int) -> Ragged:
    label = level.values[LABEL]
    lies = torch.from_numpy(np.isin(level.owners, attackers)).to(label.device)
    return Ragged({**level.values, LABEL: torch.where(lies, classes - 1 - label, label)}, level.offsets)

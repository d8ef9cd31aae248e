"""A small federation: seven clients of a quadratic problem, and one that is only asked whom it samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from clients.node import Setting
from fedbilevel.federation.messages import Reply, Request
from fedbilevel.federation.participation import Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.problems import MinimaxQuadratic, Quadratic
from server.grids.engines import in_process

M, DX, DY = 7, 3, 4
X_BYTES, Y_BYTES = 8 * DX, 8 * DY
PROBLEM = Quadratic(clients=M, dim_x=DX, dim_y=DY, examples=(2, 6), seed=3)
PLAYERS: Any = MinimaxQuadratic(clients=M, dim_x=DX, dim_y=DY, examples=(2, 6), seed=3)
"""The same federation on a game."""
X, Y = PROBLEM.initial(torch.Generator().manual_seed(0))


def federation(exchange: Any = None, **settings: Any) -> Federation:
    fed = Federation(exchange or in_process(PROBLEM, Setting()), Population.of(PROBLEM.clients), **settings)
    fed.begin(0)
    return fed


def in_process_of(problem: Any, **setting: Any) -> Any:
    """The exchange of a node with this setting."""
    return in_process(problem, Setting(**setting))


def sampling(m: int, **settings: Any) -> Federation:
    """A federation that is only asked whom it samples."""
    ones = np.ones(m, dtype=np.int64)

    def nobody(request: Request) -> list[Reply]:
        raise AssertionError(request)

    return Federation(nobody, Population(np.full(m, 1 / m), ones, ones), **settings)

"""A problem as bytes: what travels, and what cannot."""

import numpy as np
import torch

from fedbilevel.problems import Quadratic
from server.grids.parcels import pack, restricted, unpack


def test_an_actor_is_given_its_own_clients_alone() -> None:
    """Examples of others stay here, and numbers of clients and weights are kept."""
    problem = Quadratic(clients=40, dim_x=8, dim_y=8, examples=(1, 9))
    part = unpack(pack(restricted(problem, 10, 20)))
    assert len(pack(restricted(problem, 10, 20))) < len(pack(problem)) / 3
    assert np.array_equal(part.clients.weights, problem.clients.weights)
    for level in ("lower", "upper"):
        whole, held = getattr(problem.clients, level), getattr(part.clients, level)
        assert np.array_equal(held.sizes, np.where((np.arange(40) >= 10) & (np.arange(40) < 20), whole.sizes, 0))
        mine = np.array([11, 19, 10])
        for name, values in whole.take(mine).values.items():
            assert torch.equal(held.take(mine).values[name], values)

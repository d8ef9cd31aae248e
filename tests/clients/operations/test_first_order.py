"""The work of first-order operations, by the simulated seconds of a round."""

from __future__ import annotations

import numpy as np
import pytest

from fedbilevel import ClientData
from fedbilevel.problem import Ragged
from fedbilevel.problems import Quadratic
from tests.runs import traced

DX, DY = 2, 3


def test_bome_makes_three_lower_and_two_upper_passes() -> None:
    """T + 1 rounds of one client with 7 lower and 4 upper examples, one example per second.

    Each of the T rounds differentiates g once: 7 examples; down go x, y, then every new yh, up goes gy. The last makes
    gx(x, y), gx(x, yh) and gy(x, y), and fx and fy: 3 x 7 + 2 x 4 = 29; down goes yh, up go fx, fy, qx and gy.
    """
    problem, T = Quadratic(clients=1, dim_x=DX, dim_y=DY, examples=7, seed=1), 2
    upper = {name: values[:4] for name, values in problem.clients.upper.values.items()}
    problem.clients = ClientData(problem.clients.lower, Ragged(upper, np.array([0, 4])), "uniform")
    down, up = (DX + DY) + T * DY, T * DY + 2 * (DX + DY)
    network = {"examples_per_second": 1.0, "latency_ms": 500.0, "downlink_mbps": 0.001, "uplink_mbps": 0.002}
    result = traced(problem, "bome", 1, lower_rounds=T, systems={"network": network})
    expected = T * 7 + 29 + (T + 1) * 2 * 0.5 + 64 * down / 1000 + 64 * up / 2000
    assert result.communication["simulated_seconds"] == pytest.approx(expected, rel=1e-12)

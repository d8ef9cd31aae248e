"""Rows of the single-loop methods with second derivatives."""

from __future__ import annotations

from tests.algorithm_table.row import STEPS, TAU, Options, Row, choices, combined

BASE: Options = {**STEPS, "neumann_step": 0.4}
SERVER: Options = {"upper_server_step": 0.15, "lower_server_step": 0.35, "neumann_server_step": 0.45}
PER_CLIENT = [[1.0], [0.5, 1.5], [0.2, 0.4, 0.6, 0.8], [2.0], [1.0, 0.5, 0.25]]
"""Coefficients of the local steps TAU."""
SIMFBO = [
    *combined([BASE], choices("local_steps", 1, 3, TAU)),
    {**BASE, **SERVER, "local_steps": TAU},
    {**BASE, "local_steps": 3, "coefficients": [1.0, 0.5, 0.25], "radius": 0.6},
    {**BASE, "local_steps": TAU, "coefficients": PER_CLIENT},
    {**BASE, "local_steps": TAU, "coefficients": [1.0, 0.5, 0.25, 0.125]},
    {**BASE, "coefficients": [0.7]},
    STEPS,
]


def once(o: Options, index: int | None) -> int:
    return 1


ROWS = {
    name: Row(
        cases=SIMFBO,
        rounds=once,
        counts=[({}, 1)],
        sampled={"neumann_step": 0.4, "local_steps": TAU, "coefficients": PER_CLIENT, "radius": 2.0, **SERVER},
        pooled={},
        travels=[({"local_steps": 2}, [[("x y v", "qx y v")]] * 2)],
    )
    for name in ("simfbo", "shrofbo")
} | {
    "fedbio": Row(
        cases=combined([BASE], choices("local_steps", 1, 3, TAU)),
        rounds=once,
        counts=[({}, 1)],
        sampled={"neumann_step": 0.4, "local_steps": TAU},
        pooled={},
        travels=[({"local_steps": 2}, [[("x y v", "x y v")]] * 2)],
    ),
    "fedbioacc": Row(
        cases=combined([BASE], choices("local_steps", 1, 3, TAU), choices("momentum_decay", 0.1, 0.8)),
        rounds=once,
        counts=[({}, 1)],
        sampled={"neumann_step": 0.4, "local_steps": TAU, "momentum_decay": 0.3},
        travels=[
            ({"local_steps": 2}, [[("x y v", "x y v mx my mv")], [("x y v mx my mv", "x y v mx my mv")]]),
        ],
    ),
    "br-fedbi": Row(
        cases=combined([BASE], choices("variant", "plain", "momentum", "page"), choices("radius", None, 0.6)),
        rounds=once,
        counts=[({}, 1), ({"variant": "momentum"}, 1), ({"variant": "page"}, 1)],
        sampled={"variant": "momentum", "momentum": 0.6, "neumann_step": 0.4},
        pooled={"variant": "momentum"},
        travels=[({"variant": kind}, [[("x y v", "qx y v")]] * 2) for kind in ("plain", "momentum", "page")],
    ),
}

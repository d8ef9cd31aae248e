"""Rows of the algorithms with a local lower level."""

from __future__ import annotations

from tests.algorithm_table.row import Options, TaskRow

ROWS = {
    "maml": TaskRow(
        exact=[
            {"local_steps": 1},
            {"local_steps": 8},
            {"local_steps": 8, "truncation": 3},
            {"local_steps": 2, "truncation": 5},
        ],
        work=[{}, {"truncation": 2}, {"truncation": 9}],
    ),
    "fomaml": TaskRow(exact=[{"local_steps": 6}], work=[{}]),
    "reptile": TaskRow(exact=[{"local_steps": 6}], work=[{}]),
    "memfbo": TaskRow(work=[{}]),
    "bome": TaskRow(work=[{"lower_rounds": 3}]),
    "imaml": TaskRow(variants={"gd": {}, "newton": {"inner_solver": "newton", "local_steps": 3}}),
    "ibaml": TaskRow(
        variants={
            "map": {"upper_optimiser": "adam"},
            "variational": {"inference": "variational", "samples": 4, "inner_solver": "momentum"},
        },
        size=lambda parameters: 2 * parameters,
    ),
    "a-maml": TaskRow(),
    "comln": TaskRow(size=lambda parameters: parameters + 1),
    "ntk-maml": TaskRow(size=lambda parameters: parameters + 1),
    "stochastic-bilevel": TaskRow(),
    "agile": TaskRow(),
    "kernel-maml": TaskRow(beside=1),
    "r2d2": TaskRow(size=lambda parameters: parameters + 2),
}

NEWTON: Options = {"inner_solver": "newton", "local_steps": 15, "cg_steps": 60, "cg_tolerance": 1e-14}
SOLVERS: dict[str, Options] = {
    "gd": {"inner_solver": "gd", "local_steps": 300, "lower_step": 1.0},
    "momentum": {"inner_solver": "momentum", "local_steps": 200, "lower_step": 1.0},
    "newton": NEWTON,
}
"""Every inner solver of the implicit methods, with steps enough for the minimum of losses of curvature at most 1."""

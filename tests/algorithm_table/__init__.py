"""The common test table: a row per algorithm, in a file per family. An algorithm joins the tests by its row.

One that is not for a local lower level also joins the second implementation, by one function in `tests/reference`.
"""

from __future__ import annotations

from tests.algorithm_table import implicit, minimax, own, penalty, sampling, single_level, single_loop, tasks
from tests.algorithm_table.row import Row, TaskRow

GLOBAL: dict[str, Row] = {
    **implicit.ROWS,
    **penalty.ROWS,
    **single_loop.ROWS,
    **single_level.ROWS,
    **sampling.ROWS,
    **own.ROWS,
}
MINIMAX: dict[str, Row] = minimax.ROWS
SHARED: dict[str, Row] = {**GLOBAL, **MINIMAX}
"""Those with one x and one y of all clients, each on the problem of its kind."""
LOCAL: dict[str, TaskRow] = tasks.ROWS

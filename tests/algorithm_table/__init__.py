"""The common test table: a row per algorithm, in a file per family. An algorithm joins the tests by its row.

One for a global lower level also joins the second implementation, by one function in `tests/reference`.
"""

from __future__ import annotations

from tests.algorithm_table import implicit, penalty, single_level, single_loop, tasks
from tests.algorithm_table.row import Row, TaskRow

GLOBAL: dict[str, Row] = {**implicit.ROWS, **penalty.ROWS, **single_loop.ROWS, **single_level.ROWS}
LOCAL: dict[str, TaskRow] = tasks.ROWS

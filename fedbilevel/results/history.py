"""`history.csv`: every evaluation of every run in one tidy table, written and read without losing a bit."""

from __future__ import annotations

import csv
import io
import numbers
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedbilevel.errors import BadInput
from fedbilevel.results.files import PathLike, write_whole

COLUMNS: tuple[str, ...] = (
    "algorithm",
    "seed",
    "iteration",
    "round",
    "uplink_bytes",
    "downlink_bytes",
    "simulated_seconds",
    "wall_seconds",
    "upper_loss",
    "lower_loss",
    "test_loss",
    "test_accuracy",
    "hypergradient_norm",
)
SOLUTION_COLUMNS: tuple[str, ...] = ("value", "value_accuracy", "gradient_norm", "hypergradient_error")
"""What a row holds at the true lower solution y*(x): F(x), the test accuracy there, |grad F(x)|, and the relative error
of the direction that moved x; columns only where a run looks for that solution."""
WORK_COLUMNS: tuple[str, ...] = ("gradient_evaluations",)
"""What clients have computed so far, all together: gradients of single examples, a second-order product counted twice;
only in histories that count it."""
PRIVACY_COLUMNS: tuple[str, ...] = ("epsilon",)
"""What a run has spent of its clients' privacy, at the delta of its config; only where a run is private."""
METRIC_PREFIX = "metric_"

Row = dict[str, object]
"""One evaluation: a value for each of `COLUMNS`, of `SOLUTION_COLUMNS` where the lower level is solved, of
`WORK_COLUMNS`, of `PRIVACY_COLUMNS` where a run is private, and for the problem's own `metric_*`; None where there is
none."""

_INTEGERS = frozenset({"seed", "iteration", "round", "uplink_bytes", "downlink_bytes", *WORK_COLUMNS})
_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf|nan", re.IGNORECASE)


def number(row: Mapping[str, object], column: str) -> float | None:
    """The value of a numeric column as a float, None where the row has none."""
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        raise TypeError(f"history column {column}: got {value!r}; allowed: a number or None")
    return float(value)


def write_history(path: PathLike, rows: Iterable[Mapping[str, object]]) -> None:
    """Write the rows as csv, whole or not at all.

    Columns are `COLUMNS`; `SOLUTION_COLUMNS`, `WORK_COLUMNS` and `PRIVACY_COLUMNS` if any row has them; then every
    `metric_*` seen in any row, sorted. None or a missing key becomes an empty field; a float is written with the digits
    that give back the very same float64.

    Raises `BadInput` if the file cannot be written; `TypeError` for a value, `ValueError` for a key that has no place
    in the table.
    """
    rows = list(rows)
    seen = {key for row in rows for key in row} - set(COLUMNS)
    solved = SOLUTION_COLUMNS if seen & set(SOLUTION_COLUMNS) else ()
    worked = WORK_COLUMNS if seen & set(WORK_COLUMNS) else ()
    private = PRIVACY_COLUMNS if seen & set(PRIVACY_COLUMNS) else ()
    seen -= {*SOLUTION_COLUMNS, *WORK_COLUMNS, *PRIVACY_COLUMNS}
    if strange := sorted(key for key in seen if not key.startswith(METRIC_PREFIX)):
        raise ValueError(f"history: no column {strange[0]!r}; a problem's own measures are named {METRIC_PREFIX}*")
    columns = [*COLUMNS, *solved, *worked, *private, *sorted(seen)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(column, row.get(column)) for column in columns] for row in rows)
    write_whole(path, text.getvalue().encode())


def read_history(path: PathLike) -> list[Row]:
    """Read what `write_history` wrote: the same values, with None for an empty field.

    Raises `BadInput`, naming the file and the line, for a file that is missing, damaged or something else.
    """
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[Row] = []
    columns: list[str] = []
    start = 1
    try:
        for fields in lines:
            if not columns:
                columns = _header(path, fields)
            elif len(fields) != len(columns):
                raise BadInput(f"{path}, line {start}", f"{len(fields)} fields", f"{len(columns)} fields")
            else:
                rows.append({c: _value(path, start, c, field) for c, field in zip(columns, fields, strict=True)})
            start = lines.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{path}, line {start}", str(error), "comma-separated values") from error
    return rows


def _field(column: str, value: object) -> str:
    if column == "algorithm":
        if not isinstance(value, str) or not value:
            raise TypeError(f"history column algorithm: got {value!r}; allowed: a name")
        return value
    if value is None:
        return ""
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real) and column not in _INTEGERS:
        return repr(float(value))
    kind = "an integer" if column in _INTEGERS else "a number"
    raise TypeError(f"history column {column}: got {value!r}; allowed: {kind} or None")


def _text(path: PathLike) -> str:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(str(path), error.strerror or str(error), "a history.csv that can be read") from error
    if not content:
        raise BadInput(f"{path}, line 1", "an empty file", "a history.csv with its header")
    try:
        text = content.decode("utf-8-sig")  # a spreadsheet may have put a byte order mark in front
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}, line {line}", "bytes that are not text", "a history.csv in UTF-8") from error
    if (nul := text.find("\0")) >= 0:
        line = text.count("\n", 0, nul) + 1
        raise BadInput(f"{path}, line {line}", "a NUL byte", "a history.csv in UTF-8")
    if not text.endswith("\n"):
        line = text.count("\n") + 1
        raise BadInput(f"{path}, line {line}", text[text.rfind("\n") + 1 :], "a whole line; this one is cut off")
    return text


def _header(path: PathLike, columns: list[str]) -> list[str]:
    optional = (*SOLUTION_COLUMNS, *WORK_COLUMNS, *PRIVACY_COLUMNS)
    known = {*COLUMNS, *optional}
    where = f"{path}, line 1"
    allowed = f"the columns {', '.join(COLUMNS)}, {', '.join(optional)} and {METRIC_PREFIX}*, each once"
    if missing := [column for column in COLUMNS if column not in columns]:
        raise BadInput(where, f"no column {', '.join(missing)}", allowed)
    for column in columns:
        if columns.count(column) > 1 or not (column in known or column.startswith(METRIC_PREFIX)):
            raise BadInput(where, column, allowed)
    return columns


def _value(path: PathLike, line: int, column: str, field: str) -> object:
    if column == "algorithm":
        if not field:
            raise BadInput(f"{path}, line {line}, column algorithm", field, "the algorithm's name")
        return field
    if not field:
        return None
    try:
        if _INTEGER.fullmatch(field):
            return int(field)
        if column not in _INTEGERS and _REAL.fullmatch(field):
            return float(field)
    except ValueError:  # an integer of thousands of digits
        pass
    kind = "an integer" if column in _INTEGERS else "a number"
    raise BadInput(f"{path}, line {line}, column {column}", field, f"{kind}, or nothing")

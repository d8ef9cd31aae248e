"""How the command line writes: tables and lines, with colours and boxes only where a person looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def stdout() -> Console:
    """The console for results: without colours, boxes or folded lines where stdout is no terminal."""
    if sys.stdout.isatty():
        return Console()
    return Console(force_terminal=False, color_system=None, width=10_000)


def fancy(console: Console) -> bool:
    """Whether the console can draw: a terminal, and not a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal


def busy(what: str) -> AbstractContextManager[object]:
    """Say what is going on while it lasts, on a terminal."""
    console = stdout()
    return console.status(what) if fancy(console) else nullcontext()


def complain(message: str) -> None:
    """Print one line on stderr, whatever the message holds."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    print(f"fedbilevel: {line}", file=sys.stderr, flush=True)


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is: names are names, also with brackets; a terminal folds it."""
    console.print(Text(line, style=style), soft_wrap=True)


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int, ends: Sequence[int] = ()
) -> None:
    """Print a table whose first `words` columns hold words and the others numbers.

    ends: the rows after which a group ends; without columns there is no head.
    """
    if not fancy(console):
        lines = [columns, *rows] if columns else rows
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for cells in lines:
            padded = [
                cell.ljust(width) if position < words else cell.rjust(width)
                for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            say(console, "  " + "  ".join(padded).rstrip())
        return
    table = Table(box=box.SIMPLE_HEAD if columns else None, show_header=bool(columns), show_edge=False)
    table.padding = (0, 1 if console.width >= 100 else 0)
    for position in range(len(rows[0])):
        justify, head = ("left" if position < words else "right"), (columns[position] if columns else "")
        table.add_column(head, justify=justify, overflow="fold", no_wrap=position == 0)  # type: ignore[arg-type]  # a str
    for number, cells in enumerate(rows):
        table.add_row(*map(Text, cells), end_section=number in ends)
    console.print(table)

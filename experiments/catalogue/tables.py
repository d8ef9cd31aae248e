"""How what a thing takes is printed: a table with a title, and values as a config holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.terminal import print_table, say

if TYPE_CHECKING:
    from rich.console import Console

Row = tuple[str, ...]


def shown(default: Any) -> str:
    """A default as a config would hold it; "-" where there is none.

    >>> shown((200,)), shown(None), shown("sum"), shown(True)
    ('[200]', '-', '"sum"', 'true')
    """
    return "-" if default is None else json.dumps(default, default=str)


def print_takes(console: Console, title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """A table of what can be set, if there is anything; a column without a word is left out."""
    if rows:
        kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
        say(console, f"\n{title}")
        table = [[row[place] for place in kept] for row in rows]
        print_table(console, [columns[place] for place in kept], table, words=len(kept))

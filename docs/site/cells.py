"""Tables of Markdown, and plain text in their cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Rows = Sequence[Sequence[str]]


def table(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    """A table, if there are rows."""
    if rows:
        yield "| " + " | ".join(columns) + " |"
        yield "|" + "---|" * len(columns)
        yield from ("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def text(plain: str) -> str:
    """Plain text as Markdown: nothing in it is markup but what stands between backticks."""
    parts = " ".join(plain.split()).split("`")
    for at in range(0, len(parts), 2):
        for mark in ("*", "_", "<", "["):
            parts[at] = parts[at].replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return "`".join(parts)

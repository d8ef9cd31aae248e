"""A table as a person wants it: plain text within 80 columns, or Markdown or LaTeX to paste."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from experiments.terminal import print_table, say
from fedbilevel.tables.sheet import Sheet

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
"""A table that would be wider is printed in several parts, each with the names."""
_NAMES = 36  # a longer name goes on in the next line
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    ">": "$>$",
    "<": "$<$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "±": r"$\pm$",
    "–": "--",
    "—": "---",
}


def print_sheets(console: Console, sheets: Sequence[Sheet]) -> None:
    """Print tables as text."""
    for number, sheet in enumerate(sheets):
        if number:
            say(console, "")
        for line in textwrap.wrap(sheet.title, WIDTH):
            say(console, line, "bold")
        for part, (columns, rows) in enumerate(_parts(sheet)):
            if part:
                say(console, "")
            print_table(console, columns, rows, words=1)
        for line in textwrap.wrap(sheet.note, WIDTH):
            say(console, line)


def _parts(sheet: Sheet) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The columns in as many parts as it takes; names that are too long are folded."""
    names: list[list[str]] = [textwrap.wrap(row[0], _NAMES) or [""] for row in sheet.rows]
    taken = 2 + max(len(line) for line in [sheet.columns[0], *(line for name in names for line in name)])
    widths = [2 + max(map(len, column)) for column in zip(sheet.columns, *sheet.rows, strict=True)]
    first = 1
    while first < len(widths):
        last, width = first + 1, taken + widths[first]
        while last < len(widths) and width + widths[last] <= WIDTH:
            width += widths[last]
            last += 1
        rows = []
        for name, row in zip(names, sheet.rows, strict=True):
            rows.append([name[0], *row[first:last]])
            rows += [[rest, *[""] * (last - first)] for rest in name[1:]]
        yield [sheet.columns[0], *sheet.columns[first:last]], rows
        first = last


def markdown(sheet: Sheet) -> str:
    r"""A table of GitHub's Markdown.

    >>> print(markdown(Sheet("Ends", ["algorithm", "loss"], [["a|b", "> 2"]])))
    **Ends**
    <BLANKLINE>
    | algorithm | loss |
    |:---|---:|
    | a\|b | > 2 |
    """
    lines = [f"**{sheet.title}**", "", _row(sheet.columns), "|:---|" + "---:|" * (len(sheet.columns) - 1)]
    lines += map(_row, sheet.rows)
    return "\n".join([*lines, *(["", sheet.note] if sheet.note else [])])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("\\", r"\\").replace("|", r"\|") for cell in cells) + " |"


def latex(sheet: Sheet) -> str:
    r"""A tabular of LaTeX with the rules of booktabs; title and note are comments.

    >>> print(latex(Sheet("Ends", ["algorithm", "loss"], [["f_2", "> 2"]])))
    % Ends
    \begin{tabular}{lr}
    \toprule
    algorithm & loss \\
    \midrule
    f\_2 & $>$ 2 \\
    \bottomrule
    \end{tabular}
    """
    lines = [f"% {sheet.title}", rf"\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}", r"\toprule"]
    lines += [_cells(sheet.columns), r"\midrule", *map(_cells, sheet.rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *([f"% {sheet.note}"] if sheet.note else [])])


def _cells(cells: Sequence[str]) -> str:
    pattern = re.compile("|".join(map(re.escape, _LATEX)))
    return " & ".join(pattern.sub(lambda found: _LATEX[found[0]], cell) for cell in cells) + r" \\"

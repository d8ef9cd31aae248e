"""Algorithms: by family, and what one of them takes, with the papers' symbols."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments.catalogue.tables import Row, print_takes, shown
from experiments.terminal import print_table, say
from fedbilevel.config.validation import Schema, described, meaning
from server.kit.algorithm import Entry, algorithms, find
from server.kit.options import UpperOptions

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("option", "default", "symbol", "meaning", "allowed")
_ORDER = ("global", "any", "minimax", "local")
_LETTERS = r"(?:alpha|beta|delta|eta|d?lam|gam|tau|xi|eps|[A-Za-z]\d?)(?:_\w+)?(?:\^k)?"
_SYMBOL = re.compile(rf"({_LETTERS}(?: or {_LETTERS}')?)(?=[:,;]| of )(: )?")


def print_families(console: Console) -> None:
    """Print the algorithms by what their rooms say of themselves, global lower levels first."""
    found: dict[str, list[Entry]] = {}
    for entry in sorted(algorithms().values(), key=lambda each: (_ORDER.index(each.lower), each.family, each.name)):
        room = importlib.import_module(f"server.algorithms.{entry.family}")
        found.setdefault((room.__doc__ or entry.family).strip(), []).append(entry)
    for family, entries in found.items():
        say(console, f"\n  {family}")
        print_table(console, (), [line for entry in entries for line in _lines(entry)], words=2)


def _lines(entry: Entry) -> Iterator[tuple[str, str]]:
    """A line of what it is, and one of where it is from and what is known to hold."""
    yield entry.name, entry.summary
    parts = [entry.source, entry.confirmed and f"confirmed: {entry.confirmed}"]
    parts.append(entry.reading and f"our reading: {entry.reading}")
    yield "", "  " + "; ".join(filter(None, parts))


def print_algorithm(console: Console, name: str) -> None:
    """Print its source and options. Raises BadInput as `find` does."""
    entry = find(name, "NAME")
    say(console, f"{name}: {entry.summary}", "bold")
    for line in filter(None, (entry.source, entry.confirmed and f"Confirmed: {entry.confirmed}.")):
        say(console, line)
    if entry.reading:
        say(console, f"Our reading: {entry.reading}.")
    schema = entry.options.model_json_schema()
    options = list(schema["properties"])
    servers = [option for option in options if option in UpperOptions.model_fields and option != "upper_step"]
    own = option_rows(schema, [option for option in options if option not in servers])
    print_takes(console, f"Options, [options] or [algorithms.{name}]", COLUMNS, own)
    title = "How the server steps along the direction of x, the same"
    print_takes(console, title, COLUMNS, option_rows(schema, servers))


def option_rows(schema: Schema, options: list[str]) -> list[Row]:
    """What a schema says of these options, in `COLUMNS`."""
    rows: list[Row] = []
    for option in options:
        field = schema["properties"][option]
        rows.append((option, shown(field.get("default")), *symbol(meaning(field)), described(field, schema)))
    return rows


def symbol(description: str) -> tuple[str, str]:
    """The paper's symbol that a description begins with, if it does, and the meaning.

    >>> symbol("lam_p: pull to x"), symbol("K, default 5: steps"), symbol("paper: 2 rounds")
    (('lam_p', 'pull to x'), ('K', 'K, default 5: steps'), ('', 'paper: 2 rounds'))
    """
    found = _SYMBOL.match(description)
    if found is None:
        return "", description
    return found[1], description[found.end() :] if found[2] else description

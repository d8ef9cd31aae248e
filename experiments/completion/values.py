"""What completes each argument and option of the command line; each takes what is typed so far."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from experiments.completion import names
from fedbilevel.config.packaged import CONFIGS, packaged, packaged_configs

Offer = tuple[str, str]
"""What can stand there, and a line on it."""
_MOST = 100
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def _that_begin(offers: Iterable[Offer], typed: str) -> list[Offer]:
    return [(value, line) for value, line in offers if value.startswith(typed)]


def _files(typed: str, *endings: str) -> Iterator[Path]:
    """Files that begin with what is typed and end so, and those one folder and two further in."""
    typed = typed if typed.strip(".") else ""
    folder, start = (Path(typed), "") if typed.endswith("/") else (Path(typed).parent, Path(typed).name)
    pattern = re.sub(r"([\[\]*?])", r"[\1]", start)
    with contextlib.suppress(OSError, ValueError):
        for ending in endings:
            yield from islice(folder.expanduser().glob(pattern + ending), _MOST)


def configs(incomplete: str) -> list[Offer]:
    """The packaged configs, and files that end in .toml."""
    files = [(str(file), "") for file in _files(incomplete, "*.toml", "*/*.toml")]
    return [*_that_begin(packaged_configs().items(), incomplete), *_that_begin(files, incomplete)]


def run_directories(incomplete: str) -> list[Offer]:
    """Folders with a history."""
    found = [(str(file.parent), "") for file in _files(incomplete, "*/history.csv", "*/*/history.csv")]
    return _that_begin(found, incomplete)


def listed(incomplete: str) -> list[Offer]:
    """Every name of `fedbilevel list`, with its kinds."""
    kinds: dict[str, list[str]] = {}
    everything = {"algorithm": names.algorithms(), **{kind: names.named(kind) for kind in names.TABLES}}
    everything["config"] = sorted(file.stem for file in CONFIGS.glob("*.toml"))
    for kind, own in everything.items():
        for name in own:
            kinds.setdefault(name, []).append(kind)
    return _that_begin(((name, " and ".join(kind)) for name, kind in sorted(kinds.items())), incomplete)


def problems(incomplete: str) -> list[Offer]:
    """The built-in problems."""
    return _that_begin(((name, "") for name in names.named("problem")), incomplete)


def engines(incomplete: str) -> list[Offer]:
    """The engines."""
    return _that_begin(((name, "") for name in names.named("engine")), incomplete)


def axes(incomplete: str) -> list[Offer]:
    """What an x axis can show."""
    found = names.listed("fedbilevel/figures/curves.py", "X_AXES")
    return _that_begin(((name, "") for name in found), incomplete)


def formats(incomplete: str) -> list[Offer]:
    """How tables can be printed."""
    found = names.listed("experiments/reading/report.py", "FORMATS")
    return _that_begin(((name, "") for name in found), incomplete)


def columns(context: typer.Context, incomplete: str) -> list[Offer]:
    """The columns that all runs have, or those of the run directories that are typed already."""
    headers: list[str] = []
    for folder in _arguments(context):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(Path(folder) / "history.csv") as file:
            headers += file.readline().strip().split(",")
    found = headers or names.listed("fedbilevel/results/history.py", "COLUMNS")
    shown = [name for name in dict.fromkeys(found) if name not in ("algorithm", "seed")]
    return _that_begin(((name, "") for name in [*shown, *["error"] * ("test_accuracy" in shown)]), incomplete)


def overrides(context: typer.Context, incomplete: str) -> list[Offer]:
    """`table.key=` of everything that the config which is typed already can hold, or that any can."""
    tables = _config(next(_arguments(context), None))
    return _that_begin(((f"{key}=", "") for key in dict.fromkeys(_keys(tables))), incomplete)


def _arguments(context: typer.Context) -> Iterator[str]:
    """The arguments that stand before an option whose value is still to come: click leaves them unread."""
    return (word for word in context.args if not word.startswith("-"))


def _config(file: str | None) -> dict[str, Any]:
    if file is not None:
        with contextlib.suppress(OSError, ValueError):
            return tomllib.loads((packaged(file) or Path(file)).read_bytes().decode("utf-8-sig"))
    return {}


def _keys(tables: dict[str, Any]) -> Iterator[str]:
    yield "title"
    yield from _set(tables, "")
    for table in names.MODELS:
        yield from (f"{table}.{key}" for key in names.keys(table) if f"{table}.{key}" not in names.MODELS)
    problem, data = (_table(tables, name) for name in ("problem", "data"))
    yield "problem.name"
    yield from (f"problem.{key}" for key in names.parameters(str(problem.get("name"))))
    partition = str(data.get("partition", "dirichlet"))
    yield from (f"data.{key}" for key in names.partition_parameters(partition))
    options = names.options()
    yield from (f"options.{key}" for key in options)
    for label in _table(tables, "algorithms"):
        if _BARE.fullmatch(label):
            yield from (f"algorithms.{label}.{key}" for key in options)


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    found = tables.get(name)
    return found if isinstance(found, dict) else {}


def _set(table: dict[str, Any], path: str) -> Iterator[str]:
    """The keys that a config sets, as --set names them."""
    for key, value in table.items():
        if not _BARE.fullmatch(key):
            continue
        if isinstance(value, dict):
            yield from _set(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"

"""What `fedbilevel list` prints: every name that a config can hold, and what an algorithm, a problem, ... takes."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from experiments.terminal import print_table, say
from fedbilevel.config.packaged import CONFIGS, packaged_configs
from fedbilevel.config.validation import described, meaning
from fedbilevel.data import DATASETS, PARTITIONS, partition_parameters
from fedbilevel.errors import unknown
from fedbilevel.problems import PROBLEMS
from fedbilevel.problems.networks.named import NETWORKS
from fedbilevel.user_files import names_file
from server.grids.engines import ENGINES
from server.kit.algorithm import Entry, algorithms, find
from server.kit.options import UpperOptions

if TYPE_CHECKING:
    from rich.console import Console

_ORDER = ("global", "any", "minimax", "local")


def print_names(console: Console) -> None:
    """Print algorithms by family, problems, networks, data sets, partitions, engines and configs.

    Of an algorithm: what it is, its source, what of it is confirmed, and what is our reading.
    """
    own = ("path/to/file.py:factory", "your own: a function or class that returns a fedbilevel.Problem")
    own_algorithm = ("path/to/file.py:name", "your own: a factory below @algorithm(...), see the README")
    own_network = ("path/to/nets.py:net", "your own: a torch.nn.Module, or a function that returns one")
    files = ("NAME", "the file NAME.npz in $FEDBILEVEL_DATA, with the arrays x_train, y_train, x_test and y_test")
    say(console, "Algorithms, [algorithms.NAME]", "bold")
    for family, entries in _families().items():
        say(console, f"\n  {family}")
        print_table(console, (), [line for entry in entries for line in _lines(entry)], words=2)
    say(console, "")
    print_table(console, (), [own_algorithm], words=2)
    say(console, "")
    sections: dict[str, list[tuple[str, str]]] = {
        "Problems, problem.name": [*((name, line) for name, (_, line) in PROBLEMS.items()), own],
        "Networks, problem.network": [*NETWORKS.items(), own_network],
        "Data sets, data.name": [*DATASETS.items(), files],
        "Partitions, data.partition": [(name, line + _takes(name)) for name, line in PARTITIONS.items()],
        "Engines, --engine": list(ENGINES.items()),
        "Configs, fedbilevel run NAME": list(packaged_configs().items()),
    }
    for title, rows in sections.items():
        say(console, title, "bold")
        print_table(console, (), rows, words=2)
        say(console, "")
    say(console, "What an algorithm, a problem or a partition takes: fedbilevel list NAME")


def _families() -> dict[str, list[Entry]]:
    """The algorithms by what their rooms say of themselves, global lower levels first."""
    found: dict[str, list[Entry]] = {}
    for entry in sorted(algorithms().values(), key=lambda each: (_ORDER.index(each.lower), each.family, each.name)):
        room = importlib.import_module(f"server.algorithms.{entry.family}")
        found.setdefault((room.__doc__ or entry.family).strip(), []).append(entry)
    return found


def _lines(entry: Entry) -> Iterator[tuple[str, str]]:
    """A line of what it is, and one of where it is from and what is known to hold."""
    yield entry.name, entry.summary
    parts = [entry.source, entry.confirmed and f"confirmed: {entry.confirmed}"]
    parts.append(entry.reading and f"our reading: {entry.reading}")
    yield "", "  " + "; ".join(filter(None, parts))


def _takes(partition: str) -> str:
    takes = ", ".join(f"{key} = {value}" for key, value in partition_parameters(partition).items())
    return f" ({takes})" if takes else ""


def print_options(console: Console, name: str) -> None:
    """Print what an algorithm, a problem, a partition, a data set or a config of this name is, and what it takes.

    Raises BadInput for an unknown name, with the nearest known one.
    """
    if name in PROBLEMS:
        _print_problem(console, name)
    elif name in PARTITIONS:
        say(console, f"{name}: {PARTITIONS[name]}", "bold")
        rows = [(key, json.dumps(value)) for key, value in partition_parameters(name).items()]
        _print_takes(console, f"Parameters, [data] with partition = {json.dumps(name)}", ("parameter", "default"), rows)
    elif name in DATASETS:
        say(console, f"{name}: {DATASETS[name]}", "bold")
    elif name in packaged_configs() and not names_file(name):
        say(console, f"{name}: {packaged_configs()[name]}", "bold")
        say(console, f"\n{(CONFIGS / f'{name}.toml').read_text().rstrip()}")
    elif names_file(name):
        _print_algorithm(console, name)
    else:
        known = [*algorithms(), *PROBLEMS, *PARTITIONS, *DATASETS, *packaged_configs(), "path/to/file.py:name"]
        if name not in known:
            raise unknown("NAME", name, known)
        _print_algorithm(console, name)


def _print_algorithm(console: Console, name: str) -> None:
    entry = find(name, "NAME")
    schema = entry.options.model_json_schema()
    rows = []
    for option, field in schema["properties"].items():
        default = field.get("default")
        shown = "-" if default is None else json.dumps(default)
        rows.append((option, shown, meaning(field), described(field, schema)))
    servers = set(UpperOptions.model_fields) - {"upper_step"}
    own = [row for row in rows if row[0] not in servers]
    say(console, f"{name}: {entry.summary}", "bold")
    for line in filter(None, (entry.source, entry.confirmed and f"Confirmed: {entry.confirmed}.")):
        say(console, line)
    if entry.reading:
        say(console, f"Our reading: {entry.reading}.")
    columns = ("option", "default", "meaning", "allowed")
    _print_takes(console, f"Options, [options] or [algorithms.{name}]", columns, own)
    if len(own) < len(rows):
        steps = [row for row in rows if row[0] in servers]
        _print_takes(console, "How the server steps along the direction of x, the same", columns, steps)


def _print_problem(console: Console, name: str) -> None:
    factory, line = PROBLEMS[name]
    told = _documented(inspect.getdoc(factory) or "")
    rows = []
    for key, parameter in inspect.signature(factory).parameters.items():
        if key in ("data", "dtype"):
            continue
        default = parameter.default
        shown = "the run's" if key == "seed" else "-" if default in (None, parameter.empty) else json.dumps(default)
        rows.append((key, shown, told.get(key, "")))
    say(console, f"{name}: {line}", "bold")
    if "data" in inspect.signature(factory).parameters:
        say(console, "Takes the data set of the table [data].")
    columns = ("parameter", "default", "meaning")
    _print_takes(console, f"Parameters, [problem] with name = {json.dumps(name)}", columns, rows)


def _documented(text: str) -> dict[str, str]:
    """What the section "Parameters" of a docstring says of each parameter, in one line."""
    lines = text.split("Parameters\n----------\n")[-1].splitlines() if "Parameters\n---" in text else []
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if not line.strip():
            break
        if not line.startswith(" "):
            names = [name.strip() for name in line.split(",")]
            continue
        for name in names:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _print_takes(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of what can be set, if there is anything."""
    if rows:
        say(console, f"\n{title}")
        print_table(console, columns, rows, words=len(columns))

"""What `fedbilevel list` prints: every name that a config can hold, and the options of an algorithm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from experiments.terminal import print_table, say
from fedbilevel.config.packaged import packaged_configs
from fedbilevel.config.validation import described, meaning
from fedbilevel.data import DATASETS, PARTITIONS, partition_parameters
from fedbilevel.problems import PROBLEMS
from server.grids.engines import ENGINES
from server.kit.algorithm import algorithms, find

if TYPE_CHECKING:
    from rich.console import Console


def print_names(console: Console) -> None:
    """Print algorithms, problems, data sets, partitions and engines, one line each."""
    own = ("path/to/file.py:factory", "your own: a function or class that returns a fedbilevel.Problem")
    own_algorithm = ("path/to/file.py:name", "your own: a factory below @algorithm(...), see the README")
    files = ("NAME", "the file NAME.npz in $FEDBILEVEL_DATA, with the arrays x_train, y_train, x_test and y_test")
    sections: dict[str, list[tuple[str, str]]] = {
        "Algorithms, [algorithms.NAME]": [
            *((name, entry.summary) for name, entry in algorithms().items()),
            own_algorithm,
        ],
        "Problems, problem.name": [*((name, line) for name, (_, line) in PROBLEMS.items()), own],
        "Data sets, data.name": [*DATASETS.items(), files],
        "Partitions, data.partition": [(name, line + _takes(name)) for name, line in PARTITIONS.items()],
        "Engines, --engine": list(ENGINES.items()),
        "Configs, fedbilevel run NAME": list(packaged_configs().items()),
    }
    for title, rows in sections.items():
        say(console, title, "bold")
        print_table(console, (), rows, words=2)
        say(console, "")
    say(console, "The options of an algorithm: fedbilevel list ALGORITHM")


def _takes(partition: str) -> str:
    takes = ", ".join(f"{key} = {value}" for key, value in partition_parameters(partition).items())
    return f" ({takes})" if takes else ""


def print_options(console: Console, name: str) -> None:
    """Print an algorithm's options with default, what is allowed, and meaning. Raises BadInput for an unknown name."""
    entry = find(name, "ALGORITHM")
    schema = entry.options.model_json_schema()
    rows = []
    for option, field in schema["properties"].items():
        default = field.get("default")
        shown = "-" if default is None else json.dumps(default)
        rows.append((option, shown, meaning(field), described(field, schema)))
    say(console, f"{name}: {entry.summary}", "bold")
    say(console, f"{entry.source}\n\nOptions, [options] or [algorithms.{name}]")
    print_table(console, ("option", "default", "meaning", "allowed"), rows, words=4)

"""What a problem, a network, a data set, a partition, an optimiser, an engine or a config is, and what it takes."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.catalogue.algorithms import COLUMNS as OPTIONS
from experiments.catalogue.algorithms import option_rows
from experiments.catalogue.tables import Row, print_takes, shown
from experiments.terminal import say
from fedbilevel.config.build import documentation, needs_data, parameters_of
from fedbilevel.config.packaged import CONFIGS, packaged_configs
from fedbilevel.config.tables import DataTable, EngineTable
from fedbilevel.config.validation import described, meaning
from fedbilevel.data import DATASETS, PARTITIONS
from fedbilevel.data.datasets import local_files
from fedbilevel.data.partitions import partition_source, partition_table
from fedbilevel.errors import BadInput
from fedbilevel.problems import PROBLEMS
from fedbilevel.problems.networks import named
from server.grids import engines
from server.kit.optimisers import OPTIMISERS, SCHEDULES
from server.kit.options import UpperOptions

if TYPE_CHECKING:
    from rich.console import Console

PARAMETERS = ("parameter", "default", "meaning", "allowed")
KEYS = ("key", "default", "meaning", "allowed")


def print_problem(console: Console, name: str) -> None:
    """Print what it is, from the words of its file, and its parameters. Raises BadInput for a file that is none."""
    takes, text = parameters_of(name, "NAME"), documentation(name)
    about, _, _ = text.partition("Parameters\n----------\n")
    if name in PROBLEMS:
        factory, line = PROBLEMS[name]
        say(console, f"{name}: {line}", "bold")
        about = f"{inspect.getdoc(sys.modules[factory.__module__]) or ''}\n\n{about}"
    else:
        say(console, name, "bold")
    if about.strip():
        say(console, about.strip())
    if needs_data(name):
        say(console, "\nTakes the data set of the table [data].")
    told = documented(text)
    rows = [
        (key, "the run's" if key == "seed" else _default(default), told.get(key, ""), allowed)
        for key, (default, allowed) in takes.items()
    ]
    print_takes(console, f"Parameters, [problem] with name = {json.dumps(name)}", PARAMETERS, rows)


def _default(value: Any) -> str:
    return "required" if value is inspect.Parameter.empty else shown(value)


def documented(text: str) -> dict[str, str]:
    """What the section "Parameters" of a docstring says of each parameter, in one line; of several only the first."""
    lines = text.split("Parameters\n----------\n")[-1].splitlines() if "Parameters\n---" in text else []
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if not line.strip():
            break
        if not line.startswith(" "):
            names = [name.strip() for name in line.split(",")]
            continue
        found[names[0]] = f"{found.get(names[0], '')} {line.strip()}".strip()
        found |= dict.fromkeys(names[1:], f"see {names[0]}")
    return found


def print_network(console: Console, name: str) -> None:
    """Print which parameters of a problem shape it, and which problems can hold it."""
    say(console, f"{name}: {named.NETWORKS[name]}", "bold")
    allowed = {problem: parameters_of(problem).get("network") for problem in PROBLEMS}
    fit = [p for p, way in allowed.items() if way and (way[1] == "a string" or f'"{name}"' in way[1])]
    if name == "linear":  # it has no representation, which is all that this problem takes of a network
        fit.remove("hyper_representation")
    say(console, f"For problem.name = {', '.join(fit)}.")
    told = documented(inspect.getdoc(named.find) or "")
    takes = inspect.signature(named.find).parameters
    rows: list[Row] = [(key, shown(takes[key].default), told[key], _kind(key)) for key in named.TAKES[name]]
    title = f"Parameters, [problem] with network = {json.dumps(name)}; a problem may have defaults of its own"
    print_takes(console, title, PARAMETERS, rows)


def _kind(key: str) -> str:
    """What a parameter of a network may be, as problems declare it."""
    return next(way[1] for problem in PROBLEMS if (way := parameters_of(problem).get(key)))


def own_files() -> Mapping[str, Path]:
    """The data sets of a person's own; none where the folder is not there, which is said where data are asked for."""
    try:
        return local_files()
    except BadInput:
        return {}


def print_data(console: Console, name: str) -> None:
    """Print where it is from, and the keys of the table [data]."""
    say(console, f"{name}: {DATASETS.get(name, 'your own')}", "bold")
    if (file := own_files().get(name)) is not None:
        say(console, f"Read from {file}.")
    elif name != "digits":
        say(console, f"Or put {name}.npz into $FEDBILEVEL_DATA: arrays x_train, y_train, x_test, y_test.")
    print_takes(console, f"Keys, [data] with name = {json.dumps(name)}", KEYS, _keys(DataTable, skip=("name",)))
    say(console, "\nBeside them stands what the partition takes: fedbilevel list NAME of a partition.")


def _keys(model: type[DataTable] | type[EngineTable], *, skip: Sequence[str]) -> list[Row]:
    schema = model.model_json_schema()
    fields = {key: field for key, field in schema["properties"].items() if key not in skip}
    return [(key, shown(f.get("default")), meaning(f), described(f, schema)) for key, f in fields.items()]


def print_partition(console: Console, name: str) -> None:
    """Print its source and parameters."""
    say(console, f"{name}: {PARTITIONS[name]}", "bold")
    say(console, f"By {partition_source(name)}.")
    rows = [(key, shown(default), told, allowed) for key, default, told, allowed in partition_table(name)]
    print_takes(console, f"Parameters, [data] with partition = {json.dumps(name)}", PARAMETERS, rows)


def print_optimiser(console: Console, name: str) -> None:
    """Print its step and the options that it reads."""
    line, reads = OPTIMISERS[name]
    _print_step(console, name, line, "upper_optimiser", ("upper_step", *reads, "upper_weight_decay"))


def print_schedule(console: Console, name: str) -> None:
    """Print its step and the options that it reads."""
    line, reads = SCHEDULES[name]
    _print_step(console, name, line, "upper_schedule", ("upper_step", *reads))


def _print_step(console: Console, name: str, line: str, key: str, options: Sequence[str]) -> None:
    say(console, f"{name}: {line}", "bold")
    say(console, "h: the direction of x that an algorithm finds; alpha: upper_step.")
    rows = option_rows(UpperOptions.model_json_schema(), list(options))
    print_takes(console, f"Options, [options] with {key} = {json.dumps(name)}", OPTIONS, rows)


def print_engine(console: Console, name: str) -> None:
    """Print what it reads of the table [engine]."""
    say(console, f"{name}: {engines.ENGINES[name]}", "bold")
    if name == "ray":
        say(console, "--ray-address HOST:PORT joins a cluster; without it, Ray is started here for the run.")
    others = [key for key in EngineTable.model_fields if key not in engines.TAKES[name]]
    print_takes(console, f"Keys, [engine] with name = {json.dumps(name)}", KEYS, _keys(EngineTable, skip=others))


def print_config(console: Console, name: str) -> None:
    """Print a packaged config as it is."""
    say(console, f"{name}: {packaged_configs()[name]}", "bold")
    say(console, f"\n{(CONFIGS / f'{name}.toml').read_text().rstrip()}")

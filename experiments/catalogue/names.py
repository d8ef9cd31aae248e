"""The kinds of names, the list of all of them, and where one of them is looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.catalogue.algorithms import print_algorithm, print_families
from experiments.catalogue.entries import (
    own_files,
    print_config,
    print_data,
    print_engine,
    print_network,
    print_optimiser,
    print_partition,
    print_problem,
    print_schedule,
)
from experiments.terminal import print_table, say
from fedbilevel.config.packaged import packaged_configs
from fedbilevel.data import DATASETS, PARTITIONS, partition_parameters
from fedbilevel.errors import BadInput, unknown
from fedbilevel.problems import PROBLEMS
from fedbilevel.problems.networks.named import NETWORKS
from fedbilevel.user_files import names_file
from server.grids.engines import ENGINES
from server.kit.algorithm import algorithms
from server.kit.optimisers import OPTIMISERS, SCHEDULES

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Kind:
    """A kind of names: its title in the list, each name with its line, how one is shown, and a person's own kind of it.

    shown: prints what a name of this kind is and takes.
    """

    title: str
    names: Callable[[], Mapping[str, str]]
    shown: Callable[[Console, str], None]
    own: tuple[str, str] | None = None


def _lines(table: Mapping[str, tuple[str, tuple[str, ...]]]) -> Mapping[str, str]:
    return {name: line for name, (line, _) in table.items()}


def _partitions() -> Mapping[str, str]:
    """Each with what it takes, and the defaults."""
    taken = {name: ", ".join(f"{key} = {v}" for key, v in partition_parameters(name).items()) for name in PARTITIONS}
    return {name: line + f" ({taken[name]})" * bool(taken[name]) for name, line in PARTITIONS.items()}


def _data() -> Mapping[str, str]:
    """The built-in data sets, and the files of a person's own, which go before them."""
    return {
        **DATASETS,
        **{name: f"{DATASETS.get(name, 'your own')}; here {file}" for name, file in own_files().items()},
    }


ALGORITHMS = "Algorithms, [algorithms.NAME]"
KINDS = (
    Kind(
        ALGORITHMS,
        lambda: {name: entry.summary for name, entry in algorithms().items()},
        print_algorithm,
        ("path/to/file.py:name", "your own: a factory below @algorithm(...), see the README"),
    ),
    Kind(
        "Problems, problem.name",
        lambda: {name: line for name, (_, line) in PROBLEMS.items()},
        print_problem,
        ("path/to/file.py:factory", "your own: a function or class that returns a fedbilevel.Problem"),
    ),
    Kind(
        "Networks, problem.network",
        lambda: NETWORKS,
        print_network,
        ("path/to/nets.py:net", "your own: a torch.nn.Module, or a function that returns one"),
    ),
    Kind(
        "Data sets, data.name",
        _data,
        print_data,
        ("NAME", "the file NAME.npz in $FEDBILEVEL_DATA, with the arrays x_train, y_train, x_test and y_test"),
    ),
    Kind("Partitions, data.partition", _partitions, print_partition),
    Kind("Server optimisers, options.upper_optimiser", lambda: _lines(OPTIMISERS), print_optimiser),
    Kind("Schedules of the server's step, options.upper_schedule", lambda: _lines(SCHEDULES), print_schedule),
    Kind("Engines, --engine", lambda: ENGINES, print_engine),
    Kind("Configs, fedbilevel run NAME", packaged_configs, print_config),
)


def print_names(console: Console) -> None:
    """Print every name by kind; of an algorithm also its source, what of it is confirmed, and what is our reading."""
    for kind in KINDS:
        say(console, kind.title, "bold")
        rows = list(kind.names().items())
        if kind.title == ALGORITHMS:
            rows = []
            print_families(console)
            say(console, "")
        print_table(console, (), [*rows, *([kind.own] if kind.own else [])], words=2)
        say(console, "")
    say(console, "What any of these takes: fedbilevel list NAME")


def print_options(console: Console, name: str) -> None:
    """Print what the thing of this name is and takes; where several kinds have it, of each.

    `path/to/file.py:name` is an algorithm or else a problem of a person's own. Raises BadInput for an unknown name,
    with the nearest known ones.
    """
    if names_file(name):
        _print_own(console, name)
        return
    found = [kind for kind in KINDS if name in kind.names()]
    if not found:
        raise unknown("NAME", name, {*(each for kind in KINDS for each in kind.names()), "path/to/file.py:name"})
    for number, kind in enumerate(found):
        if len(found) > 1:
            say(console, "\n" * (number > 0) + f"{number + 1} of {len(found)}. {kind.title}", "bold")
        kind.shown(console, name)


def _print_own(console: Console, name: str) -> None:
    """An algorithm of a person's own file, or else a problem. Raises BadInput where it is neither."""
    try:
        print_algorithm(console, name)
    except BadInput as refused:
        try:
            print_problem(console, name)
        except BadInput:
            raise refused from None

"""`fedbilevel init`: a config to begin with, which runs as it is and says of every key what it means.

Keys, defaults and meanings are read off the models that check a config; only the values that are set stand here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from experiments.terminal import say
from fedbilevel.config.build import defaults, needs_data
from fedbilevel.config.tables import Config, DataTable, ProblemTable, RunTable, check
from fedbilevel.config.validation import described, meaning
from fedbilevel.data import partition_parameters
from fedbilevel.errors import BadInput, unknown
from fedbilevel.problems import PROBLEMS
from fedbilevel.results.files import write_whole
from server.kit.algorithm import find

if TYPE_CHECKING:
    from rich.console import Console

Table = dict[str, Any]

_OPTIONS: dict[str, Table] = {
    "bilevel": {"upper_step": 0.1, "lower_step": 0.1, "lower_rounds": 5, "neumann_terms": 5, "local_steps": 5},
    "minimax": {"upper_step": 0.1, "lower_step": 0.1},
    "tasks": {"upper_step": 0.1, "lower_step": 0.01, "local_steps": 5},
}
_ALGORITHMS: dict[str, tuple[str, ...]] = {
    "bilevel": ("aggitd", "fednest"),
    "minimax": ("fedgda", "fed-extragradient"),
    "tasks": ("maml", "fomaml"),
}
_OWN_OPTIONS: dict[str, Table] = {
    "hyper_representation": {"upper_step": 1.0, "lower_step": 0.2, "neumann_step": 0.3},
    "unlearning": {"lower_step": 0.2, "neumann_step": 0.2},
    "sinusoid": {"evaluation_tasks": 200},
    "personal_representation": {
        "upper_optimiser": "adam",
        "upper_step": 0.003,
        "lower_step": 0.1,
        "evaluation_tasks": 60,
    },
    "few_shot": {"upper_optimiser": "adam", "upper_step": 0.001, "lower_step": 0.1, "evaluation_tasks": 200},
}
_OWN_SETTINGS: dict[str, Table] = {
    "unlearning": {"forget_class": 0, "network": "linear", "epochs": 30},
    "loss_tuning": {"imbalance": 10, "largest": 60, "upper_examples": 20},
    "few_shot": {"clients": 4, "shots": 5, "network": "mlp", "hidden": [64]},
}
"""What a problem needs on the digits that it has no default for, or another so that half a minute shows a curve."""
_OWN_RUN: dict[str, Table] = {"few_shot": {"rounds": 100}, "personal_representation": {"rounds": 100}}


def run_init(path: Path, problem: str, console: Console, *, force: bool) -> None:
    """Write a config for a problem of `fedbilevel list` to `path`, and say what to type next.

    Raises BadInput for a problem that is not known, and for a file that is there already unless `force`.
    """
    if problem not in PROBLEMS:
        raise unknown("--problem", problem, PROBLEMS)
    if not force and path.exists():
        raise BadInput("PATH", str(path), "a file that is not there yet; or --force to replace it")
    write_whole(path, starter(problem).encode())
    typed = shlex.quote(str(path))
    say(console, f"{path}: {problem}, {' and '.join(_ALGORITHMS[_room(problem)])}")
    say(console, f"Next: fedbilevel run {typed}")


def starter(problem: str) -> str:
    """The text of a config for a problem of `fedbilevel list`: valid TOML, every further key in a comment."""
    settings = _settings(problem)
    check(settings)
    return "\n".join([*_lines(problem, settings)]) + "\n"


def _room(problem: str) -> str:
    """The folder of a problem's module: bilevel, minimax or tasks."""
    return PROBLEMS[problem][0].__module__.split(".")[2]


def _settings(problem: str) -> Table:
    """What is set in the config, as its tables."""
    room = _room(problem)
    algorithms = _ALGORITHMS[room]
    takes = {name for algorithm in algorithms for name in find(algorithm).options.model_fields}
    options = {**_OPTIONS[room], **_OWN_OPTIONS.get(problem, {})}
    tables: Table = {
        "title": problem,
        "run": {"seeds": [0], "rounds": 200, "evaluate_every": 10, **_OWN_RUN.get(problem, {})},
        "problem": {"name": problem, **defaults(problem), **_OWN_SETTINGS.get(problem, {})},
    }
    if needs_data(problem):
        tables["data"] = {"name": "digits", "clients": 20, "partition": "dirichlet", "alpha": 0.3}
    tables["options"] = {key: value for key, value in options.items() if key in takes}
    tables["algorithms"] = {algorithm: {} for algorithm in algorithms}
    return tables


def _lines(problem: str, settings: Table) -> Iterator[str]:
    """The lines of the file."""
    yield f"# {PROBLEMS[problem][1]}"
    yield "# A key in a comment has the value that it stands with; without one, the comment says what it takes."
    yield from _set("title", settings["title"])
    schema = Config.model_json_schema()
    yield from ("", "# how long, how often, how exact, and with whom", "[run]")
    yield from _keys(RunTable.model_json_schema(), settings["run"])
    yield from ("", f"# what it takes: fedbilevel list {problem}", "[problem]")
    yield from _keys(ProblemTable.model_json_schema(), settings["problem"])
    if "data" in settings:
        yield from ("", "# which data, and how they are spread over clients: fedbilevel list", "[data]")
        beside = partition_parameters(settings["data"]["partition"])
        yield from _keys(DataTable.model_json_schema(), settings["data"], beside)
    for name in ("systems", "engine"):
        yield from _table(name, {"$ref": schema["properties"][name]["$ref"]}, schema)
    yield from ("", "# for every algorithm below that takes them; a key in [algorithms.NAME] goes before", "[options]")
    joint: Table = {"properties": {}, "$defs": {}}
    for algorithm in settings["algorithms"]:
        own = find(algorithm).options.model_json_schema()
        joint["properties"] |= own["properties"]
        joint["$defs"] |= own.get("$defs", {})
    yield from _keys(joint, settings["options"])
    for algorithm in settings["algorithms"]:
        yield from ("", f"# {find(algorithm).summary}", f"[algorithms.{algorithm}]")


def _table(name: str, reference: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """A table of defaults alone, and the tables below it."""
    schema = root["$defs"][reference["$ref"].rsplit("/", 1)[1]]
    below = {key: field for key, field in schema["properties"].items() if "$ref" in field and _is_table(field, root)}
    yield from ("", f"[{name}]")
    plain = {key: field for key, field in schema["properties"].items() if key not in below}
    yield from _keys({"properties": plain, "$defs": root["$defs"]}, {})
    for key, field in below.items():
        yield from _table(f"{name}.{key}", field, root)


def _is_table(field: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    return "properties" in root["$defs"][field["$ref"].rsplit("/", 1)[1]]


def _keys(schema: Mapping[str, Any], given: Table, beside: Mapping[str, Any] | None = None) -> Iterator[str]:
    """The keys of a table: those that are set, then the others as comments."""
    fields = schema["properties"]
    for key, value in given.items():
        yield from _set(key, value, meaning(fields.get(key, {})))
    for key, value in (beside or {}).items():
        if key not in given and isinstance(value, int | float | str):
            yield f"# {_assigned(key, value)}"
    for key, field in fields.items():
        if key in given:
            continue
        default, told = field.get("default"), meaning(field)
        if isinstance(default, int | float | str):
            yield f"# {_assigned(key, default)}" + f"  # {told}" * bool(told)
        else:
            yield f"# {key}: " + "; ".join(filter(None, (described(field, schema), told)))


def _set(key: str, value: Any, told: str = "") -> Iterator[str]:
    yield _assigned(key, value) + f"  # {told}" * bool(told)


def _assigned(key: str, value: Any) -> str:
    """A line of TOML; lists on one line."""
    return f"{key} = {json.dumps(value)}" if isinstance(value, list) else tomli_w.dumps({key: value}).strip()

"""Configs: the tables of a TOML file, what they may hold, and how one is read, overridden, checked and written."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, field_validator, model_validator

from fedbilevel.conditions.compression import ChannelTable
from fedbilevel.conditions.privacy import PrivacyTable
from fedbilevel.conditions.rule import AggregationTable
from fedbilevel.conditions.tables import Conditions
from fedbilevel.config.cross import CONDITIONS, UNDER, expanded, under
from fedbilevel.config.packaged import or_packaged, packaged
from fedbilevel.config.tune import TuneTable
from fedbilevel.config.validation import typed, unknown_key, validated
from fedbilevel.data import partition_parameters
from fedbilevel.errors import NOTHING, BadInput
from fedbilevel.federation.systems import Systems
from fedbilevel.machine.device import Device
from fedbilevel.machine.processes import MOST_PATIENCE, MOST_THREADS, MOST_WORKERS
from fedbilevel.results.ending import Ending
from fedbilevel.results.targets import Target, accuracy
from fedbilevel.strict import MOST, Positive, PositiveInt, Strict
from fedbilevel.user_files import located, names_file

Batch = Literal["full"] | PositiveInt
LONGEST = 200
"""Characters of a title."""
DEEPEST = 20
"""Tables and lists within each other."""
Seed = Annotated[int, Field(ge=0, lt=2**62)]


class RunTable(Strict):
    """The `[run]` table: how long, how often, how exact, and with whom."""

    seeds: list[Seed] = Field([0], min_length=1, description="every algorithm runs once for each")
    iterations: int | None = Field(None, ge=1, le=MOST, description="outer iterations of every run")
    rounds: int | None = Field(
        None, ge=1, le=MOST, description="a run ends with the iteration that reaches this many rounds"
    )
    evaluate_every: int = Field(1, ge=1, le=MOST, description="rounds between evaluations, at ends of iterations")
    targets: list[Annotated[float, Field(gt=0, le=1)] | Target] | None = Field(
        None, description="for summary.csv: a test accuracy, or { column, at_most } or { column, at_least }"
    )
    stop_at: Annotated[float, Field(gt=0, le=1)] | Target | None = Field(
        None, description="as an entry of targets: a run ends with the first evaluation that meets it"
    )
    max_bytes: Positive | None = Field(
        None, description="uplink and downlink of a run, which ends with the iteration that reaches them"
    )
    max_simulated_seconds: Positive | None = Field(None, description="ends a run in the same way")
    dtype: Literal["float32", "float64"] = Field("float32", description="of x, y and all that is computed")
    device: Device = Field("auto", description="where clients compute; auto: a CUDA card where there is one")
    batch: Batch = Field("full", description="minibatch size of local steps")
    gradient_batch: Batch | None = Field(None, description="minibatch size of all other derivatives; default: batch")
    clients_per_round: int | None = Field(None, ge=1, le=MOST, description="|S|; default: all clients")
    weighting: Literal["normalised", "unbiased"] = Field(
        "normalised", description="of a sampled set S: p_i / sum_S p_j, or (m/|S|) p_i"
    )
    solution_every: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="evaluations between two at the true lower solution; 0: none; default: 1 with closed forms, 10 for "
        "small problems, else 0",
    )

    @model_validator(mode="after")
    def _one_length(self) -> RunTable:
        if self.iterations is None and self.rounds is None:
            raise BadInput("iterations", NOTHING, "an integer of at least 1; or rounds in its place")
        if self.iterations is not None and self.rounds is not None:
            raise BadInput("iterations", self.iterations, f"only one of iterations and rounds (= {self.rounds})")
        if len(set(self.seeds)) != len(self.seeds):
            raise BadInput("seeds", self.seeds, "seeds that differ from each other")
        return self

    @property
    def ending(self) -> Ending:
        """When a run is over."""
        limits = {key: getattr(self, key) for key in ("rounds", "iterations", "max_bytes", "max_simulated_seconds")}
        stop_at = self.stop_at if self.stop_at is None or isinstance(self.stop_at, Target) else accuracy(self.stop_at)
        return Ending({key: limit for key, limit in limits.items() if limit is not None}, stop_at)


class ProblemTable(Strict):
    """The `[problem]` table: a name, and whatever that problem takes."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = Field(description="a name of `fedbilevel list`, or path/to/file.py:factory")

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    @property
    def files(self) -> dict[str, str]:
        """The `path/to/file.py:name` of its name and of its parameters (a network of the user's own), by key."""
        table = {"name": self.name, **self.parameters}
        return {key: value for key, value in table.items() if isinstance(value, str) and names_file(value)}


class DataTable(Strict):
    """The `[data]` table: which data, and how they are spread over clients; the partition's parameters stand beside."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = Field("digits", description="a name of `fedbilevel list`, or the stem of an npz file")
    clients: int = Field(20, ge=1, le=MOST, description="m: they share the training examples")
    partition: str = Field("dirichlet", description="how: a name of `fedbilevel list`")
    validation: float = Field(0.5, gt=0, lt=1, description="share of a client's examples on the upper level")
    weights: Literal["size", "uniform"] | list[Annotated[float, Field(gt=0)]] = Field(
        "size", description="p_i: by number of examples, alike, or as given"
    )
    seed: Seed | None = Field(None, description="draws the partition; default: the seed of the run")

    @property
    def parameters(self) -> dict[str, Any]:
        """What the partition takes."""
        return dict(self.model_extra or {})


class EngineTable(Strict):
    """The `[engine]` table: what carries the messages, and over how many workers."""

    name: str = Field("local", description="a name of `fedbilevel list`")
    workers: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="nodes; default: 1 on local, one actor per CPU on ray"
    )
    threads: int | None = Field(
        None, ge=1, le=MOST_THREADS, description="torch's threads in each actor; default: CPUs / workers"
    )
    cpus: float = Field(1.0, gt=0, le=MOST_THREADS, description="CPUs that an actor reserves")
    gpus: float = Field(0.0, ge=0, le=MOST_THREADS, description="GPUs that an actor reserves")
    patience: float = Field(
        60.0, gt=0, le=MOST_PATIENCE, description="seconds in which an actor, or a run of --jobs, has to begin"
    )


class ConditionTables(Strict):
    """The tables of conditions by themselves."""

    systems: Systems = Systems()
    aggregation: AggregationTable = AggregationTable()
    channel: ChannelTable = ChannelTable()
    privacy: PrivacyTable | None = None


class Config(ConditionTables):
    """A whole config: every algorithm of `[algorithms]` runs once for every seed."""

    title: str = Field("fedbilevel", description="stands above tables and figures")
    run: RunTable
    problem: ProblemTable
    data: DataTable | None = None
    engine: EngineTable = EngineTable()
    options: dict[str, Any] = Field(default_factory=dict, description="for every algorithm that takes them")
    algorithms: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="a table per curve: options of its own, and `algorithm` where it has another name",
    )
    cross: dict[str, Any] = Field(
        default_factory=dict,
        exclude=True,
        description="keys of the tables of conditions with a list of values each: every algorithm runs under every "
        "combination",
    )
    tune: TuneTable | None = None

    @field_validator("title")
    @classmethod
    def _plain_title(cls, title: str) -> str:
        if not title.isprintable() or len(title) > LONGEST:
            raise ValueError(f"one line of printable characters, at most {LONGEST} of them")
        return title

    @property
    def conditions(self) -> Conditions:
        """How answers are aggregated, compressed and protected."""
        return Conditions(self.aggregation, self.channel, self.privacy)

    def of(self, label: str) -> Config:
        """The config under the conditions of one curve, as its own table says. Raises BadInput."""
        own = self.algorithms.get(label, {}).get(UNDER)
        if own is None:
            return self
        here = {name: _without_none(table.model_dump()) for name in CONDITIONS if (table := getattr(self, name))}
        key = typed(["algorithms", label, UNDER])
        changed = {name: table for name, table in under(here, own, label).items() if name in own}
        tables = validated(ConditionTables, changed, key)
        return self.model_copy(update={name: getattr(tables, name) for name in changed})

    @property
    def files(self) -> list[str]:
        """Every `path/to/file.py:name` whose code its runs execute: the problem's, its network's, the algorithms'."""
        named = [str(table.get("algorithm", label)) for label, table in self.algorithms.items()]
        return [*self.problem.files.values(), *filter(names_file, named)]


def read(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config, override keys of it, and check it.

    overrides: "table.key=value" each; the value is TOML, or else a plain string. Of `run.iterations` and `run.rounds`,
    the one that is overridden replaces the other. The title names what is overridden, but for `run`, `engine` and
    `tune`: it may describe what no longer holds. Files of your own, named in `[problem]` or as an algorithm, are
    found from here, or else from the config's folder. The name of a packaged config stands for its file.

    Raises BadInput for a file that cannot be read, for TOML that cannot be parsed, and for every key that is unknown,
    of the wrong type or out of range.
    """
    file = packaged(path) or Path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")  # an editor may have put a byte order mark in front
    except OSError as error:
        raise BadInput("config", str(file), f"a file that can be read ({error.strerror}){or_packaged(path)}") from None
    except UnicodeDecodeError:
        raise BadInput("config", str(file), "a TOML file, which is text in UTF-8") from None
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput("config", str(file), f"a TOML file, but: {error}") from None
    _override(tables, list(overrides))
    _find_files(tables, file.parent)
    return check(tables)


def _override(tables: dict[str, Any], overrides: list[str]) -> None:
    lengths = set()
    told: dict[tuple[str, ...], str] = {}
    for override in overrides:
        path, value = _assignment(override)
        table: Any = tables
        for depth, part in enumerate(path[:-1], start=1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise BadInput("--set", override, f"a key of a table, and {typed(path[:depth])} is no table")
        if table.get(path[-1], NOTHING) != value:
            told[*path] = f"{typed(path)} = {' '.join(override.partition('=')[2].split())}"
        table[path[-1]] = value
        if path in (["run", "iterations"], ["run", "rounds"]):
            lengths.add(path[1])
    if len(lengths) == 1:
        tables["run"].pop("rounds" if "iterations" in lengths else "iterations", None)
    _tell(tables, told)


def _tell(tables: dict[str, Any], told: Mapping[tuple[str, ...], str]) -> None:
    """Let the title name what was overridden, unless it is the title itself: it describes what was there before."""
    title = tables.get("title", Config.model_fields["title"].default)
    if isinstance(title, str) and ("title",) not in told:
        changes = [text for path, text in told.items() if path[0] not in ("run", "engine", "tune")]
        whole = "; ".join([title, *(text if text.isprintable() else repr(text) for text in changes)])
        tables["title"] = whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 3]}..."


def _assignment(override: str) -> tuple[list[str], Any]:
    """Return the path and the value of a line `table.key=value`."""
    key, equals, text = override.partition("=")
    try:
        parsed: Any = tomllib.loads(f"{key} = 0") if equals and "\n" not in key else None
    except tomllib.TOMLDecodeError:
        parsed = None
    path = []
    while isinstance(parsed, dict):
        part, parsed = next(iter(parsed.items()))
        path.append(part)
    if not path:
        raise BadInput("--set", override, "table.key=value, such as run.rounds=100")
    try:
        return path, tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        return path, text.strip()


def _find_files(tables: dict[str, Any], folder: Path) -> None:
    """Write the files of a user's own that are named with their whole paths."""
    problem: Any = tables.get("problem")
    for key, value in problem.items() if isinstance(problem, dict) else ():
        if isinstance(value, str) and names_file(value):
            problem[key] = located(value, folder)
    algorithms = tables.get("algorithms")
    for label, table in algorithms.items() if isinstance(algorithms, dict) else ():
        if isinstance(table, dict):
            name = table.get("algorithm", label)
            if isinstance(name, str) and names_file(name) and (found := located(name, folder)) != name:
                table["algorithm"] = found


def check(tables: Mapping[str, Any]) -> Config:
    """Check the tables of a config. Raises BadInput, naming the first key that is wrong."""
    if isinstance(tables.get("algorithms"), dict) and not tables["algorithms"]:
        raise BadInput("algorithms", {}, "at least one table [algorithms.NAME]")
    _plain(tables, [])
    config = validated(Config, expanded(tables), "")
    for label in config.algorithms:
        if not label or not label.isprintable() or len(label) > 80:
            raise BadInput("algorithms", label, "names of 1 to 80 printable characters")
    if config.data is not None:
        takes = partition_parameters(config.data.partition)
        for key, value in config.data.parameters.items():
            if key not in takes:
                raise unknown_key("data", key, value, [*DataTable.model_fields, *takes])
    return config


def _plain(value: Any, path: list[str | int]) -> None:
    """Refuse dates, the only values of TOML that no key takes and that would not travel, and bottomless tables."""
    if len(path) > DEEPEST:
        raise BadInput(typed(path[:3]), "tables within tables", f"at most {DEEPEST} levels of them")
    if isinstance(value, datetime.date | datetime.time):
        raise BadInput(typed(path), str(value), "a number, a string, true or false, a list or a table")
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _plain(inner, [*path, key])


def write(config: Config) -> str:
    """Return the config as TOML that `read` reads back as the same config."""
    return tomli_w.dumps(_without_none(config.model_dump()))


def header_of(*path: str) -> str:
    """The line that begins a table in what `write` returns.

    >>> header_of("algorithms", "my.own")
    '[algorithms."my.own"]'
    """
    nested: dict[str, Any] = {}
    for part in reversed(path):
        nested = {part: nested}
    return tomli_w.dumps(nested).strip().splitlines()[-1]


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value

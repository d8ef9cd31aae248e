"""The plan of an experiment: which algorithm runs with which options for which seed, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedbilevel.config.build import defaults, needs_data
from fedbilevel.config.cross import UNDER
from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config, DataTable, ProblemTable, header_of, write
from fedbilevel.config.validation import typed, unknown_key
from fedbilevel.data import partition_parameters
from fedbilevel.errors import BadInput
from fedbilevel.problem import Problem
from fedbilevel.results.history import SOLUTION_COLUMNS
from fedbilevel.results.targets import Target, column_of, hold_targets
from fedbilevel.tasks import is_local
from fedbilevel.user_files import source_of
from server.evaluation.solution import every
from server.kit.algorithm import Entry, find, option_names
from server.kit.options import Options
from server.running.run import Run, initial

ProblemOf = Callable[[Setup], Problem]
"""How the problem of a setup is made: by `Setup.problem` from data, or from what a server was dealt."""


@dataclass(frozen=True)
class Job:
    """One algorithm with its options, for one seed."""

    label: str
    seed: int
    entry: Entry
    options: Options
    config: Config

    @property
    def name(self) -> str:
        """What its checkpoint and its model are filed under."""
        return f"{self.label}-{self.seed}"

    def run(self) -> Run:
        """Return what the loop needs."""
        algorithm = self.entry.build(self.options)
        config = self.config.of(self.label)
        return Run(self.label, self.seed, algorithm, config.run, config.systems, config.conditions)

    def setup(self) -> Setup:
        """Return what a worker needs."""
        return Setup.of(self.config, self.label, self.seed, self.entry.client_files)

    @property
    def goal(self) -> int:
        """The rounds or iterations after which the run ends."""
        return self.config.run.rounds or self.config.run.iterations or 0

    @property
    def unit(self) -> str:
        """What the goal counts."""
        return "rounds" if self.config.run.rounds else "iterations"

    def finished(self, row: Mapping[str, Any]) -> bool:
        """Whether the run has ended with this row, as its config has it end."""
        return self.config.run.ending.over(dict(row))

    def share(self, row: Mapping[str, Any]) -> float:
        """The share of its work that is done with this row, as far as that is known beforehand."""
        return self.config.run.ending.share(dict(row))

    def cause(self, row: Mapping[str, Any]) -> str | None:
        """The key of `[run]` that has ended the run early with this row."""
        return self.config.run.ending.cause(dict(row))

    def reached(self, row: Mapping[str, Any]) -> int:
        """How much of the goal a row of its history stands for."""
        return int(row["round" if self.config.run.rounds else "iteration"])

    def key(self, option: str) -> str:
        """Where the config holds this option: in the algorithm's own table, or in `[options]`."""
        own = option in self.config.algorithms[self.label]
        return typed(["algorithms", self.label, option] if own else ["options", option])


def plan(config: Config) -> list[Job]:
    """Every job of a config, seed by seed.

    A table `[algorithms.LABEL]` runs the algorithm LABEL, or the one its key `algorithm` names. `[options]` goes to
    every algorithm that has those options; an algorithm's own table wins.

    Raises BadInput for unknown algorithms and options, options nobody reads, and values out of range.
    """
    chosen: list[tuple[str, Entry, Options]] = []
    read: set[str] = set()
    entries = {label: _entry(label, table) for label, table in config.algorithms.items()}
    known = option_names(*entries.values())
    for name in config.options:
        if name not in known:
            raise unknown_key("options", name, config.options[name], known)
    for label, table in config.algorithms.items():
        key, entry = f"algorithms.{label}", entries[label]
        own = {name: value for name, value in table.items() if name not in ("algorithm", UNDER)}
        config.of(label)
        shared = {name: value for name, value in config.options.items() if name in entry.options.model_fields}
        read |= set(shared)
        shared = _unaliased(entry, shared, own, label)
        entry.parse(own, key)
        if shared:
            entry.parse(shared, "options")
        chosen.append((label, entry, entry.parse(shared | own, key)))
    if unread := set(config.options) - read:
        name = min(unread)
        raise BadInput(f"options.{name}", config.options[name], "options that an algorithm of this config takes")
    return [Job(label, seed, entry, options, config) for seed in config.run.seeds for label, entry, options in chosen]


def _unaliased(entry: Entry, shared: dict[str, Any], own: dict[str, Any], label: str) -> dict[str, Any]:
    """The shared options without those for which an algorithm's own table has the other name.

    Raises BadInput where two names of one number disagree in the same table.
    """
    for names in entry.options.aliases:
        for table, key in ((own, f"algorithms.{label}"), (shared, "options")):
            first, second = (table.get(name) for name in names)
            if (
                first is not None
                and second is not None
                and first != second
                and (table is own or not set(names) & set(own))
            ):
                allowed = f"{first!r}, as {names[0]}: for {label} both are one number"
                hint = f"; or give {label} its own, [algorithms.{label}] {names[0]} = ..." if table is shared else ""
                raise BadInput(f"{key}.{names[1]}", second, allowed + hint)
        if set(names) & set(own):
            shared = {name: value for name, value in shared.items() if name not in names}
    return shared


def unread(config: Config) -> dict[str, list[str]]:
    """The shared options that each algorithm of a config does not have, by label; only those that lack some."""
    lacking = {
        label: [name for name in config.options if name not in _entry(label, table).options.model_fields]
        for label, table in config.algorithms.items()
    }
    return {label: names for label, names in lacking.items() if names}


def written(config: Config) -> str:
    """The resolved config as TOML, with a comment in the table of each algorithm that does not read a shared option."""
    lacking, whole = unread(config), resolved(config)
    text = write(whole)
    for label, names in lacking.items():
        header = header_of("algorithms", label)
        text = text.replace(f"\n{header}\n", f"\n{header}\n# not read by {label}: {', '.join(names)}\n", 1)
    return text


def _entry(label: str, table: Mapping[str, Any]) -> Entry:
    """The algorithm that a table runs."""
    key, named = f"algorithms.{label}", table.get("algorithm", label)
    if not isinstance(named, str):
        raise BadInput(f"{key}.algorithm", named, "the name of an algorithm")
    return find(named, f"{key}.algorithm" if "algorithm" in table else key)


def resolved(config: Config) -> Config:
    """Return the same config with everything written out: options, and what problem, data and partition take."""
    problem = ProblemTable.model_validate(defaults(config.problem.name) | config.problem.model_dump())
    data = config.data
    if data is None and needs_data(problem.name):
        data = DataTable()
    if data is not None:
        data = DataTable.model_validate(partition_parameters(data.partition) | data.model_dump())
    first = config.run.seeds[0]
    tables = {
        job.label: {
            "algorithm": job.entry.name,
            **job.options.model_dump(mode="json", exclude_none=True),
            **_under(job),
        }
        for job in plan(config)
        if job.seed == first
    }
    return config.model_copy(update={"problem": problem, "data": data, "options": {}, "algorithms": tables})


def _under(job: Job) -> dict[str, Any]:
    """What the job's own table says of its conditions."""
    table = job.config.algorithms[job.label]
    return {UNDER: table[UNDER]} if UNDER in table else {}


def fingerprint(config: Config) -> str:
    """A digest of everything in a resolved config that its runs' numbers depend on, the text of user's files included.

    Left out is what a run may be taken up again with: title, targets, and the engine; and what only tuning reads.
    """
    tables = config.model_dump(mode="json", exclude={"title": True, "engine": True, "tune": True, "run": {"targets"}})
    sources = [source_of(name) for name in config.files]
    text = json.dumps([tables, sources], sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def check_problem(jobs: Iterable[Job], problem_of: ProblemOf = Setup.problem) -> None:
    """Build the problem of every seed and hold every job against it. Raises BadInput."""
    for number, job in enumerate(jobs):
        problem = problem_of(job.setup())
        if number == 0:
            _check_targets(job, problem)
        job.entry.hold(problem, f"algorithms.{job.label}")
        try:
            job.run().check(problem, job.options)
        except BadInput as error:
            table, _, option = error.key.partition(".")
            if table != "options":
                raise
            raise BadInput(job.key(option), error.value, error.allowed) from error
        _check_indices(job)


def _check_targets(job: Job, problem: Problem) -> None:
    """Hold the targets against what is measured; of a local lower level, its methods tell. Raises BadInput."""
    targets, start = job.config.run.targets or (), initial(problem, job.seed)
    if every(job.config.run.solution_every, problem, *start) == 0:
        for position, target in enumerate(targets):
            if isinstance(target, Target) and target.column in SOLUTION_COLUMNS:
                allowed = "a column that is measured here, and the lower level is not solved: see run.solution_every"
                raise BadInput(f"run.targets[{position}].column", target.column, allowed)
    if targets and not is_local(problem):
        with torch.no_grad():
            names = problem.evaluate(*start)
        hold_targets(targets, ["upper_loss", "lower_loss", *map(column_of, names)])


def _check_indices(job: Job) -> None:
    """What an algorithm would say of its random indices in the middle of a run. Raises BadInput."""
    options: Any = job.options
    if getattr(options, "estimator", "sum") != "sample":
        return
    N = getattr(options, "N", None) or options.neumann_terms
    if N < 1:
        allowed = 'an integer of at least 1 with estimator = "sample"'
        raise BadInput(job.key("neumann_terms"), N, allowed)
    for position, index in enumerate(getattr(options, "indices", None) or ()):
        if index >= N:
            raise BadInput(f"{job.key('indices')}[{position}]", index, f"an integer from 0 to {N - 1}")

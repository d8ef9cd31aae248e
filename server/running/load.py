"""A finished run directory, from Python: what it found, and the problem it was found on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedbilevel.config.setup import Setup
from fedbilevel.config.tables import Config, read
from fedbilevel.errors import BadInput, unknown
from fedbilevel.problem import Problem
from fedbilevel.report import RunDirectory
from fedbilevel.results.history import Row
from fedbilevel.results.models import Model, read_models
from server.running.plan import fingerprint


@dataclass(frozen=True)
class Loaded(Mapping[tuple[str, int], Model]):
    """The models of a run directory by (label, seed), its config, its history, and its problem.

    >>> loaded = load("runs/demo")                        # doctest: +SKIP
    >>> model = loaded["aggitd", 0]                       # doctest: +SKIP
    >>> loaded.problem(seed=0).evaluate(model.x, model.y)  # doctest: +SKIP
    """

    config: Config
    history: list[Row]
    models: Mapping[tuple[str, int], Model]

    def __getitem__(self, run: tuple[str, int]) -> Model:
        if run not in self.models:
            names = {f"({label!r}, {seed})" for label, seed in self.models}
            raise KeyError(unknown("run", str(run), names).allowed)
        return self.models[run]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def problem(self, seed: int | None = None) -> Problem:
        """Build the problem of a seed (default: the first) again; a user's own file is run. Raises BadInput."""
        chosen = self.config.run.seeds[0] if seed is None else seed
        if chosen not in self.config.run.seeds:
            raise unknown("seed", str(chosen), [str(each) for each in self.config.run.seeds])
        return Setup.of(self.config, "load", chosen).problem()


def load(run_directory: str | Path) -> Loaded:
    """Read a run directory: config, history and the final x and y of every run that is done.

    Raises BadInput for a folder that is none, a damaged file, and a model of another config than the one beside it.
    """
    directory = RunDirectory.open(run_directory)
    config = read(directory.config_path)
    expected, found = fingerprint(config), {}
    for model in read_models(directory.path):
        if model.fingerprint != expected:
            allowed = "models of config.toml as it is now; it, or a file that it names, has changed since"
            raise BadInput(str(directory.path), f"a model of {model.algorithm}, seed {model.seed}", allowed)
        found[model.algorithm, model.seed] = model
    return Loaded(config, directory.read_history(), found)

"""From what the command line asks for to an experiment on its engine, or a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedbilevel.config.tables import Config
from fedbilevel.errors import BadInput, unknown
from fedbilevel.machine.device import chosen
from fedbilevel.report import RunDirectory
from server.grids.engines import ENGINES
from server.running.experiment import Experiment, Observer, engine

_TYPED = {"ray_address": "--ray-address", "jobs": "--jobs", "workers": "engine.workers", "threads": "engine.threads"}
"""What the engines' parameters are called where a person types them."""


def carried(config: Config, name: str | None, ray_address: str | None, jobs: int | None) -> Config:
    """Return the config on the engine asked for. Raises BadInput for what does not go together."""
    if name is not None:
        if name not in ENGINES:
            raise unknown("--engine", name, ENGINES)
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"name": name})})
    name = config.engine.name
    if name not in ENGINES:
        raise unknown("engine.name", name, ENGINES)
    if jobs is not None and jobs < 1:
        raise BadInput("--jobs", jobs, "an integer of at least 1")
    if jobs is not None and name != "local":
        raise BadInput("--jobs", jobs, f"the engine local, of which each job is one; not with the engine {name}")
    if ray_address is not None and jobs is None and name == "local":
        raise BadInput("--ray-address", ray_address, "a cluster for --engine ray or for --jobs N")
    if name == "local" and ray_address is None:
        chosen(config.run.device)
    return config


@contextmanager
def launched(
    config: Config, directory: RunDirectory, ray_address: str | None, jobs: int | None
) -> Iterator[Experiment]:
    """Have the experiment while this lasts: its jobs side by side, or one after another on its engine.

    Raises BadInput for an address where no Ray answers, RunFailed for a Ray without room.
    """
    with as_typed(), _launched(config, directory, ray_address, jobs) as experiment:
        yield experiment


@contextmanager
def as_typed() -> Iterator[None]:
    """Let BadInput name what a person typed, while this lasts."""
    try:
        yield
    except BadInput as error:
        raise BadInput(_TYPED.get(error.key, error.key), error.value, error.allowed) from error


@contextmanager
def _launched(
    config: Config, directory: RunDirectory, ray_address: str | None, jobs: int | None
) -> Iterator[Experiment]:
    if jobs is not None and (jobs > 1 or ray_address is not None):
        from server.running.sweep import Sweep  # the import of ray takes as long as that of torch

        yield Sweep(config, directory, Observer(), jobs=jobs, ray_address=ray_address)
        return
    with engine(config.engine.name, ray_address=ray_address, **config.engine.model_dump(exclude={"name"})) as connect:
        yield Experiment(config, directory, connect, Observer())

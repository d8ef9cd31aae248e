"""The loggers that a person asks for: found before anything is written, fed while runs go on."""

from __future__ import annotations

import importlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from experiments.live.backend import About, Backend, State, Stream, values
from fedbilevel.errors import BadInput, said
from fedbilevel.results.files import write_whole
from fedbilevel.results.history import Row
from server.running.experiment import Experiment, Observer
from server.running.plan import Job

LOGGERS: Mapping[str, str] = {
    "tensorboard": "experiments.live.tensorboard:TensorBoard",
    "wandb": "experiments.live.wandb:WandB",
    "mlflow": "experiments.live.mlflow:MLflow",
}
"""By the name of the option and of the extra."""
MARK = ".loggers.json"
"""Holds what tells a run directory from all others, where several of them log to one place."""


def loggers(names: Iterable[str]) -> dict[str, Backend]:
    """The loggers of these names. Raises BadInput for one that is not installed, or cannot be used as it is set up."""
    found: dict[str, Backend] = {}
    for name in names:
        module, _, backend = LOGGERS[name].partition(":")
        try:
            found[name] = getattr(importlib.import_module(module), backend)()
        except ImportError as error:
            why = "is not installed"
            if not isinstance(error, ModuleNotFoundError):
                why = f"cannot be imported: {' '.join(str(error).split())}"
            raise BadInput(f"--{name}", f"{name}, which {why}", f'after: pip install "fedbilevel[{name}]"') from error
    return found


class Live(Observer):
    """Gives every row of an experiment to its loggers, one stream per run and logger; leaving it ends them all.

    A run that goes on goes on in the same stream: what the logger lacks of the rows so far is sent with the next, and a
    row that it has is not sent again. A logger that fails is told of once, by `say`, and gets nothing more; the runs go
    on, and a later session sends what it lacks of runs that were not finished. A logger may take its time over a row,
    and the runs wait for it.
    """

    def __init__(self, experiment: Experiment, backends: Mapping[str, Backend], say: Callable[[str], None]) -> None:
        self._experiment, self._say = experiment, say
        self._backends = dict(backends)
        self._streams: dict[tuple[str, str, int], Stream] = {}

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name, label, seed in list(self._streams):
            self._end(name, label, seed, "interrupted")
        for name, backend in list(self._backends.items()):
            try:
                backend.close()
            except Exception as failed:
                self._off(name, failed)

    def row(self, job: Job, row: Row) -> None:
        """An evaluation is done."""
        for name in list(self._backends):
            try:
                self._send(name, job, row)
            except Exception as error:  # a logger of any kind, over any network
                self._off(name, error)

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job is done, or failed."""
        for name in list(self._backends):
            self._end(name, job.label, job.seed, "failed" if error else "finished")

    def _send(self, name: str, job: Job, row: Row) -> None:
        key, rows = (name, job.label, job.seed), [row]
        if key not in self._streams:
            about = About(job, self._experiment.directory.path, _mark(self._experiment.directory.path))
            self._streams[key] = self._backends[name].begin(about)
            rows = list(self._experiment.rows[job.label, job.seed])
        stream = self._streams[key]
        for each in rows:
            round = int(str(each["round"]))
            if round > stream.held:
                stream.write(round, values(each))
                stream.held = round

    def _end(self, name: str, label: str, seed: int, state: State) -> None:
        stream = self._streams.pop((name, label, seed), None)
        if stream is None:
            return
        try:
            stream.end(state)
        except Exception as error:
            self._off(name, error)

    def _off(self, name: str, error: Exception) -> None:
        if self._backends.pop(name, None) is None:
            return
        for key in [key for key in self._streams if key[0] == name]:
            self._end(*key, "interrupted")
        self._say(f"--{name} has failed and gets no more rows; the runs go on: {' '.join(said(error).split())}")


def _mark(folder: Path) -> str:
    """What tells this run directory from all others, made when it is first needed."""
    path = folder / MARK
    if not path.is_file():
        write_whole(path, json.dumps({"mark": secrets.token_hex(5)}).encode())
    return str(json.loads(path.read_text())["mark"])

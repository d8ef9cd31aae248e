"""MLflow: a run per algorithm and seed, at MLFLOW_TRACKING_URI or in a SQLite file below DIR/mlflow."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from experiments.live.backend import About, Backend, State, Stream

URI = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow/mlflow.db"
TAG = "fedbilevel.id"
_STATUS: Mapping[State, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_LONGEST = 500  # characters of a parameter


class MLflow(Backend):
    """Metrics by column, the round as the step; parameters are the run's options; the experiment is the title."""

    def __init__(self) -> None:
        self._client: MlflowClient | None = None

    def begin(self, about: About) -> Stream:
        """Begin a run, or go on with the one that carries this run's tag."""
        client = self._client = self._client or _client(about.directory)
        title = about.job.config.title
        found = client.get_experiment_by_name(title)
        if found is None:
            # without a server, what a person adds to the runs lies beside the database
            place = None if os.environ.get(URI) else (about.directory / "mlflow" / "artifacts").absolute().as_uri()
            experiment = client.create_experiment(title, artifact_location=place)
        else:
            experiment = found.experiment_id
        runs = client.search_runs([experiment], f"tags.`{TAG}` = '{about.id}'")
        return _Metrics(client, runs[0].info.run_id if runs else _created(client, experiment, about), known=bool(runs))


def _client(directory: Path) -> MlflowClient:
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = os.environ.get(URI)
    if not uri:
        (directory / DATABASE).parent.mkdir(exist_ok=True)
        uri = f"sqlite:///{(directory / DATABASE).absolute()}"
    return MlflowClient(tracking_uri=uri)


def _created(client: MlflowClient, experiment: str, about: About) -> str:
    run = client.create_run(experiment, run_name=about.name, tags={TAG: about.id}).info.run_id
    params = [Param(_key(key), str(value)[:_LONGEST]) for key, value in about.config.items()]
    client.log_batch(run, params=params)
    return str(run)


def _key(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)


class _Metrics(Stream):
    def __init__(self, client: MlflowClient, run: str, *, known: bool) -> None:
        self._client, self._run = client, run
        if known:
            self.held = max((metric.step for metric in client.get_metric_history(run, "round")), default=-1)
            client.update_run(run, status="RUNNING")

    def write(self, round: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(_key(column), value, now, round) for column, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, state: State) -> None:
        self._client.set_terminated(self._run, _STATUS[state])

"""What tests of the server share: one Ray cluster, and histories to hold others against."""

from __future__ import annotations

import gc
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedbilevel.config.tables import Config, check
from fedbilevel.report import RunDirectory
from server.running.experiment import Experiment, Observer, local
from tests.histories import PARTIAL
from tests.processes.app_runs import PARTIAL as PARTIAL_TEXT
from tests.processes.app_runs import run_locally, write_text
from tests.processes.identity import identity_kept

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with identity_kept():
        yield


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Let Ray in this process have these variables in its environment while this lasts."""
    from server.grids.cluster.credentials import read_again

    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            read_again()
            yield
    finally:
        read_again()


@pytest.fixture(scope="session")
def machines() -> Iterator[tuple[Cluster, dict[str, str]]]:
    """A Ray cluster of two machines on this one: a head with one CPU, and one with two; and the user's variables."""
    from ray.cluster_utils import Cluster

    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # a machine that dies is missed within a second, not within many
        "RAY_health_check_initial_delay_ms": "500",
        "RAY_health_check_period_ms": "200",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "FEDBILEVEL_TEST": uuid.uuid4().hex,
    }
    with variables(environment):
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=2)
    try:
        yield made, environment
    finally:
        made.shutdown()
        gc.collect()


@pytest.fixture(scope="module")
def cluster(machines: tuple[Cluster, dict[str, str]]) -> Iterator[Cluster]:
    """The cluster, which this process has joined; whoever asks for it leaves it with three CPUs on two machines."""
    from server.grids.cluster.connection import connected

    made, environment = machines
    with variables(environment), connected(made.address):
        yield made


@pytest.fixture(scope="session")
def partial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[dict[str, Any]]]:
    """A config and its history on the engine local."""
    config = check(PARTIAL)
    experiment = Experiment(config, RunDirectory.create(tmp_path_factory.mktemp("partial") / "out"), local, Observer())
    assert experiment.run() == []
    return config, experiment.history()


@pytest.fixture(scope="session")
def partial_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config file and its run directory on the engine local."""
    folder = tmp_path_factory.mktemp("partial_run")
    config = write_text(folder / "partial.toml", PARTIAL_TEXT)
    return config, run_locally(config, folder / "local")

# Names that are read off the files' text, against those that the modules have.

from __future__ import annotations

import inspect

import pytest

from experiments.catalogue.names import KINDS
from experiments.completion import names, values
from experiments.reading.report import FORMATS
from fedbilevel.config.tables import DataTable, EngineTable, RunTable
from fedbilevel.config.tune import TuneTable
from fedbilevel.data import PARTITIONS, partition_parameters
from fedbilevel.federation.systems import Network, Systems
from fedbilevel.figures.curves import X_AXES
from fedbilevel.problems import PROBLEMS
from fedbilevel.results.history import COLUMNS
from server.kit.algorithm import algorithms, option_names


def test_every_name_of_the_list_is_completed(monkeypatch):
    monkeypatch.delenv("FEDBILEVEL_DATA", raising=False)
    assert {name for name, _ in values.listed("")} == {name for kind in KINDS for name in kind.names()}
    assert dict(values.listed("sinus")) == {"sinusoid": "problem and config"}
    assert names.algorithms() == sorted(algorithms())


def test_every_key_of_a_table_and_every_option_is_completed():
    models = {"run": RunTable, "data": DataTable, "systems": Systems, "systems.network": Network}
    models |= {"engine": EngineTable, "tune": TuneTable}
    assert {table: names.keys(table) for table in names.MODELS} == {t: list(m.model_fields) for t, m in models.items()}
    assert set(names.options()) == option_names()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_parameters_of_a_problem_are_those_of_its_factory(problem):
    takes = inspect.signature(PROBLEMS[problem][0]).parameters
    assert names.parameters(problem) == [key for key in takes if key not in ("data", "dtype")]


def test_the_other_tables_too():
    assert all(names.partition_parameters(name) == list(partition_parameters(name)) for name in PARTITIONS)
    assert [name for name, _ in values.axes("")] == list(X_AXES)
    assert [name for name, _ in values.formats("")] == list(FORMATS)
    assert names.listed("fedbilevel/results/history.py", "COLUMNS") == list(COLUMNS)
    assert names.parameters("none") == names.partition_parameters("none") == []

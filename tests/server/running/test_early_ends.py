"""Runs that a target, a budget or an observer ends: prefixes of whole runs, whatever carries and interrupts them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clients.app
import server.running.experiment
from fedbilevel import BadInput, simulate
from fedbilevel.config.tables import EngineTable, check, write
from fedbilevel.report import RunDirectory
from fedbilevel.results.history import Row
from fedbilevel.results.targets import Target
from server.grids.local import LocalGrid
from server.running.checkpoints import Checkpoint
from server.running.experiment import Experiment, Observer, Record, engine, local
from server.running.plan import Job, plan
from server.running.run import run_one
from tests.histories import PARTIAL, assert_same, without_wall_seconds
from tests.processes.app_runs import assert_same_history, run_app, write_text

OPTIONS: dict[str, Any] = {"upper_step": 0.2, "lower_step": 0.2, "lower_rounds": 2, "dtype": "float64"}
TABLES: dict[str, Any] = {
    **PARTIAL,
    "run": {**PARTIAL["run"], "iterations": 12},
    "algorithms": {"aggitd": {}, "f2sa": {}},
}


@pytest.fixture(scope="module")
def whole() -> list[Row]:
    """A run of the quadratic problem that no end but its iterations ends."""
    return simulate("quadratic", "aggitd", iterations=12, **OPTIONS).history


def test_a_target_ends_a_run_at_the_first_evaluation_that_meets_it(whole: list[Row]) -> None:
    losses = [float(str(row["upper_loss"])) for row in whole]
    first = 5
    bound = losses[first]
    assert all(loss > bound for loss in losses[:first])
    for stop_at in ({"column": "upper_loss", "at_most": bound}, Target(column="upper_loss", at_most=bound)):
        ended = simulate("quadratic", "aggitd", iterations=12, stop_at=stop_at, **OPTIONS)
        assert without_wall_seconds(ended.history) == without_wall_seconds(whole[: first + 1])
    at_start = simulate(
        "quadratic", "aggitd", iterations=12, stop_at=Target(column="upper_loss", at_most=1e9), **OPTIONS
    )
    assert without_wall_seconds(at_start.history) == without_wall_seconds(whole[:1])


def test_a_target_is_looked_at_where_a_run_is_evaluated(whole: list[Row]) -> None:
    """An evaluation every three iterations: the one after 6 is the first at which the loss after 5 is met."""
    bound = float(str(whole[5]["upper_loss"]))
    per = int(str(whole[1]["round"]))
    stop = Target(column="upper_loss", at_most=bound)
    ended = simulate("quadratic", "aggitd", iterations=12, evaluate_every=3 * per, stop_at=stop, **OPTIONS)
    assert [row["iteration"] for row in ended.history] == [0, 3, 6]


def test_the_last_row_of_a_run_that_a_target_ends_is_judged_at_the_lower_solution() -> None:
    whole = simulate("quadratic", "aggitd", iterations=12, solution_every=1, **OPTIONS).history
    stop = Target(column="upper_loss", at_most=float(str(whole[5]["upper_loss"])))
    ended = simulate("quadratic", "aggitd", iterations=12, solution_every=100, stop_at=stop, **OPTIONS).history
    assert [row["iteration"] for row in ended if row["value"] is not None] == [0, 5]
    assert ended[-1]["value"] == pytest.approx(whole[5]["value"], rel=1e-9)


@pytest.mark.parametrize(
    ("columns", "key"),
    [(("uplink_bytes", "downlink_bytes"), "max_bytes"), (("simulated_seconds",), "max_simulated_seconds")],
)
def test_a_budget_ends_a_run_with_the_iteration_that_reaches_it(
    whole: list[Row], columns: tuple[str, ...], key: str
) -> None:
    """The very amount spent after four iterations ends it there, a little more an iteration later; both evaluate."""
    spent = [sum(float(str(row[column])) for column in columns) for row in whole]
    for budget, iterations in ((spent[4], 4), (spent[4] * 1.001, 5), (spent[4] * 0.999, 4)):
        ended = simulate("quadratic", "aggitd", iterations=12, evaluate_every=10**6, **{key: budget}, **OPTIONS)
        assert [row["iteration"] for row in ended.history] == [0, iterations]
        assert ended.history[-1][columns[0]] == whole[iterations][columns[0]]
        assert ended.communication["rounds"] == whole[iterations]["round"]


def test_an_observer_that_returns_true_ends_the_run_with_that_row(whole: list[Row]) -> None:
    seen: list[Row] = []

    def observe(row: Row) -> object:
        seen.append(row)
        return True if row["iteration"] == 3 else "goes on"

    ended = simulate("quadratic", "aggitd", iterations=12, observe=observe, **OPTIONS)
    assert without_wall_seconds(ended.history) == without_wall_seconds(whole[:4])
    assert seen == ended.history


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stop_at": 0.5}, r"^stop_at: got 0.5; allowed: a column that is measured here: .*no test_accuracy"),
        (
            {"stop_at": {"column": "metric_distanse", "at_most": 1}},
            r"^stop_at.column: .*did you mean 'metric_distance'",
        ),
        ({"stop_at": {"column": "uper_loss", "at_most": 1}}, r"^stop_at.column: .*did you mean 'upper_loss'"),
        ({"stop_at": {"column": "upper_loss"}}, r"stop_at.at_most: "),
        ({"stop_at": {"column": "value", "at_most": 1}, "solution_every": 0}, r"^stop_at.column: .*solution_every"),
        ({"max_bytes": -1}, "max_bytes: got -1; allowed: a number above 0"),
        ({"max_bytes": 0}, "max_bytes: got 0; allowed: a number above 0"),
        ({"max_simulated_seconds": float("nan")}, "max_simulated_seconds: got nan; allowed: a"),
    ],
)
def test_bad_ends_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        simulate("quadratic", "aggitd", iterations=2, **given)
    assert "\n" not in str(error.value)


def test_of_a_local_lower_level_a_column_that_never_comes_is_told_after_a_step() -> None:
    stop = Target(column="metric_nothing", at_least=1.0)
    with pytest.raises(
        BadInput, match=r"^stop_at.column: got 'metric_nothing'; allowed: a column that is measured here"
    ):
        simulate("quadratic_tasks", "maml", iterations=5, stop_at=stop)


# ---- experiments ----


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Tables with a target and a budget of which each ends a run before its iterations, and what comes of them."""
    folder = tmp_path_factory.mktemp("early")
    plain = Experiment(check(TABLES), RunDirectory.create(folder / "plain"), local, Observer())
    assert plain.run() == []
    aggitd, f2sa = plain.rows["aggitd", 3], plain.rows["f2sa", 3]
    met = 1.000001 * min(float(str(row["upper_loss"])) for row in aggitd[:6])  # nodes sum in another order
    spent = [sum(int(str(row[way])) for way in ("uplink_bytes", "downlink_bytes")) for row in f2sa]
    run = TABLES["run"] | {"stop_at": {"column": "upper_loss", "at_most": met}, "max_bytes": spent[9]}
    tables = {**TABLES, "run": run}
    ended = Experiment(check(tables), RunDirectory.create(folder / "early"), local, Observer())
    assert ended.run() == []
    for run_name, rows in ended.rows.items():
        every = plain.rows[run_name]
        total = [sum(int(str(row[way])) for way in ("uplink_bytes", "downlink_bytes")) for row in every]
        last = next(n for n, row in enumerate(every) if float(str(row["upper_loss"])) <= met or total[n] >= spent[9])
        assert without_wall_seconds(rows) == without_wall_seconds(every[: last + 1])
    assert {len(rows) for rows in ended.rows.values()} != {13}
    return tables, folder / "early"


def test_a_run_that_ended_early_is_finished(early: tuple[dict[str, Any], Path]) -> None:
    tables, folder = early
    again = Experiment(check(tables), RunDirectory(folder), local, Observer())
    assert len(again.pending()) == 4
    again.restore()
    assert again.pending() == []
    assert len(list((folder / "models").iterdir())) == 4


class Stop(Observer):
    """Interrupts when a run has made so many iterations in all."""

    def __init__(self, after: int) -> None:
        self.left = after

    def stepped(self, job: Job, iteration: int, rounds: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 4, 9])
def test_an_interrupted_run_goes_on_to_the_same_early_end(
    early: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    tables, folder = early
    monkeypatch.setattr(server.running.experiment, "WRITE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        Experiment(check(tables), RunDirectory.create(tmp_path / "out"), local, Stop(after)).run()
    again = Experiment(check(tables), RunDirectory(tmp_path / "out"), local, Observer())
    again.restore()
    assert again.pending()
    assert again.run() == []
    expected = RunDirectory(folder).read_history()
    assert without_wall_seconds(again.history()) == without_wall_seconds(expected)


def test_a_record_knows_when_all_has_been_told(early: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """After the checkpoint of the last row, not before: then a process that dies need not begin again."""
    experiment = Experiment(check(early[0]), RunDirectory.create(tmp_path / "out"), local, Observer())
    job = experiment.jobs[1]
    setup, record, told = job.setup(), Record(experiment, job), []

    def keep(checkpoint: Checkpoint) -> None:
        told.append(record.over)
        record.keep(checkpoint)
        told.append(record.over)

    run_one(job.run(), setup.problem(), local(setup, setup.problem()), observe=record.row, keep=keep)
    assert told == [False] * (len(told) - 1) + [True]
    assert len(told) > 2


@pytest.mark.slow
def test_a_process_that_dies_when_all_is_told_does_not_begin_again(early: tuple[dict[str, Any], Path]) -> None:
    import ray

    from server.running.sweep import Pool, Running

    class Dead(Running):
        told = True

        @property
        def all_told(self) -> bool:
            return self.told

        def rewind(self) -> None:
            happened.append("rewound")

        def ended(self, error: Exception | None) -> None:
            happened.append("ended" if error is None else "failed")

    def died() -> Iterator[None]:
        raise ray.exceptions.RayError
        yield

    happened: list[str] = []
    pool, dead = Pool(1, 1, EngineTable()), Dead(plan(check(early[0]))[0])
    pool._begin = lambda task, running: happened.append("begun")  # type: ignore[method-assign]
    pool._hear(None, died(), dead)
    assert happened == ["ended"]
    dead.told = False
    pool._hear(None, died(), dead)
    assert happened == ["ended", "rewound", "begun"]


def test_it_ends_early_over_flower_nodes_too(early: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    tables, folder = early
    config = write_text(tmp_path / "early.toml", write(check(tables)))
    run_app(LocalGrid(clients.app.app, 3), config=str(config), out=str(tmp_path / "out"))
    assert_same_history(tmp_path / "out", folder, 1e-12)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_ends_early_on_ray_and_side_by_side_too(
    early: tuple[dict[str, Any], Path], cluster: object, tmp_path: Path
) -> None:
    from server.running.sweep import Sweep

    tables, folder = early
    expected = RunDirectory(folder).read_history()
    sweep = Sweep(check(tables), RunDirectory.create(tmp_path / "sweep"), Observer(), jobs=2)
    assert sweep.run() == []
    assert_same(sweep.directory.read_history(), expected)
    with engine("ray", workers=2, threads=1) as connect:
        over_ray = Experiment(check(tables), RunDirectory.create(tmp_path / "ray"), connect, Observer())
        assert over_ray.run() == []
    assert_same(over_ray.history(), expected)

# Live loggers hold what history.csv holds, read back from their own files; they resume, fail and are missing politely.

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path

import pytest

import experiments.live.loggers
from experiments.cli import main
from experiments.live.backend import Backend, Stream
from experiments.runs.progress import Lines
from tests.experiments.live.stores import STORES
from tests.processes.console import QUADRATIC, config, process, refused, wait_for

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what the loggers import
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LOGGERS = ["tensorboard", "wandb", "mlflow"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=LOGGERS)
def logger(request):
    pytest.importorskip(request.param, reason=f'needs pip install "fedbilevel[{request.param}]"')
    return request.param


def expected(out):
    """Every number of history.csv but the seeds, by run and column: (round, value)."""
    found = {}
    with open(Path(out) / "history.csv", newline="") as file:
        for row in csv.DictReader(file):
            run = found.setdefault(f"{row['algorithm']}-{row['seed']}", {})
            for column in row.keys() - {"algorithm", "seed"}:
                if row[column]:
                    run.setdefault(column, []).append((int(row["round"]), float(row[column])))
    return found


def assert_logged(logger, out, but=()):
    """The logger holds what the history does; `but` these columns, of which the rounds are compared alone."""
    found, wanted = STORES[logger](Path(out)), expected(out)
    assert found.keys() == wanted.keys()
    for run, columns in wanted.items():
        assert found[run].keys() == columns.keys()
        for column, points in columns.items():
            assert [step for step, _ in found[run][column]] == [round for round, _ in points], (run, column)
            if column not in but:
                values = [value for _, value in found[run][column]]
                exact = {"rel": 1e-6} if logger == "tensorboard" else {"rel": 1e-15}  # event files hold float32
                assert values == pytest.approx([value for _, value in points], **exact), (run, column)


def test_every_number_of_every_row_arrives(logger):
    assert main(["run", config(), "--out", "a", f"--{logger}"]) == 0
    assert len(expected("a")) == 4
    assert_logged(logger, "a")


def interrupted(monkeypatch, after, *arguments):
    """Run until so many iterations are done in all, as Ctrl-C does."""
    stops = iter([None] * after + [KeyboardInterrupt])

    def stop(self, *arguments):
        if error := next(stops):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "stepped", stop)
        assert main(arguments) == 130


def test_a_resumed_run_goes_on_in_the_same_logger_run_without_a_row_twice(logger, monkeypatch):
    """The first session logs rows that it does not write to the history: they are made again, and not sent again."""
    text = QUADRATIC.replace("seeds = [0, 1]", "seeds = [0]").replace("iterations = 6", "iterations = 12")
    interrupted(monkeypatch, 9, "run", config(text), "--out", "a", f"--{logger}")
    before = STORES[logger](Path("a"))["aggitd-0"]["upper_loss"]
    assert len(before) > 1
    # as after a kill, which leaves what was written in the first second
    lines = Path("a/history.csv").read_text().splitlines(keepends=True)
    Path("a/history.csv").write_text("".join(lines[:2]))
    for checkpoint in Path("a/checkpoints").glob("*.pt"):
        checkpoint.unlink()
    assert main(["resume", "a", f"--{logger}"]) == 0
    assert_logged(logger, "a", but=["wall_seconds"])


def test_a_logger_that_comes_later_gets_the_rows_of_a_run_from_its_start(monkeypatch):
    pytest.importorskip("tensorboard", reason='needs pip install "fedbilevel[tensorboard]"')
    text = QUADRATIC.replace("seeds = [0, 1]", "seeds = [0]").replace("iterations = 6", "iterations = 12")
    interrupted(monkeypatch, 9, "run", config(text), "--out", "a")
    assert main(["resume", "a", "--tensorboard"]) == 0
    assert_logged("tensorboard", "a")


@pytest.mark.slow
def test_after_a_kill_no_row_is_missing_or_there_twice(logger):
    text = QUADRATIC.replace("seeds = [0, 1]", "seeds = [0]").replace("iterations = 6", "iterations = 1200")
    text = text.replace("evaluate_every = 7", "evaluate_every = 140").replace(
        "[options]", "[options]\nupper_step = 0.001"
    )
    at_once = "import server.running.experiment as run\nrun.WRITE_SECONDS = 0.0"
    killed = process("run", config(text.partition("[algorithms.mine]")[0]), "--out", "a", f"--{logger}", first=at_once)
    wait_for(lambda: Path("a/checkpoints/aggitd-0.pt").is_file())
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert main(["resume", "a", f"--{logger}"]) == 0
    assert_logged(logger, "a", but=["wall_seconds"])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_rows_of_runs_side_by_side_arrive_from_one_process():
    pytest.importorskip("tensorboard", reason='needs pip install "fedbilevel[tensorboard]"')
    ran = process("run", config(), "--out", "a", "--tensorboard", "--jobs", "2")
    ran.communicate(timeout=110)
    assert ran.returncode == 0
    assert_logged("tensorboard", "a")


class Kept(Stream):
    """Takes rows, and fails at the one that it is told."""

    def __init__(self, rows, fails_at):
        self.rows, self.fails_at = rows, fails_at

    def write(self, round, values):
        if len(self.rows) == self.fails_at:
            raise OSError(28, "No space left\non device")
        self.rows.append((round, values["upper_loss"]))

    def end(self, state):
        self.rows.append(state)


class Keeper(Backend):
    def __init__(self, fails_at=-1):
        self.rows, self.fails_at = [], fails_at

    def begin(self, about):
        return Kept(self.rows, self.fails_at)


def test_a_logger_that_fails_is_told_of_once_and_the_runs_and_the_others_go_on(monkeypatch, capsys):
    backends = {"wandb": Keeper(fails_at=3), "mlflow": Keeper()}
    monkeypatch.setattr(experiments.live.loggers, "loggers", lambda names: {name: backends[name] for name in names})
    assert main(["run", config(), "--out", "a", "--wandb", "--mlflow"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "--wandb" in line]
    assert said == [
        "note: --wandb has failed and gets no more rows; the runs go on: OSError: [Errno 28] No space left on device"
    ]
    runs = expected("a")
    assert backends["wandb"].rows == [*runs["aggitd-0"]["upper_loss"][:3], "interrupted"]
    whole = [row for run in runs.values() for row in [*run["upper_loss"], "finished"]]
    assert backends["mlflow"].rows == whole


def test_a_run_that_fails_ends_its_stream_so(monkeypatch):
    backend = Keeper()
    monkeypatch.setattr(experiments.live.loggers, "loggers", lambda names: dict.fromkeys(names, backend))
    overrides = ["--set", "algorithms.aggitd.lower_step=1e300", "--set", "run.seeds=[0]"]
    assert main(["run", config(), "--out", "a", "--mlflow", *overrides]) == 1
    assert [row for row in backend.rows if isinstance(row, str)] == ["failed", "finished"]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_is_refused_with_its_extra(name, monkeypatch, capsys):
    for module in [name, "torch.utils.tensorboard", f"experiments.live.{name}"]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in [m for m in sys.modules if m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    line = refused(capsys, "run", config(), "--out", "a", f"--{name}")
    got = f"'{name}, which is not installed'"
    assert line == f'fedbilevel: --{name}: got {got}; allowed: after: pip install "fedbilevel[{name}]"\n'


def test_weights_and_biases_without_a_key_is_refused(monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason='needs pip install "fedbilevel[wandb]"')
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    line = refused(capsys, "run", config(), "--out", "a", "--wandb")
    assert line == (
        "fedbilevel: --wandb: got 'no API key'; allowed: after `wandb login`, or with WANDB_MODE=offline in the "
        "environment\n"
    )

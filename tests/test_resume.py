# Runs that end early, by a person, a kill or a divergence, and going on from there.

from __future__ import annotations

import csv
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import server.running.experiment
import server.running.plan
from experiments.cli import main
from experiments.progress import Display, Lines
from tests.console import FILES, config, process, refused, rows, tree, wait_for

LONG = ["--set", "run.iterations=150", "--set", "run.seeds=[0]"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _saved_at_every_step(monkeypatch):
    monkeypatch.setattr(server.running.experiment, "WRITE_SECONDS", 0.0)


def whole(out="whole"):
    """The rows of an uninterrupted run."""
    assert main(["run", config(), "--out", out]) == 0
    return rows(out)


def summary(out):
    """A summary but for the wall clock."""
    with open(Path(out) / "summary.csv", newline="") as file:
        return [{k: v for k, v in row.items() if "wall_seconds" not in k} for row in csv.DictReader(file)]


# ---- interruptions ----


@pytest.mark.usefixtures("_saved_at_every_step")
@pytest.mark.parametrize(
    ("moment", "count"),
    [("row", 1), ("row", 2), ("row", 9), ("stepped", 1), ("stepped", 8), ("started", 3), ("ended", 1), ("ended", 4)],
)
def test_an_interruption_at_any_moment_leaves_everything_and_resume_completes_it(capsys, monkeypatch, moment, count):
    expected = whole()
    left = [count]
    original = getattr(Display, moment)

    def interrupt(self, *arguments):
        original(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Display if moment != "started" else Lines, moment, interrupt)
    status = main(["run", config(), "--out", "a"])
    assert status == 130
    said = capsys.readouterr().err
    assert said == "fedbilevel: interrupted; go on with: fedbilevel resume a\n"
    assert {path.name for path in Path("a").iterdir()} - {"checkpoints"} == FILES
    assert rows("a") == [row for row in expected if row in rows("a")]
    assert main(["resume", "a"]) == 0
    assert rows("a") == expected
    assert {path.name for path in Path("a").iterdir()} == FILES
    assert summary("a") == summary("whole")


@pytest.mark.usefixtures("_saved_at_every_step")
@pytest.mark.parametrize("count", [2, 5, 8, 13])
def test_resume_from_what_lies_on_the_disk_at_any_step_as_after_a_kill(monkeypatch, count):
    left = [count]

    def copy(self, job, iteration, rounds):
        left[0] -= 1
        if left[0] == 0:
            shutil.copytree("whole", "killed")

    monkeypatch.setattr(Lines, "stepped", copy)
    expected = whole()
    assert rows("killed") != expected
    assert main(["resume", "killed"]) == 0
    assert rows("killed") == expected


@pytest.mark.slow
def test_signals_end_a_process_and_resume_completes_it():
    path = config()
    assert main(["run", path, "--out", "whole", *LONG]) == 0
    expected = rows("whole")
    for name, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        out = Path(name.name)
        running = process("run", path, "--out", out, *LONG, stdout=subprocess.DEVNULL)
        wait_for(lambda out=out: any(out.glob("checkpoints/*.pt")))
        running.send_signal(name)
        _, said = running.communicate(timeout=60)
        assert running.returncode == status
        assert said.decode() == (
            "" if name == signal.SIGKILL else f"fedbilevel: interrupted; go on with: {resume(out)}"
        )
        assert 0 < len(rows(out)) < len(expected)
        assert main(["resume", str(out)]) == 0
        assert rows(out) == expected


def resume(out):
    return f"fedbilevel resume {out}\n"


def test_ctrl_c_before_a_run_begins_is_quiet_too(capsys, monkeypatch):
    def interrupt(jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(server.running.plan, "check_problem", interrupt)
    assert main(["run", config(), "--out", "a"]) == 130
    assert capsys.readouterr().err == "fedbilevel: interrupted\n"
    assert not Path("a").exists()


def test_a_terminal_is_left_clean_after_ctrl_c():
    controller, terminal = pty.openpty()
    running = process("run", config(), "--out", "a", *LONG, stdout=terminal, stdin=terminal)
    os.close(terminal)
    wait_for(Path("a/history.csv").is_file)
    shown = b""
    while b"150 iterations" not in shown:
        shown += os.read(controller, 65536)
    running.send_signal(signal.SIGINT)
    try:
        while part := os.read(controller, 65536):
            shown += part
    except OSError:  # the other side is closed
        pass
    os.close(controller)
    assert b"interrupted; go on with" in running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert b"aggitd, seed 0" in shown
    assert b"upper loss" in shown
    assert b"run 1 of 2" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") >= 0  # the cursor is back


# ---- failures ----


def test_a_run_that_diverges_is_named_and_the_others_finish(capsys):
    bad = ["--set", 'algorithms.bad={algorithm = "aggitd", lower_step = 50}', "--set", "run.iterations=30"]
    bad += ["--set", "run.dtype=float32"]
    assert main(["run", config(), "--out", "a", *bad]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for seed, line in enumerate(lines):
        assert line.startswith(f"fedbilevel: bad, seed {seed}, iteration ")
        assert "operation " in line
    found = rows("a")
    ends = {key: max(r["iteration"] for r in found if (r["algorithm"], r["seed"]) == key) for key in runs(found)}
    assert all(ends["mine", seed] == ends["aggitd", seed] == 30 for seed in (0, 1))
    assert 0 <= ends["bad", 0] < 30
    assert {path.name for path in Path("a").iterdir()} >= FILES
    assert main(["resume", "a"]) == 1  # it goes the same way again, and nothing is lost
    assert rows("a") == found


def runs(found):
    return {(row["algorithm"], row["seed"]) for row in found}


def test_a_finished_run_says_so_and_lacking_figures_are_drawn(capsys):
    whole("a")
    before = tree("a")
    capsys.readouterr()
    assert main(["resume", "a"]) == 0
    assert capsys.readouterr().out == "a: every run is finished\n"
    assert tree("a") == before
    Path("a/bytes_vs_upper_loss.svg").unlink()
    assert main(["resume", "a"]) == 0
    assert tree("a") == before


# ---- directories that are none, or damaged ----


def history(text):
    return lambda: Path("a/history.csv").write_text(text(Path("a/history.csv").read_text()))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda: shutil.rmtree("a"), "run directory: got 'a'"),
        (lambda: os.remove("a/history.csv"), "has no history.csv"),
        (lambda: os.remove("a/config.toml"), "has no config.toml"),
        (lambda: Path("a/config.toml").write_bytes(b"\x00\xff"), "config: got"),
        (lambda: Path("a/config.toml").write_text("[run]\niterations = 'x'"), "run.iterations"),
        (history(lambda text: text[:-9]), "allowed: a whole line; this one is cut off"),
        (history(lambda text: "garbage\n"), "line 1: got 'no column"),
        (history(lambda text: ""), "line 1: got 'an empty file'"),
        (history(lambda text: text.replace("aggitd,0,2,", "aggitd,0,x,")), "column iteration: got 'x'"),
    ],
)
@pytest.mark.usefixtures("_saved_at_every_step")
@pytest.mark.parametrize("command", ["resume", "report"])
def test_directories_that_are_none_or_damaged(capsys, monkeypatch, command, damage, said):
    interrupted(monkeypatch)
    damage()
    line = refused(capsys, command, "a")
    assert said in line


@pytest.mark.usefixtures("_saved_at_every_step")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "checkpoint: got"),
        (lambda path: path.write_bytes(b""), "checkpoint: got"),
        (lambda path: path.write_text("garbage"), "delete it to start this run over"),
        (lambda path: history(lambda text: text.replace("aggitd,0,2,", "joint,0,2,"))(), "joint, seed 0"),
        (lambda path: history(lambda text: text.replace("aggitd,0,2,", "aggitd,7,2,"))(), "aggitd, seed 7"),
        (lambda path: history(lambda text: text.replace("aggitd,0,2,", "aggitd,,2,"))(), "aggitd, seed None"),
        (lambda path: history(lambda text: text.replace("aggitd,0,2,", "aggitd,0,,"))(), "row 3: got (None,"),
        (lambda path: history(lambda text: text.replace("aggitd,0,2,", "aggitd,0,0,"))(), "row 3: got (0,"),
    ],
)
def test_what_cannot_be_resumed(capsys, monkeypatch, damage, said):
    interrupted(monkeypatch)
    damage(Path("a/checkpoints/aggitd-0.pt"))
    assert said in refused(capsys, "resume", "a")


@pytest.mark.usefixtures("_saved_at_every_step")
def test_a_run_without_its_checkpoint_or_with_lost_rows_starts_over(monkeypatch):
    expected = whole()
    interrupted(monkeypatch)
    history(lambda text: "".join(text.splitlines(keepends=True)[:2]))()
    shutil.copytree("a", "b")
    shutil.rmtree("b/checkpoints")
    for folder in ("a", "b"):
        assert main(["resume", folder]) == 0
        assert rows(folder) == expected


def interrupted(monkeypatch):
    """A run directory `a` in which the first run was interrupted."""
    with monkeypatch.context() as patch:
        stops = iter([None] * 3 + [KeyboardInterrupt])

        def stop(self, *arguments):
            if error := next(stops):
                raise error

        patch.setattr(Lines, "stepped", stop)
        assert main(["run", config(), "--out", "a"]) == 130
    assert Path("a/checkpoints/aggitd-0.pt").is_file()

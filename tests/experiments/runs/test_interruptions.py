"""A run as a process: what a signal, Ctrl-C at a terminal, or one before the run begins, leaves behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

import server.running.plan
from experiments.cli import main
from tests.processes.console import config, process, rows, wait_for

OFTEN = "import server.running.experiment as experiment; experiment.WRITE_SECONDS = 0.0"
"""What a process does first so that its first evaluation is on the disk at once."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def started():
    """Starts a process of the command line; none outlives the test."""
    running = []

    def start(*arguments, **more):
        running.append(process(*arguments, **more))
        return running[-1]

    yield start
    for each in running:
        each.kill()
        each.wait()


def long(iterations):
    """The arguments of a run that goes on for seconds."""
    return ["run", config(), "--set", f"run.iterations={iterations}", "--set", "run.seeds=[0]"]


@pytest.mark.slow
def test_signals_end_a_process_and_resume_completes_it(started):
    ends = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    running = {each: started(*long(60), "--out", each.name, first=OFTEN, stdout=subprocess.DEVNULL) for each in ends}
    left = dict(running)

    def all_are_under_way():
        for each, one in list(left.items()):
            if any(Path(each.name).glob("checkpoints/*.pt")):
                one.send_signal(each)
                del left[each]
        return not left

    wait_for(all_are_under_way)
    assert main([*long(60), "--out", "whole"]) == 0
    expected = rows("whole")
    for each, status in ends.items():
        _, said = running[each].communicate(timeout=60)
        assert running[each].returncode == status
        line = f"fedbilevel: interrupted; go on with: fedbilevel resume {each.name}\n"
        assert said.decode() == ("" if each == signal.SIGKILL else line)
        assert 0 < len(rows(each.name)) < len(expected)
        assert main(["resume", each.name]) == 0
        assert rows(each.name) == expected


def test_ctrl_c_before_a_run_begins_is_quiet_too(capsys, monkeypatch):
    def interrupt(jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(server.running.plan, "check_problem", interrupt)
    assert main(["run", config(), "--out", "a"]) == 130
    assert capsys.readouterr().err == "fedbilevel: interrupted\n"
    assert not Path("a").exists()


def test_a_terminal_is_left_clean_after_ctrl_c(started):
    controller, terminal = pty.openpty()
    running = started(*long(150), "--out", "a", stdout=terminal, stdin=terminal)
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

# What the Tab key gives in a shell, by the installed command and by the protocol that the shells speak.

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.completion import shell
from tests.processes.console import ROOT

SCRIPT = Path(sys.executable).with_name("fedbilevel")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The command is the installed one, or the same where the project is not installed."""
    binaries = SCRIPT.parent
    if not SCRIPT.exists():
        binaries = tmp_path / "bin"
        binaries.mkdir()
        (binaries / "fedbilevel").write_text(f'#!/bin/sh\nexec {sys.executable} -m fedbilevel "$@"\n')
        (binaries / "fedbilevel").chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tmp_path))


def answers(**environment):
    """What the command says where a shell asks with these variables."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fedbilevel"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not imported & {"torch", "numpy", "pydantic", "matplotlib", "ray", "flwr"}
    assert all(line.startswith("import time") for line in done.stderr.splitlines())
    assert done.returncode == 0
    return [line for line in done.stdout.splitlines() if line]


def bash(words):
    """What bash is told of the last of these words."""
    return answers(COMP_WORDS=words, COMP_CWORD=str(words.count(" ")), _FEDBILEVEL_COMPLETE="complete_bash")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fedbilevel re", ["resume", "report"]),
        ("fedbilevel run de", ["demo"]),
        ("fedbilevel run mine", ["mine.toml", "mine/deep.toml"]),
        ("fedbilevel list unl", ["unlearning"]),
        ("fedbilevel run demo --en", ["--engine"]),
        ("fedbilevel run demo --engine ", ["local", "ray"]),
        ("fedbilevel init --problem hyper_r", ["hyper_representation"]),
        ("fedbilevel run demo --set run.ro", ["run.rounds="]),
        ("fedbilevel run demo --set data.al", ["data.alpha="]),
        ("fedbilevel run demo --set problem.act", ["problem.activation="]),
        ("fedbilevel run demo --set algorithms.fednest.neumann_t", ["algorithms.fednest.neumann_terms="]),
        ("fedbilevel run --set algorithms.fednest.neumann_t", []),
        ("fedbilevel run sine.toml --set problem.cl", ["problem.clients="]),
        ("fedbilevel report old --format m", ["markdown"]),
        ("fedbilevel report old --x by", ["bytes"]),
        ("fedbilevel report old --y metric", ["metric_own"]),
        ("fedbilevel report --y test_a", ["test_accuracy"]),
        ("fedbilevel resume o", ["old"]),
        ("fedbilevel run broken.toml --set run.ro", ["run.rounds="]),
    ],
)
def test_bash_is_told(words, offered):
    Path("mine").mkdir()
    for file in ("mine.toml", "mine/deep.toml", "mine.txt"):
        Path(file).write_text("")
    Path("sine.toml").write_text('[problem]\nname = "sinusoid"\n')
    Path("broken.toml").write_bytes(b"[problem\xff")
    Path("old").mkdir()
    Path("old/history.csv").write_text("algorithm,seed,round,upper_loss,metric_own\n")
    assert bash(words) == offered


def test_zsh_and_fish_are_told_with_a_line_on_each():
    words = "fedbilevel list unl"
    zsh = answers(_TYPER_COMPLETE_ARGS=words, _FEDBILEVEL_COMPLETE="complete_zsh")
    assert zsh == ["""_arguments '*: :(("unlearning":"problem and config"))'"""]
    asked = {"_FEDBILEVEL_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": words}
    assert answers(**asked, _TYPER_COMPLETE_FISH_ACTION="get-args") == ["unlearning\tproblem and config"]
    assert answers(**asked, _TYPER_COMPLETE_FISH_ACTION="is-args") == []


def in_bash(code):
    done = subprocess.run(["bash", "--noprofile", "--norc", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


def test_bash_completes_with_the_script_that_is_shown():
    press = "COMP_WORDS=(fedbilevel run fednest_); COMP_CWORD=2; _fedbilevel_completion fedbilevel"
    shown = 'eval "$(fedbilevel --show-completion)"; complete -p fedbilevel'
    said = in_bash(f'{shown}; {press}; printf "%s\\n" "${{COMPREPLY[@]}}"')
    assert said == ["complete -o default -F _fedbilevel_completion fedbilevel", "fednest_fig2"]


def test_what_is_installed_completes_in_the_next_shell(tmp_path):
    """The line after the first keeps bash from becoming the command: the shell has to be there to be told."""
    assert "completion installed in" in in_bash("fedbilevel --install-completion; true")[0]
    press = "COMP_WORDS=(fedbilevel tun); COMP_CWORD=1; _fedbilevel_completion fedbilevel"
    assert in_bash(f'source ~/.bashrc; {press}; echo "${{COMPREPLY[@]}}"') == ["tune"]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"fedbilevel"} == {
        ".bashrc",
        "fedbilevel.sh",
    }


def test_a_tab_does_not_wait():
    """Half a second of this process's time is promised; the slowest key is the one that reads every algorithm."""
    words = "fedbilevel run demo --set options.upper"
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {"COMP_WORDS": words, "COMP_CWORD": "4", "_FEDBILEVEL_COMPLETE": "complete_bash"}
        subprocess.run(["fedbilevel"], env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_where_no_shell_can_be_told_it_is_said_in_one_line(monkeypatch, capsys, option):
    def nothing():
        raise shell.shellingham.ShellDetectionFailure

    for detected, told in ((nothing, "'no shell that can be told'"), (lambda: ("tcsh", "/bin/tcsh"), "'tcsh'")):
        monkeypatch.setattr(shell.shellingham, "detect_shell", detected)
        assert main([option]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == f"fedbilevel: {option}: got {told}; allowed: to be typed in bash, zsh, fish or PowerShell\n"


def test_a_home_that_cannot_be_written_is_said_in_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(shell.shellingham, "detect_shell", lambda: ("bash", "/bin/bash"))
    assert main(["--install-completion"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("fedbilevel: --install-completion: got ")

# The code blocks of a page, and how each kind is run.

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from experiments.cli import main
from fedbilevel.config.tables import check
from tests.datasets import skip_without_data
from tests.processes.console import ROOT, process

_FENCE = re.compile(
    r"^(?:<!-- (?P<note>not run|run with): (?P<told>[^\n]+) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    flags=re.MULTILINE | re.DOTALL,
)
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block: what a comment above it says, its language, its file's name, its text, the line it starts on."""

    note: str | None
    told: str
    language: str
    title: str | None
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = (ROOT / page).read_text()
    for each in _FENCE.finditer(text):
        line = text.count("\n", 0, each.start("text"))
        yield Block(each["note"], each["told"] or "", each["language"], each["title"], each["text"], line)


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in a folder what a reader of the page would do: save the files, run the commands and the Python.

    A block with a title is a file. A block of Python goes on from those before it; one that takes a data set which is
    not at hand skips the test. Of a block `sh` every line is a command that has to succeed; a comment `run with` above
    it makes its runs shorter, one `not run` says why it is not run. A block of TOML without a title is read, and
    checked if it is a whole config.
    """
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.title is not None:
            (folder / block.title).write_text(block.text)
        if block.language == "python" and block.title is None:
            skip_without_data(block.text)
            exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec"), names)
        elif block.language == "toml":
            tables = tomllib.loads(block.text)
            if {"run", "algorithms"} <= tables.keys():
                check(tables)
        elif block.language == "sh" and block.note != "not run":
            for line in block.text.splitlines():
                command(line, block.told, where, monkeypatch)
        else:
            assert block.language in ("python", "toml", "text", "sh"), f"{where}: a block of {block.language!r}"


def command(line: str, told: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line: `fedbilevel ...` with what is told of its command, or `export NAME=VALUE`."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["export"]:
        for each in words[1:]:
            monkeypatch.setenv(*each.split("=", 1))
        return
    assert words[:1] == ["fedbilevel"], (
        f"{where}: {line!r} is no command of ours; say above the block why it is not run"
    )
    assert not words[1].startswith("-"), f"{where}: {line!r} may change more than this folder"
    more = [each.split() for each in told.split(";") if each.split()[0] == words[1]] if told else []
    arguments = [*words[1:], *(word for extra in more for word in extra[1:])]
    if {"ray", "--jobs"} & set(arguments):  # Ray leaves sockets open in the process that has started it
        started = process(*arguments)
        said = started.communicate(timeout=240)[1].decode()
        assert started.returncode == 0, f"{where}: {line}: {said}"
    else:
        assert main(arguments) == 0, f"{where}: {line}"

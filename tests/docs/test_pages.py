# Every page does what it says: its files, commands and Python, in order, in an empty folder.

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedbilevel.config.tables import read
from server.kit.algorithm import algorithms
from tests.docs.blocks import PAGES, blocks, run_page
from tests.processes.console import ROOT

SLOW = {
    "README.md",
    "docs/guide/conditions.md",
    "docs/guide/configs.md",
    "docs/guide/deployment.md",
    "docs/guide/exactness.md",
    "docs/guide/judging.md",
    "docs/guide/run_directories.md",
    "docs/results.md",
    "docs/tutorials/few_shot.md",
    "docs/tutorials/first_comparison.md",
    "docs/tutorials/flower.md",
    "docs/tutorials/own_method.md",
    "docs/tutorials/own_problem.md",
    "docs/tutorials/ray.md",
    "docs/tutorials/tune.md",
}
"""Pages that start Ray, or take more than ten seconds."""
STARTS_RAY = re.compile(r"--jobs|engine ray|engine=\"ray|ray\.init|flwr run")
RAY = {page for page in SLOW if STARTS_RAY.search((ROOT / page).read_text())}


def marks(page: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow, *([] if page in RAY else [pytest.mark.beside])] if page in SLOW else []


@pytest.mark.parametrize("page", [pytest.param(page, marks=marks(page)) for page in PAGES])
def test_what_a_page_says_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, monkeypatch)


def test_every_block_is_found() -> None:
    for page in PAGES:
        fences = re.findall(r"^```", (ROOT / page).read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len(list(blocks(page))), page


def test_every_algorithm_has_its_line() -> None:
    page = (ROOT / "docs" / "algorithms.md").read_text()
    for name in algorithms():
        assert f"| `{name}` |" in page


def test_the_commands_name_files_that_exist() -> None:
    pages = [(ROOT / page).read_text() for page in PAGES]
    for path in {each for page in pages for each in re.findall(r"experiments/configs/\w+\.toml", page)}:
        assert read(ROOT / path)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250

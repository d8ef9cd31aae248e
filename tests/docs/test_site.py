# The site builds with every warning an error, holds what the hooks make, and fetches nothing.

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.console import ROOT


def build(out: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out


def copy(folder: Path) -> Path:
    """What the site is built from: pages of its own, and links to the rest."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, folder)
    for name in ("fedbilevel", "clients", "server", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    return folder


BROKEN = {
    "nowhere.md": "[a page](nowhere.md)",
    "#no-anchor": "[an anchor](glossary.md#no-anchor)",
    "no_figure.png": "![a figure](../experiments/figures/no_figure.png)",
    "#no-key": "[an anchor of a page that is made](reference/configuration.md#no-key)",
}


def test_links_to_nothing_end_the_build(tmp_path: Path) -> None:
    root = copy(tmp_path)
    with (root / "docs" / "results.md").open("a") as page:
        page.write("\n\n".join(["", *BROKEN.values(), ""]))
    done = build(tmp_path / "site", root)
    assert done.returncode == 1
    for each in BROKEN:
        assert each in done.stderr
    assert done.stderr.count("WARNING") == len(BROKEN)


def test_nothing_is_fetched(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"' >]+)", page.read_text())
        loads += re.findall(r"<link\b[^>]*\bhref=[\"']?([^\"' >]+)", page.read_text())
        assert loads
        assert not [each for each in loads if "//" in each], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text())


def test_equations_are_drawn_by_the_browser(site: Path) -> None:
    pages = {page.name: page.read_text() for page in site.rglob("*.html")}
    assert not [name for name, text in pages.items() if "arithmatex" in text]
    assert pages["two_loops.html"].count("<math") > 40
    for name, text in pages.items():  # a command that was not understood stays as it is
        assert not re.search(r"<m[iot]\b[^>]*>\\", text), name


def test_the_reference_has_every_key_algorithm_and_command(site: Path) -> None:
    page = (site / "reference" / "configuration.html").read_text()
    for key in ("clients_per_round", "solution_every", "alpha", "uplink_mbps", "patience", "fewest"):
        assert f"<code>{key}" in page, key
    page = (site / "reference" / "options.html").read_text()
    for name in (ROOT / "server" / "algorithms").rglob("*.py"):
        for entered in re.findall(r'^@algorithm\(\s*"([\w-]+)"', name.read_text(), flags=re.MULTILINE):
            assert f'<h2 id="{entered}">' in page, entered
    page = (site / "reference" / "command_line.html").read_text()
    for option in ("--set TABLE.KEY=VALUE", "--then-run", "--trust", "The file to write."):
        assert option in page, option


def test_docstrings_become_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    from docstrings import markdown

    text = "At y*(x), `y*`:\n\nParameters\n----------\na, b\n    Two\n    numbers.\nc\n    One.\n\n>>> 1 + 1\n2\n"
    said = "At y\\*(x), `y*`:\n\n* `a, b`: Two numbers.\n* `c`: One.\n\n```pycon\n>>> 1 + 1\n2\n```\n"
    assert markdown(text) == said

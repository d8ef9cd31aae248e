"""The project's four packages, and a file of the user's that stands in the place of one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

import fedbilevel
from fedbilevel import packages
from fedbilevel.packages import PACKAGES, see_that_they_are_ours

ROOT = Path(__file__).resolve().parents[2]


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, which comes first where it looks for modules."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )


def test_the_root_is_where_they_lie_side_by_side() -> None:
    assert ROOT == packages.ROOT
    assert {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()} >= set(PACKAGES)
    see_that_they_are_ours()


def test_problems_and_algorithms_are_found_without_what_takes_long_to_import(tmp_path: Path) -> None:
    script = (
        "import sys, fedbilevel.problems; from server.kit.algorithm import algorithms; algorithms();"
        "print([name for name in ('scipy', 'sklearn', 'matplotlib', 'ray') if name in sys.modules])"
    )
    done = python(tmp_path, "-c", script)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", ["server.py", "clients.py", "experiments.py", "server/__init__.py"])
def test_the_command_line_names_the_file_that_stands_in_the_way(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('it has run')\n")
    done = python(tmp_path, "-m", "fedbilevel", "list")
    package = name.removesuffix("/__init__.py").removesuffix(".py")
    said = f"fedbilevel: {file} stands in the place of fedbilevel's package {package}: rename it, or move it away\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_a_plain_folder_of_that_name_is_not_in_the_way(tmp_path: Path) -> None:
    for name in PACKAGES[1:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.py").write_text("")
    script = "from fedbilevel.packages import see_that_they_are_ours as see\nsee()\nimport server, clients\nsee()\n"
    done = python(tmp_path, "-c", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_simulate_is_refused_and_the_rest_of_the_package_is_not(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("")
    script = """
import fedbilevel
fedbilevel.BadInput
try:
    fedbilevel.simulate
except ImportError as error:
    print(error)
try:
    from fedbilevel import simulate
except ImportError as error:
    print(error)
"""
    done = python(tmp_path, "-c", script)
    line = f"{tmp_path}/server.py stands in the place of fedbilevel's package server: rename it, or move it away"
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, [line, line], "")


def module(spec: ModuleSpec | None, file: str | None = None) -> ModuleType:
    made = ModuleType("server")
    made.__spec__ = spec
    if file is not None:
        made.__file__ = file
    return made


def namespace(place: str) -> ModuleSpec:
    spec = ModuleSpec("server", None, is_package=True)
    spec.submodule_search_locations = [place]
    return spec


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (module(ModuleSpec("server", None, origin="/x/server.py")), "/x/server.py stands in the place of"),
        (module(None, "/x/own.py"), "/x/own.py stands in the place of fedbilevel's package server"),
        (module(namespace("/x/server")), "/x/server stands in the place of"),
        (
            module(ModuleSpec("server", None, origin=str(ROOT / "clients" / "__init__.py"))),
            "clients/__init__.py stands",
        ),
        (module(None), "the package server of fedbilevel is not installed beside"),
    ],
)
def test_what_was_imported_already_counts(monkeypatch: pytest.MonkeyPatch, found: ModuleType, said: str) -> None:
    monkeypatch.setitem(sys.modules, "server", found)
    with pytest.raises(ImportError, match=said):
        see_that_they_are_ours()


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "experiments", raising=False)
    find = packages.importlib.util.find_spec
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda name: None if name == "experiments" else find(name)
    )
    with pytest.raises(ImportError, match=rf"the package experiments of fedbilevel is not installed beside {ROOT}"):
        see_that_they_are_ours()


def test_the_public_names_are_those_that_are_listed() -> None:
    assert set(fedbilevel.__all__) == set(fedbilevel._HOMES)
    for name in fedbilevel.__all__:
        assert getattr(fedbilevel, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'fedbilevel' has no attribute 'simulat'"):
        _ = fedbilevel.simulat

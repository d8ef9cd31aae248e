"""The configs that come with the project, by name, from any folder."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedbilevel.config.packaged import CONFIGS, or_packaged, packaged, packaged_configs
from fedbilevel.config.tables import read
from fedbilevel.errors import BadInput

ROOT = Path(__file__).resolve().parents[3]
OURS = {path.stem: path for path in (ROOT / "experiments" / "configs").glob("*.toml")}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_config_is_found_with_and_without_its_ending() -> None:
    assert ROOT / "experiments" / "configs" == CONFIGS
    assert "demo" in OURS
    for name, path in OURS.items():
        assert packaged(name) == packaged(f"{name}.toml") == packaged(Path(name)) == path


@pytest.mark.parametrize("name", ["demoo", "demo.tml", "./sub/demo", "configs/demo.toml", "/demo", "", ".", ".."])
def test_what_is_no_name_of_one(name: str) -> None:
    assert packaged(name) is None


def test_a_file_of_the_persons_own_goes_first_and_a_folder_does_not() -> None:
    Path("demo").mkdir()
    assert packaged("demo") == OURS["demo"]
    Path("demo.toml").write_text('[run]\niterations = 7\n[problem]\nname = "quadratic"\n[algorithms.joint]\n')
    assert packaged("demo.toml") is None
    assert packaged("demo") == OURS["demo"]
    assert read("demo.toml").run.iterations == 7
    Path("demo").rmdir()
    Path("demo").write_text(Path("demo.toml").read_text())
    assert packaged("demo") is None
    assert read("demo").run.iterations == 7


def test_titles_are_those_that_the_files_hold() -> None:
    titles = packaged_configs()
    assert list(titles) == sorted(OURS)
    assert titles == {name: tomllib.loads(path.read_text())["title"] for name, path in OURS.items()}
    assert all(title.isprintable() and title for title in titles.values())


def test_a_packaged_config_is_read_by_its_name_and_overridden_as_any() -> None:
    assert read("demo") == read(OURS["demo"])
    assert read("demo.toml", ["run.seeds=[5]"]).run.seeds == [5]


def test_a_name_of_none_is_told_the_names_and_the_nearest() -> None:
    names = ", ".join(sorted(OURS))
    assert or_packaged("dmo") == f", or one of {names} (did you mean 'demo'?)"
    assert or_packaged("xyzzy.toml") == f", or one of {names}"
    assert or_packaged("sub/dmo") == or_packaged("dmo.txt") == ""
    with pytest.raises(BadInput) as refused:
        read("dmo")
    said = f"config: got 'dmo'; allowed: a file that can be read (No such file or directory), or one of {names} (did"
    assert str(refused.value).startswith(said)

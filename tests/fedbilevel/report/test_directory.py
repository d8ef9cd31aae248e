# The run directory: made for a new run, opened for one that is there, and finished.

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedbilevel.config.cross import expanded
from fedbilevel.errors import BadInput
from fedbilevel.report import RunDirectory
from fedbilevel.results.targets import Target
from tests.fedbilevel.results.rows import rising, row


def test_a_new_directory_is_made_with_its_parents_and_is_empty(tmp_path):
    made = RunDirectory.create(tmp_path / "runs" / "demo")
    assert made.path.is_dir()
    assert list(made.path.iterdir()) == []
    assert RunDirectory.create(made.path).path == made.path


def test_nothing_that_exists_is_touched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("full", "file", "file/below", "dangling"):
        with pytest.raises(BadInput) as caught:
            RunDirectory.create(tmp_path / name)
        assert caught.value.key == "out"
        assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dangling", "file", "full", "mine"]


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(BadInput, match="Read-only file system") as caught:
        RunDirectory.create(tmp_path / "new")
    assert caught.value.key == "out"
    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(BadInput, match=r"out: got .*Read-only file system"):
        RunDirectory.create(tmp_path / "other")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_parent_that_takes_no_folders_is_bad_input():
    with pytest.raises(BadInput, match=r"^out: got '/proc/"):
        RunDirectory.create("/proc/fedbilevel-run")


def test_open_wants_a_folder_with_a_config_and_a_history(tmp_path):
    with pytest.raises(BadInput, match="a folder that exists"):
        RunDirectory.open(tmp_path / "none")
    made = RunDirectory.create(tmp_path / "run")
    with pytest.raises(BadInput, match=r"no config\.toml"):
        RunDirectory.open(made.path)
    made.write_config("seeds = [0]\n")
    with pytest.raises(BadInput, match=r"no history\.csv"):
        RunDirectory.open(made.path)
    made.write_history(rows := rising(2, 2))
    opened = RunDirectory.open(made.path)
    assert opened.config_path.read_text() == "seeds = [0]\n"
    assert opened.read_history() == rows


def test_a_finished_run_has_every_file_of_the_contract(tmp_path):
    made = RunDirectory.create(tmp_path / "run")
    made.write_config("seeds = [0, 1]\n")
    made.write_history(rising(2, 2))
    summary = made.finish(made.read_history(), "Digits", [0.5])
    assert [line["algorithm"] for line in summary] == ["method_0", "method_1"]
    assert {p.name for p in made.path.iterdir()} == {
        "config.toml",
        "history.csv",
        "summary.csv",
        "statistics.csv",
        "environment.toml",
        "report.html",
        *(f"{x}_vs_accuracy.{kind}" for x in ("rounds", "bytes") for kind in ("png", "svg", "pdf")),
    }
    before = {p.name: p.read_bytes() for p in made.path.iterdir()}
    made.finish(made.read_history(), "Digits", [0.5])
    assert {p.name: p.read_bytes() for p in made.path.iterdir()} == before


@pytest.mark.slow
@pytest.mark.beside
def test_statistics_never_stand_beside_a_newer_history(tmp_path):
    made = RunDirectory.create(tmp_path / "run")
    made.finish(rows := rising(2, 2), "Digits", [0.5])
    assert made.is_finished(rows, [0.5])
    made.write_history(rows)
    assert not made.statistics_path.exists()
    assert not made.is_finished(rows, [0.5])
    for fewer, targets in ((rising(2, 1), [0.5]), (rising(1, 2), [0.5]), (rows, []), (rows, [0.99])):
        made.finish(rows, "Digits", [0.5])
        assert made.statistics_path.is_file()
        made.finish(fewer, "Digits", targets)
        assert not made.statistics_path.exists()
        assert made.is_finished(fewer, targets)
    made.statistics_path.mkdir()
    with pytest.raises(BadInput, match=r"statistics\.csv"):
        made.write_history(rows)


def test_figures_are_named_after_what_they_show_and_targets_of_other_columns_have_their_own(tmp_path):
    rows = [row("a", 0, turn, loss=1.0 / (1 + turn), metric_gap=2.0 - turn) for turn in range(3)]
    targets = [Target(column=c, at_most=0.5) for c in ("metric_gap", "upper_loss", "metric_none")]
    made = RunDirectory.create(tmp_path / "run")
    assert not made.is_finished(rows, targets)
    made.finish(rows, "Quadratic", targets)
    stems = ("rounds_vs_upper_loss", "bytes_vs_upper_loss", "rounds_vs_metric_gap")
    drawn = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")}
    assert {p.name for p in made.path.iterdir()} == {"summary.csv", "environment.toml", "report.html", *drawn}
    assert made.is_finished(rows, targets)
    for name in ("summary.csv", "report.html", "rounds_vs_metric_gap.pdf", "bytes_vs_upper_loss.svg"):
        content = (made.path / name).read_bytes()
        (made.path / name).unlink()
        assert not made.is_finished(rows, targets)
        (made.path / name).write_bytes(content)


def test_before_the_first_evaluation_there_is_nothing_to_draw(tmp_path):
    made = RunDirectory.create(tmp_path / "run")
    assert made.finish([], "Digits", [0.5]) == []
    assert {p.name for p in made.path.iterdir()} == {"summary.csv", "environment.toml", "report.html"}
    assert made.is_finished([])


def test_several_conditions_of_several_tables_are_drawn_as_a_map_too(tmp_path):
    cross = {"systems": {"dropout": [0.0, 0.3]}, "aggregation": [{"rule": "mean"}, {"rule": "median"}]}
    for name, table in (("two", cross), ("one", {"systems": cross["systems"]})):
        algorithms = expanded({"algorithms": {"a": {}, "b": {}}, "cross": table})["algorithms"]
        rows = [row(label, 0, turn, loss=1.0 / (1 + turn)) for label in algorithms for turn in range(3)]
        made = RunDirectory.create(tmp_path / name)
        made.finish(rows, "Crossed", algorithms=algorithms)
        maps = {path.name for path in made.path.glob("conditions.*")}
        assert maps == ({f"conditions.{kind}" for kind in ("png", "svg", "pdf")} if name == "two" else set())
        assert made.is_finished(rows, None, algorithms)
        for path in made.path.glob("conditions.svg"):
            path.unlink()
            assert not made.is_finished(rows, None, algorithms)
            assert made.is_finished(rows)

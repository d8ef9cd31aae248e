"""The command line's engines: Ray actors, runs side by side, and what does not go together."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedbilevel.results import read_history
from tests.processes.console import QUADRATIC, main


def written(folder: Path) -> Path:
    config = folder / "quadratic.toml"
    config.write_text(QUADRATIC)
    return config


def rows(folder: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != "wall_seconds"} for row in read_history(folder)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "rai"], "--engine: got 'rai'; allowed: local, ray (did you mean 'ray'?)"),
        (["--jobs", "0"], "--jobs: got 0; allowed: an integer of at least 1"),
        (["--engine", "ray", "--jobs", "2"], "--jobs: got 2; allowed: the engine local"),
        (
            ["--ray-address", "127.0.0.1:6379"],
            "--ray-address: got '127.0.0.1:6379'; allowed: a cluster for --engine ray",
        ),
        (["--set", "engine.name=rai"], "engine.name: got 'rai'; allowed: local, ray"),
        (["--set", "engine.workers=0"], "engine.workers: got 0; allowed: "),
        (["--set", "engine.worker=2"], "engine.worker: got 2; allowed: in [engine] only"),
        (
            ["--set", "engine.workers=10000000"],
            "engine.workers: got 10000000; allowed: an integer of at least 1 and at",
        ),
        (["--set", "engine.threads=100000"], "engine.threads: got 100000; allowed: an integer of at least 1 and at"),
        (["--set", "engine.cpus=1e9"], "engine.cpus: got 1000000000.0; allowed: a number above 0 and at most 1024"),
        (["--set", "engine.patience=0"], "engine.patience: got 0; allowed: a number above 0 and at most 86400"),
        (["--jobs", str(10**30)], "--jobs: got 10000000000000000000000"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(written(tmp_path)), "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("how", [["--engine", "ray"], ["--jobs", "2"]], ids=["actors", "sweep"])
def test_an_address_where_no_ray_answers_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    began = time.monotonic()
    arguments = ["run", str(written(tmp_path)), "--out", str(tmp_path / "out"), "--ray-address", "127.0.0.1:1", *how]
    assert main(arguments) == 2
    assert time.monotonic() - began < 20
    error = capsys.readouterr().err
    assert error.startswith("fedbilevel: --ray-address: got '127.0.0.1:1'; allowed: ")
    assert error.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["quadratic.toml"]


def test_workers_that_no_machine_holds_are_refused_before_any_of_them_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedbilevel.machine.memory.available", lambda device=None: 10**9)
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray is started"))
    out = tmp_path / "deep" / "er"
    arguments = ["run", str(written(tmp_path)), "--out", str(out)]
    assert main([*arguments, "--engine", "ray", "--set", "engine.workers=6"]) == 2
    assert "engine.workers: got 'an estimated 1.1 GiB of memory'; allowed: at most" in capsys.readouterr().err
    assert main([*arguments, "--jobs", "6", "--set", "run.seeds=[1, 2, 3]"]) == 2
    assert "--jobs: got 'an estimated 1.1 GiB of memory'; allowed: at most" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["quadratic.toml"]


def test_a_start_that_is_refused_leaves_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["run", str(written(tmp_path)), "--out", str(out), "--ray-address", "127.0.0.1:1", "--jobs", "2"]
    assert main(arguments) == 2
    assert out.is_dir()
    assert list(out.iterdir()) == []
    assert main(arguments[:4]) == 0  # the corrected command finds its folder free


@pytest.mark.slow
@pytest.mark.timeout(200)
# Ray leaves the null devices open that it gives to the processes it starts
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_way_to_run_gives_the_same_history(tmp_path: Path) -> None:
    config = str(written(tmp_path))
    ways = {
        "local": [],
        "workers": ["--set", "engine.workers=3"],
        "ray": ["--engine", "ray", "--set", "engine.workers=2", "--set", "engine.threads=1"],
        "sweep": ["--jobs", "2"],
    }
    for name, arguments in ways.items():
        assert main(["run", config, "--out", str(tmp_path / name), *arguments]) == 0
    expected = rows(tmp_path / "local" / "history.csv")
    assert len(expected) > 10
    for name in ways:
        found = rows(tmp_path / name / "history.csv")
        assert [row.keys() for row in found] == [row.keys() for row in expected]
        for one, other in zip(found, expected, strict=True):
            for key, value in other.items():
                if isinstance(value, float):
                    assert one[key] == pytest.approx(value, rel=1e-9, abs=1e-12)
                else:
                    assert one[key] == value

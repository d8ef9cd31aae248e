# Files are written whole or not at all.

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedbilevel.errors import BadInput
from fedbilevel.results import write_history, write_summary, write_whole
from tests.fedbilevel.results.rows import nothing_temporary, row

ROOT = Path(__file__).resolve().parents[3]


def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "f"
    write_whole(target, b"old")

    def crash(file):
        file.write(b"half of the ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(target, crash)
    assert target.read_bytes() == b"old"
    assert nothing_temporary(tmp_path)


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so_in_one_line(tmp_path, monkeypatch, stage):
    write_history(tmp_path / "h.csv", [row()])
    before = (tmp_path / "h.csv").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, stage, full)
    with pytest.raises(BadInput, match=r"h\.csv: got 'No space left on device'"):
        write_history(tmp_path / "h.csv", [row(), row()])
    monkeypatch.undo()
    assert (tmp_path / "h.csv").read_bytes() == before
    assert nothing_temporary(tmp_path)


def test_a_real_limit_on_file_size_does_no_harm_to_the_old_file(tmp_path):
    write_whole(tmp_path / "f", b"old")
    script = (
        "import resource, sys\n"
        "from fedbilevel.errors import BadInput\n"
        "from fedbilevel.results import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_whole(sys.argv[1], b'x' * 100_000)\n"
        "except BadInput as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "f")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout
    assert (tmp_path / "f").read_bytes() == b"old"
    assert nothing_temporary(tmp_path)


@pytest.mark.parametrize("writer", [lambda path: write_history(path, []), lambda path: write_summary(path, [])])
@pytest.mark.parametrize("where", ["missing/f.csv", "file/f.csv", "folder"])
def test_a_place_that_cannot_be_written_is_bad_input(tmp_path, writer, where):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="allowed: a file in a folder that can be written to"):
        writer(tmp_path / where)
    assert nothing_temporary(tmp_path)


def test_an_error_of_the_content_itself_is_passed_on(tmp_path):
    def broken(_):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        write_whole(tmp_path / "f", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_link_goes_on_pointing_to_the_file_it_names(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


KILLED = """
import os, pathlib, signal, sys, time
from fedbilevel.results import read_history, write_history
path = pathlib.Path(sys.argv[1])
def rows(n):
    return [dict(algorithm="a", seed=0, iteration=i, round=n, upper_loss=i / 3) for i in range(n)]
write_history(path, rows(50))
inode = path.stat().st_ino
for attempt in range(25):
    child = os.fork()
    if child == 0:
        n = 50
        while True:
            n = 50 + (n + 37) % 400
            write_history(path, rows(n))
    while path.stat().st_ino == inode:
        time.sleep(0.0005)
    time.sleep(0.0013 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    inode = path.stat().st_ino
    back = read_history(path)
    assert back and all(r["round"] == len(back) and r["upper_loss"] == i / 3 for i, r in enumerate(back)), attempt
print("parsed")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    """Every version has n rows that all say n, so that a mixture of two versions or a cut would show."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "h.csv")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "parsed\n", done.stderr

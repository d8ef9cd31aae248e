# What a run was made on: named, and read back as it was written.

from __future__ import annotations

import datetime
import os
import platform

import torch

from fedbilevel.machine.environment import environment, read_environment, write_environment


def test_versions_machine_and_day_are_named_and_read_back(tmp_path):
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["machine"] == platform.machine()
    assert found["threads"] == torch.get_num_threads()
    assert 1 <= found["cores"] <= os.cpu_count()
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found["date"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)
    assert platform.node() not in found.values()
    write_environment(tmp_path / "environment.toml", found)
    assert read_environment(tmp_path / "environment.toml") == found


def test_one_that_is_missing_or_damaged_is_not_known(tmp_path):
    assert read_environment(tmp_path / "none") is None
    (tmp_path / "bad").write_bytes(b"python = \xff")
    assert read_environment(tmp_path / "bad") is None
    (tmp_path / "cut").write_text("python = ")
    assert read_environment(tmp_path / "cut") is None

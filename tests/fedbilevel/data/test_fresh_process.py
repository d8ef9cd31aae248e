"""What only a process of its own can tell: first imports, another hash seed, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import fingerprint

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import json, random, time
before, kept, told = random.getstate(), [], {}
from fedbilevel.data import load, partition
data = load("digits")
kept.append(random.getstate() == before)
partition(data.y_train, name="iid", clients=3, seed=0)
kept.append(random.getstate() == before)
started = time.monotonic()
try:
    load("mnist")
except ValueError as error:
    told["offline"] = str(error)
seconds = time.monotonic() - started
from tests.datasets import fingerprint
print(json.dumps({**told, "kept": kept, "seconds": seconds, "fingerprint": fingerprint()}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process tells that has another hash seed, no cache, and a network in which no one listens."""
    left_out = ("FEDBILEVEL_DATA", "HF_HUB_OFFLINE")
    environment = {
        **{key: value for key, value in os.environ.items() if "proxy" not in key.lower() and key not in left_out},
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path_factory.mktemp("cache")),
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_first_imports_leave_the_global_state_alone(told: dict[str, Any]) -> None:
    """Libraries draw from `random` while they are imported: those of a data set, and those of a partition."""
    assert told["kept"] == [True, True]


def test_partitions_are_equal_in_another_process(told: dict[str, Any]) -> None:
    assert told["fingerprint"] == fingerprint()


def test_the_real_libraries_fail_fast_and_quietly(told: dict[str, Any]) -> None:
    """Behind an address where no one listens, and without a cache: retries would take half a minute."""
    assert told["offline"].startswith("data.name: got 'mnist'; allowed: a data set at hand")
    assert told["seconds"] < 15

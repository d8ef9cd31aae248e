"""Ray itself: addresses, who may join a private one, and nothing of it is left behind."""

import csv
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode

from fedbilevel import simulate
from fedbilevel.errors import BadInput
from server.grids.cluster import address as addresses
from server.grids.cluster.connection import connected
from server.grids.cluster.ending import _alive, _family
from tests.histories import assert_same
from tests.processes.flower import processes_with
from tests.processes.scripts import script, watched

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    # Ray leaves the files and processes that it starts for the garbage collector to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def listening() -> Iterator[int]:
    """A port where somebody answers who is not Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_without_ray_is_refused_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PROBE_SECONDS", 1.0)
    with listening() as port:
        says = {
            "127.0.0.1:1": r"host:port of its head, or auto, and nothing answers there \(Connection refused\)$",
            "no.such.host.invalid:6379": "and nothing answers there",
            "localhost": "host:port of its head, or auto$",
            "ray://127.0.0.1:10001": "host:port of its head, or auto$",
            f"127.0.0.1:{port}": "and what answers there is not Ray$",
        }
        for address, said in says.items():
            began = time.monotonic()
            with pytest.raises(BadInput, match=said) as refused:
                simulate("quadratic", "aggitd", iterations=1, engine="ray", ray_address=address)
            assert time.monotonic() - began < 8
            expected = f"ray_address: got {address!r}; allowed: the address of a Ray cluster, "
            assert str(refused.value).startswith(expected)


# --- who may join ---

JOINS = """
import ray
try:
    ray.init(address="ADDRESS", log_to_driver=False)
    print("joined")
except ConnectionError:
    print("refused")
"""

SIMULATES = """
from fedbilevel import BadInput, simulate
try:
    print(len(simulate("quadratic", "aggitd", iterations=2, engine="ray", workers=1, ray_address="ADDRESS").history))
except BadInput as error:
    print(error)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_ray_is_joined_with_its_token_alone() -> None:
    """Ray's ports are open on all interfaces. No file below its folder holds the token, and nobody else may enter."""
    before = dict(os.environ)
    with connected(cpus=2):
        assert dict(os.environ) == before
        token = AuthenticationTokenLoader.instance().get_raw_token()
        assert re.fullmatch("[0-9a-f]{64}", token)
        node = ray._private.worker._global_node
        folder = Path(node.temp_dir)
        assert mode(folder.parent) == 0o700
        files = [path for path in folder.parent.rglob("*") if path.is_file()]
        assert len(files) > 5
        assert not any(token.encode() in path.read_bytes() for path in files)

        wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        asked = [(JOINS, {}), (JOINS, wrong), (SIMULATES, wrong), (SIMULATES, right)]
        patient = {"RAY_NUM_REDIS_GET_RETRIES": "2"}  # of twenty tries, a second each
        processes = [
            script(code.replace("ADDRESS", node.gcs_address), **patient, **environment) for code, environment in asked
        ]
        try:
            said = [process.communicate(timeout=90)[0].splitlines()[-1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        says = f"ray_address: got '{node.gcs_address}'; allowed: the address of a Ray cluster, with its token"
        assert said[2].startswith(says)
        assert [*said[:2], said[3]] == ["refused", "refused", "3"]
        expected = simulate("quadratic", "aggitd", iterations=2, dtype="float64")
        found = simulate("quadratic", "aggitd", iterations=2, dtype="float64", engine="ray", workers=2, threads=1)
        assert_same(found.history, expected.history)
    assert dict(os.environ) == before
    assert get_authentication_mode() == AuthenticationMode.DISABLED
    assert not AuthenticationTokenLoader.instance().has_token()


# --- nothing is left behind ---

FINISHES_AND_FAILS = """
import os, ray, secrets, signal
from fedbilevel import RunFailed, simulate
from fedbilevel.problems import Quadratic

class Broken(Quadratic):
    def lower(self, x, y, examples):
        if os.getpid() != self.here:
            raise ValueError("not here")
        return super().lower(x, y, examples)

tokens, token_hex = [], secrets.token_hex
secrets.token_hex = lambda size: tokens.append(token_hex(size)) or tokens[-1]
before = dict(os.environ)
print(len(simulate("quadratic", "aggitd", iterations=2, engine="ray", workers=2).history))
broken = Broken(clients=4)
broken.here = os.getpid()
try:
    simulate(broken, "aggitd", iterations=2, engine="ray", workers=1)
except RunFailed as error:
    print(error)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
changed = {name for name in {*os.environ, *before} if os.environ.get(name) != before.get(name)}
print(len(set(tokens)), changed - {"TORCHINDUCTOR_CACHE_DIR"})  # which torch sets
"""

GOES_ON = """
import signal
from fedbilevel.config.tables import check
from fedbilevel.report import RunDirectory
from server.running.experiment import Experiment, Observer, engine
from server.running.sweep import Sweep

class Tell(Observer):
    told = 0
    def stepped(self, job, iteration, rounds):
        self.told += 1
        if self.told == 5:
            print("runs", flush=True)

run = {"seeds": [0, 1], "iterations": 1000000, "evaluate_every": 100}
def end(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, end)
config = check({"run": run, "problem": {"name": "quadratic"}, "algorithms": {"aggitd": {}}})
out = RunDirectory.create(OUT)
try:
    if SWEEP:
        Sweep(config, out, Tell(), jobs=2).run()
    else:
        with engine("ray", workers=2, threads=1) as connect:
            Experiment(config, out, connect, Tell()).run()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_finished_and_a_failed_run_leave_nothing_and_say_nothing() -> None:
    with watched(FINISHES_AND_FAILS) as (process, mark, scratch):
        out, _ = process.communicate(timeout=100)
        assert list(scratch.glob("fb-ray-*")) == []
        assert processes_with(mark) == {}
    failed = "aggitd, seed 0, iteration 0: client 0, operation losses, round 0: ValueError: not here"
    assert out.splitlines() == ["3", failed, "True", "2 set()"]


@pytest.mark.parametrize(
    ("sweep", "number"),
    [(False, signal.SIGTERM), (True, signal.SIGINT), (True, signal.SIGKILL)],
    ids=["engine, SIGTERM", "sweep, Ctrl-C", "sweep, SIGKILL"],
)
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, sweep: bool, number: signal.Signals) -> None:
    with watched(f"OUT, SWEEP = {str(tmp_path / 'out')!r}, {sweep}\n{GOES_ON}") as (process, mark, scratch):
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        started = _family([process.pid])
        assert len(started) >= 8  # Ray's head and node with their agents, and workers
        process.send_signal(number)
        assert process.stdout.read() == ("" if number == signal.SIGKILL else "interrupted\n")
        process.wait(30)
        deadline = time.monotonic() + (20 if number == signal.SIGKILL else 0)
        while (left := set(_alive(started, [])) | set(processes_with(mark))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == set()
        assert list(scratch.glob("fb-ray-*")) == []
    if number != signal.SIGKILL:
        with open(tmp_path / "out" / "history.csv") as file:
            assert list(csv.DictReader(file))

"""Flower's command line with a home, ports and a SuperLink of its own, and an end for all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def processes_with(variable: str) -> dict[int, str]:
    """Pid and command of every process of ours with this NAME=value in its environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # it has ended, or is not ours
            continue
    return found


def stop_all(variable: str, seconds: float = 20.0) -> dict[int, str]:
    """Ask every such process to end, then end it; returns those that had to be ended."""
    deadline = time.monotonic() + seconds
    asked: set[int] = set()
    while left := processes_with(variable):
        late = time.monotonic() > deadline
        for pid in left if late else left.keys() - asked:
            asked.add(pid)
            try:
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            except ProcessLookupError:
                continue
        if late:
            return left
        time.sleep(0.1)
    return {}


def kill_federations() -> list[int]:
    """Kill the processes in which Ray carries a run of this test (FEDBILEVEL_TEST names it); returns their pids."""
    killed = []
    for pid, command in processes_with(f"FEDBILEVEL_TEST={os.environ['FEDBILEVEL_TEST']}").items():
        if command.startswith("ray::federation"):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
    return killed


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Flower:
    """The command `flwr` with a home, ports and a SuperLink of its own."""

    def __init__(self, home: Path) -> None:
        self.variable = f"FLWR_HOME={home / 'flwr'}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_", "PYTEST_", "PYTHON"))}
        http, control = free_ports(2)
        self.environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(home / "flwr"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
            "FLWR_LOCAL_CONTROL_API_PORT": control,
            "RAY_TMPDIR": str(home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",  # as the README advises: the simulation's Ray listens on all interfaces
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *arguments: str, timeout: float = 120) -> str:
        done = subprocess.run(
            ["flwr", *arguments],
            env=self.environment,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, run_config: str, timeout: float = 120) -> str:
        federation = "num-supernodes=3 client-resources-num-cpus=1 client-resources-num-gpus=0.0 init-args-num-cpus=2"
        return self(
            "run", ".", "--federation-config", federation, "--run-config", run_config, "--stream", timeout=timeout
        )

    def statuses(self) -> list[tuple[str, str]]:
        """Status and details of every run, the latest first."""
        runs = json.loads(self("list", "--format", "json", timeout=30))["runs"]
        return [(run["status"], run["status-details"]) for run in runs]

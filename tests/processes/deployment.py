"""Flower's deployment runtime on loopback: a SuperLink and SuperNodes of one's own, and an end for all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from server.running.deal import SERVER, node_file
from tests.processes.flower import REPOSITORY, Flower, free_ports, stop_all


class Deployment(Flower):
    """A SuperLink and SuperNodes, each with its file of a folder that was dealt; `stop` ends whatever was started."""

    def __init__(self, home: Path, folder: Path, nodes: int = 3) -> None:
        super().__init__(home)
        self._home, self._folder, self._count = home, folder, nodes
        self._started: list[subprocess.Popen[bytes]] = []
        self.environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.1"
        self.environment.pop("FEDBILEVEL_DATA", None)  # a node has its own file and nothing else
        self._port, *self._own = free_ports(1 + nodes)
        self.link = f"127.0.0.1:{self._port}"
        config = Path(self.environment["FLWR_HOME"]) / "config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        superlink = f'[superlink.loopback]\naddress = "{self.link}"\ninsecure = true\n'
        config.write_text(f'[superlink]\ndefault = "loopback"\n\n{superlink}')

    def start(self) -> None:
        """Start the SuperLink, and when it is there the SuperNodes."""
        runtime = ["--insecure", "--host", "127.0.0.1", "--port"]
        self._start("link", ["flower-superlink", *runtime, self._port, "--disable-runtime-dependency-installation"])
        until(lambda: answers(int(self._port)), 60, self.said)
        self.nodes = []
        for j, port in enumerate(self._own):
            told = f'partition-id={j} num-partitions={self._count} data="{self._folder / node_file(j)}"'
            node = ["flower-supernode", *runtime, port, "--superlink", self.link, "--node-config", told]
            self.nodes.append(self._start(f"node{j}", node))

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self._home / f"{name}.log", "wb") as log:
            started = subprocess.Popen(
                command,
                env=self.environment,
                cwd=REPOSITORY if name == "run" else self._home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._started.append(started)
        return started

    def stop(self) -> dict[int, str]:
        """End all, whoever started it; returns what had to be killed."""
        stubborn = stop_all(self.variable)
        for each in self._started:
            each.wait(20)
        return stubborn

    def begin(self, run_config: str) -> subprocess.Popen[bytes]:
        """Start a run of the server's file, whose log goes to a file of ours."""
        given = f"{run_config} data='{self._folder / SERVER}'"
        return self._start("run", ["flwr", "run", ".", "loopback", "--stream", "--run-config", given])

    def finished(self, run: subprocess.Popen[bytes], seconds: float) -> str:
        """Wait for a run, and return its log."""
        run.wait(seconds)
        return (self._home / "run.log").read_text()

    def kill(self, partition: int) -> None:
        """SIGKILL for a SuperNode: no goodbye to the SuperLink."""
        os.kill(self.nodes[partition].pid, signal.SIGKILL)
        self.nodes[partition].wait(10)

    def said(self) -> str:
        """The logs' ends."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self._home.glob("*.log")))


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], seconds: float, said: Callable[[], str] = str) -> None:
    """Wait for it. Raises AssertionError, with what `said` returns."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)

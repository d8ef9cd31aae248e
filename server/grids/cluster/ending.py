"""The end of a private Ray: none of its processes stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import ray

END_SECONDS = 5.0
"""How long the processes of a private Ray may take to end by themselves."""


def end() -> None:
    """Shut Ray down and see that the processes of it are gone; the last resort is to kill them, each by its pid."""
    node: Any = ray._private.worker._global_node
    children: list[subprocess.Popen[bytes]] = []
    if node is not None:
        children = [info.process for infos in node.all_processes.values() for info in infos]
    started = _family([child.pid for child in children])
    ray.shutdown()
    deadline = time.monotonic() + END_SECONDS
    while (left := _alive(started, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)


def _alive(started: dict[int, str], children: list[subprocess.Popen[bytes]]) -> list[int]:
    for child in children:
        child.poll()  # so that none stays a zombie
    return [pid for pid, born in started.items() if (stat := _stat(pid)) and stat[1] == born and stat[2] != "Z"]


def _family(pids: list[int]) -> dict[int, str]:
    """Return these processes and all below them, with the times of their births; nothing where there is no /proc."""
    children: dict[int, list[int]] = {}
    births: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(entry.name)):
            children.setdefault(stat[0], []).append(int(entry.name))
            births[int(entry.name)] = stat[1]
    found: dict[int, str] = {}
    waiting = [pid for pid in pids if pid in births]
    while waiting:
        pid = waiting.pop()
        found[pid] = births[pid]
        waiting += children.get(pid, [])
    return found


def _stat(pid: int) -> tuple[int, str, str] | None:
    """Return parent, time of birth and state of a process; None if it is gone."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[19], fields[0]

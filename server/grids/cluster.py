"""Ray itself: a private one that is started and ended here, or one that is there, joined and left as it was."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import ray

from fedbilevel.errors import BadInput, RunFailed
from server.grids import credentials
from server.grids import warden as warden_script

PROBE_SECONDS = 5.0
"""How long an address may take to answer."""

END_SECONDS = 5.0
"""How long the processes of a private Ray may take to end by themselves."""

BOOKS_SECONDS = 2.0
"""How far behind Ray's books of what is free may be."""

LONGEST_PARENT = 24
"""Letters of the folder that Ray's scratch folder may lie in: names of sockets, 82 letters longer, have at most 107."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def processors() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def connected(address: str | None = None, *, cpus: int = 1) -> Iterator[None]:
    """Have Ray while this lasts.

    address: None starts a private Ray with at least this many CPUs, which nobody can join who has not its token, and
    no process of it survives the end; "host:port" or "auto" joins a cluster, which goes on afterwards, with the token
    that the environment names. A Ray that this process has initialised before is used as it is, and stays.

    Raises BadInput for an address where no Ray answers, RunFailed if a private one does not start.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        with _folder() as folder, _private({**options, "_temp_dir": folder}, max(cpus, processors())):
            yield
    else:
        _probe(address)
        with _joined(options, address):
            yield


@contextlib.contextmanager
def _joined(options: dict[str, Any], address: str) -> Iterator[None]:
    try:
        _init(address=address, **options)
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        allowed = f"a Ray cluster that this machine is part of (ray start --address=...), but: {said}"
        raise BadInput("ray_address", address, allowed) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _private(options: dict[str, Any], cpus: int) -> Iterator[None]:
    try:
        try:
            with credentials.fresh_token():
                _init(address="local", num_cpus=cpus, include_dashboard=False, **options)
        except Exception as error:
            raise RunFailed(f"Ray does not start: {type(error).__name__}: {error}") from error
        yield
    finally:
        _end()
        credentials.read_again()


def _init(**options: Any) -> None:
    """Call `ray.init` without its noise; the process's environment and SIGTERM handler are put back as they were."""
    variables: dict[str, str | None] = {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    variables["PYTHONBREAKPOINT"] = os.environ.get("PYTHONBREAKPOINT")  # Ray puts a debugger of its own there
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        with credentials.environment(variables), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options)
        # Ray prints every death of a worker on the driver's terminal, whatever it is told of logging, and every error
        # of a task that nobody has asked for, as of those that an interrupt ends
        ray._private.worker.print_to_stdstream = lambda *what, **how: None
        ray._private.worker._unhandled_error_handler = lambda e: None
    except BaseException:
        ray.shutdown()
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A scratch folder with a short name, since Ray's sockets lie in it.

    Ray lets everybody write into the folder that it is given: that one lies in a folder which is this user's alone.
    """
    parent = os.path.realpath(tempfile.gettempdir())
    if len(parent) > LONGEST_PARENT:
        parent = os.path.realpath("/tmp")
    folder = tempfile.mkdtemp(prefix="fb-ray-", dir=parent)
    # a driver that is killed cannot tidy up, and Ray's agents outlive it by a minute; Ctrl-C spares the warden
    warden = subprocess.Popen(
        [sys.executable, "-I", "-S", warden_script.__file__, folder], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield os.path.join(folder, "r")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        warden.communicate()


# ---- room ----


def has_room(all_of_them: int, waiting: int, cpus: float, gpus: float) -> bool:
    """Whether Ray has room for what waits to begin, of which each reserves so much of a machine.

    A private Ray is used by this process alone: what its machines hold in all is what counts. On a cluster others take
    their share, and what is free now has to hold those that have no place yet.
    """
    node: Any = ray._private.worker._global_node
    state: Any = ray._private.state
    if _places(cpus, gpus, state.total_resources_per_node()) < all_of_them:
        return False
    if node is not None and node.is_head():
        return True
    deadline = time.monotonic() + BOOKS_SECONDS
    while waiting > _places(cpus, gpus, state.available_resources_per_node()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def room(cpus: float, gpus: float) -> str:
    """Say what is reserved."""
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def _places(cpus: float, gpus: float, nodes: Mapping[str, Mapping[str, float]]) -> float:
    """How many reservations of this size these machines hold."""

    def of(resources: Mapping[str, float]) -> float:
        asked = {"CPU": cpus, "GPU": gpus}
        return min((resources.get(name, 0.0) // each for name, each in asked.items() if each > 0), default=math.inf)

    return sum(of(resources) for resources in nodes.values())


def leased(actors: Sequence[Any]) -> int:
    """How many of these actors have a process that Ray has given them."""
    table: Any = ray._private.state.actors
    return sum(bool(table(actor._actor_id.hex()).get("Address", {}).get("IPAddress")) for actor in actors)


# ---- the end of a private Ray ----


def _end() -> None:
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


# ---- an address ----


def _probe(address: str) -> None:
    """See that something answers as Ray's head would: `ray.init` waits for half a minute. Raises BadInput."""
    allowed = "the address of a Ray cluster, host:port of its head, or auto"
    found = address
    if address == "auto":
        try:
            found = str(ray._private.services.canonicalize_bootstrap_address_or_die("auto"))
        except Exception:
            raise BadInput("ray_address", address, "a Ray cluster that runs on this machine, and none is") from None
    host, _, port = found.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput("ray_address", address, allowed)
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except OSError as error:
        said = error.strerror or str(error)
        raise BadInput("ray_address", address, f"{allowed}, and nothing answers there ({said})") from None
    with grpc.insecure_channel(found, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(PROBE_SECONDS)
            cluster_id = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
            cluster_id(b"", timeout=PROBE_SECONDS, metadata=credentials.metadata())
        except grpc.FutureTimeoutError:
            raise BadInput("ray_address", address, f"{allowed}, and what answers there is not Ray") from None
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                token = "its token in the environment (RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
                raise BadInput("ray_address", address, f"the address of a Ray cluster, with {token}") from None
            # what else a cluster may say of this, `ray.init` will say better

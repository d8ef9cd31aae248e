"""Ray itself: a private one that is started and ended here, or one that is there, joined and left as it was."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import ray

from fedbilevel.errors import BadInput, RunFailed
from server.grids.cluster import credentials
from server.grids.cluster import warden as warden_script
from server.grids.cluster.address import probe
from server.grids.cluster.ending import end
from server.grids.cluster.room import processors

LONGEST_PARENT = 24
"""Letters of the folder that Ray's scratch folder may lie in: names of sockets, 82 letters longer, have at most 107."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


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
        probe(address)
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
        end()
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

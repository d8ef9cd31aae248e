"""On what a run was made: versions, machine, cores, threads and the day."""

from __future__ import annotations

import datetime
import os
import platform
import tomllib
from collections.abc import Mapping
from importlib import metadata

import tomli_w

from fedbilevel.results.files import PathLike, write_whole

PACKAGES = ("fedbilevel", "torch", "numpy", "flwr", "ray")


def environment() -> dict[str, str | int]:
    """What this process runs on, by name, each a word or a number; packages that are not there are left out.

    Nothing that names the machine or its user. `date` is the moment in UTC, to the second.
    """
    import torch

    found: dict[str, str | int] = {
        "fedbilevel": _version("fedbilevel") or "unknown",
        "python": platform.python_version(),
    }
    found |= {name: version for name in PACKAGES if (version := _version(name)) is not None}
    found |= {"system": f"{platform.system()} {platform.release()}", "machine": platform.machine()}
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
    return found | {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_environment(path: PathLike, found: Mapping[str, str | int]) -> None:
    """Write what `environment` gives as TOML; raises `BadInput` if the file cannot be written."""
    write_whole(path, tomli_w.dumps(found).encode())


def read_environment(path: PathLike) -> dict[str, object] | None:
    """Read what `write_environment` wrote; None where there is no such file, or one that is damaged."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError):  # a page does not fail for what only describes
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

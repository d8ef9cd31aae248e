"""How much memory is left, and the refusal of what cannot fit in it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fedbilevel.errors import BadInput

_GIB = 1024.0**3


def available(device: torch.device | None = None) -> int:
    """Bytes that this process can still take: the machine's available memory, or less where a control group says so.

    Of a CUDA device: its free memory.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        left = int(lines.get("MemAvailable", f"{left // 1024} kB").split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        left = min(left, int(limit.read_text()) - int(used.read_text()))
    return max(left, 0)


def require(need: float, key: str, remedy: str, device: torch.device | None = None) -> None:
    """Raises BadInput, with the estimate, if `need` bytes are more than what is available.

    >>> require(1e6, "problem", "a smaller one")
    """
    left = available(device)
    if need > left:
        found = f"an estimated {need / _GIB:.1f} GiB of memory"
        raise BadInput(key, found, f"at most the {left / _GIB:.1f} GiB that are available: {remedy}")

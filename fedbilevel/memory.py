"""How much memory is left, and the refusal of what cannot fit in it."""

from __future__ import annotations

import os
from pathlib import Path

from fedbilevel.errors import BadInput

_GIB = 1024.0**3


def available() -> int:
    """Bytes that this process can still take: the machine's available memory, or less where a control group says so."""
    meminfo = Path("/proc/meminfo")
    left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        left = int(lines.get("MemAvailable", f"{left // 1024} kB").split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        left = min(left, int(limit.read_text()) - int(used.read_text()))
    return max(left, 0)


def require(need: float, key: str, remedy: str) -> None:
    """Raises BadInput, with the estimate, if `need` bytes are more than what is available.

    >>> require(1e6, "problem", "a smaller one")
    """
    left = available()
    if need > left:
        found = f"an estimated {need / _GIB:.1f} GiB of memory"
        raise BadInput(key, found, f"at most the {left / _GIB:.1f} GiB that are available: {remedy}")

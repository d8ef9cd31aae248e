"""How many processes and threads may be asked for: bounds of what is taken for meant, and what a machine can hold."""

from __future__ import annotations

from fedbilevel.machine.memory import require

MOST_WORKERS = 10_000
MOST_THREADS = 1_024
MOST_PATIENCE = 86_400.0
PROCESS_BYTES = 200e6
"""What a worker process takes for itself once torch and Flower are imported; its clients' examples come on top."""


def require_processes(count: int, key: str) -> None:
    """Raises BadInput if so many worker processes do not fit into this machine's memory.

    >>> require_processes(1, "engine.workers")
    """
    require(count * PROCESS_BYTES, key, f"fewer than {count} worker processes on this machine")

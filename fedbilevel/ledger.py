"""The ledger: the one record of what a federation has sent and how long that would have taken."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Totals since the start of a run.

    Counted per client, as a real federation would send it, whatever the simulator moves: `messages` one per client and
    direction, `vectors` and `bytes` the payload of the vectors (numel x itemsize; scalars and framing are not counted).
    """

    rounds: int = 0
    messages: int = 0
    vectors_down: int = 0
    vectors_up: int = 0
    downlink_bytes: int = 0
    uplink_bytes: int = 0
    simulated_seconds: float = 0.0

    def totals(self) -> dict[str, int | float]:
        """Every total by name."""
        return asdict(self)

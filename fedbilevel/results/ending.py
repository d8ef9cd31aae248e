"""When a run is over: the one rule by which the loop, a resumed experiment and a reader of its history go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedbilevel.results.history import Row, number
from fedbilevel.results.summary import runs
from fedbilevel.results.targets import Target

_COUNTS = {
    "rounds": ("round",),
    "iterations": ("iteration",),
    "max_bytes": ("uplink_bytes", "downlink_bytes"),
    "max_simulated_seconds": ("simulated_seconds",),
}
"""What each limit counts: the columns of the history whose sum it bounds."""
GOALS = ("rounds", "iterations")


@dataclass(frozen=True)
class Ending:
    """What ends a run, whichever comes first.

    limits: by key of `[run]` (rounds or iterations, max_bytes, max_simulated_seconds), above 0; a run ends at the first
    end of an iteration at which a count has reached its limit. stop_at: a run ends at the first evaluation that meets
    it, the one before the first iteration included. The last row is an evaluation at the end either way.

    >>> ending = Ending({"rounds": 100, "max_bytes": 500})
    >>> ending.cause({"round": 40, "uplink_bytes": 300, "downlink_bytes": 250})
    'max_bytes'
    """

    limits: Mapping[str, float]
    stop_at: Target | None = None

    def share(self, counts: Row) -> float:
        """How much of the limit that is nearest to being reached is spent, in a row or at the end of an iteration."""
        return max(self._spent(key, counts) / limit for key, limit in self.limits.items())

    def spent(self, counts: Row) -> bool:
        """Whether a limit is reached, in a row or at the end of an iteration."""
        return any(self._spent(key, counts) >= limit for key, limit in self.limits.items())

    def met(self, row: Row) -> bool:
        """Whether an evaluation meets `stop_at`."""
        value = None if self.stop_at is None else number(row, self.stop_at.column)
        return value is not None and self.stop_at is not None and self.stop_at.met(value)

    def over(self, row: Row) -> bool:
        """Whether a run whose latest evaluation this is has ended as it should."""
        return self.spent(row) or self.met(row)

    def cause(self, row: Row) -> str | None:
        """The key of `[run]` that has ended a run with this row before its rounds or iterations; None: no other has."""
        reached = [key for key, limit in self.limits.items() if self._spent(key, row) >= limit]
        if any(key in GOALS for key in reached):
            return None
        return "stop_at" if self.met(row) else next(iter(reached), None)

    @staticmethod
    def _spent(key: str, counts: Row) -> float:
        return sum(number(counts, column) or 0.0 for column in _COUNTS[key])


@dataclass(frozen=True)
class Ends:
    """How runs have ended, by label and seed: `broken_off` before they should have, `early` as `Ending.cause` says."""

    broken_off: frozenset[tuple[str, object]] = frozenset()
    early: frozenset[tuple[str, object]] = frozenset()


WHOLE = Ends()
"""Every run has reached its rounds or iterations."""


def ends_of(ending: Ending, rows: Iterable[Row], planned: Iterable[tuple[str, object]] = ()) -> Ends:
    """How the runs of a history have ended that go by this rule; a planned one without a row counts as broken off.

    Runs of which it says nothing have reached their rounds or iterations.
    """
    last: dict[tuple[str, object], Row] = {key: {} for key in planned}
    last |= {(label, seed): run[-1] for label, by_seed in runs(rows).items() for seed, run in by_seed.items()}
    early = (key for key, row in last.items() if ending.cause(row) is not None)
    return Ends(frozenset(key for key, row in last.items() if not ending.over(row)), frozenset(early))

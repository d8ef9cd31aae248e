"""What a logger is to the runs: something that takes up one stream of rows per algorithm and seed."""

from __future__ import annotations

import hashlib
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedbilevel.results.history import Row
from server.running.plan import Job

State = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class About:
    """A run as its loggers know it. directory: its run directory; mark: tells that directory from all others."""

    job: Job
    directory: Path
    mark: str

    @property
    def name(self) -> str:
        """Label and seed, which also name its files."""
        return self.job.name

    @property
    def id(self) -> str:
        """The same whenever this run goes on, and no other run's: letters, digits and a dash."""
        return f"{self.mark}-{hashlib.blake2b(self.name.encode(), digest_size=6).hexdigest()}"

    @property
    def config(self) -> dict[str, object]:
        """What the run was asked to do: problem, algorithm, label, seed, and the algorithm's options."""
        job = self.job
        own = job.options.model_dump(mode="json", exclude_none=True)
        named = {"algorithm": job.entry.name, "label": job.label, "seed": job.seed}
        return {"problem": job.config.problem.name, **named, **{f"options.{key}": value for key, value in own.items()}}


class Stream(ABC):
    """One run's rows on their way to a logger; held: the last round that the logger has, -1 of none."""

    held: int = -1

    @abstractmethod
    def write(self, round: int, values: Mapping[str, float]) -> None:
        """Let the logger have a row at once. Raises whatever the logger raises."""

    @abstractmethod
    def end(self, state: State) -> None:
        """Nothing more comes, at least for now."""


class Backend(ABC):
    """A logger. Made when its package is there; nothing is written before a stream begins."""

    @abstractmethod
    def begin(self, about: About) -> Stream:
        """Begin a run's stream, or go on with the one that an earlier session has begun."""

    def close(self) -> None:  # noqa: B027  # most have nothing to do
        """The session ends, and with it all streams have: wait until everything is where it should be."""


def values(row: Row) -> dict[str, float]:
    """The numbers of a row by column: all that has a value but the seed, which names the run.

    >>> values({"algorithm": "aggitd", "seed": 3, "round": 12, "upper_loss": 0.5, "test_accuracy": None})
    {'round': 12.0, 'upper_loss': 0.5}
    """
    return {
        column: float(value) for column, value in row.items() if column != "seed" and isinstance(value, numbers.Real)
    }

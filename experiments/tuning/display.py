"""What a person sees while trials go on: a line for each that is done, and on a terminal a bar for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn

from experiments.terminal import fancy, say
from experiments.tuning.outcome import by_label, found, options_of
from server.running.experiment import Observer
from server.tuning.study import Tried, Tuning, winner

if TYPE_CHECKING:
    from rich.console import Console


class Display(Observer):
    """A line for every trial that is done, and on a terminal a bar for all of them."""

    def __init__(self, console: Console, tuning: Tuning, before: Sequence[Tried], progress: Progress | None) -> None:
        self.console, self._tuning, self._progress = console, tuning, progress
        self._total = sum(map(tuning.trials_of, tuning.spaces))
        self._done = len(before)
        self._best = {label: winner(mine) for label, mine in by_label(tuning, before).items()}
        self._bar = None if progress is None else progress.add_task("trials", total=self._total, completed=self._done)

    def told(self, tried: Tried) -> None:
        """A trial is done."""
        self._done += 1
        best = winner([each for each in (self._best[tried.label], tried) if each is not None])
        self._best[tried.label] = best
        facts = [options_of(tried), f"{found(self._tuning, tried)} after {tried.trial.rounds} rounds"]
        if best is not None:
            facts.append(f"best {found(self._tuning, best)}")
        say(self.console, f"[{self._done}/{self._total}] {tried.label}, trial {tried.number}: {'; '.join(facts)}")
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=self._done, description=f"trial {self._done} of {self._total}")


@contextmanager
def display(console: Console, tuning: Tuning, before: Sequence[Tried]) -> Iterator[Display]:
    """The display for this console; whatever happens inside, the terminal is left clean."""
    if not fancy(console):
        yield Display(console, tuning, before, None)
        return
    columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
    with Progress(*columns, console=console, refresh_per_second=5, transient=True) as progress:
        yield Display(console, tuning, before, progress)

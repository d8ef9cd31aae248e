"""`fedbilevel tune`: find each algorithm's options on seeds of their own, and write the config that has them."""

from __future__ import annotations

import csv
import io
import itertools
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn

from experiments.reading.report import print_files
from experiments.terminal import busy, complain, fancy, print_table, say
from fedbilevel.config.tables import Config, read, write
from fedbilevel.config.tune import Range, TuneTable
from fedbilevel.errors import BadInput
from fedbilevel.figures.sensitivity import Panel, Points, draw_sensitivity
from fedbilevel.machine.device import chosen
from fedbilevel.results.files import write_whole
from fedbilevel.results.targets import named
from server.running.experiment import Observer
from server.tuning.space import edge, with_options
from server.tuning.study import JOURNAL, Tried, Tuning, winner

if TYPE_CHECKING:
    from rich.console import Console

TUNED = "tuned.toml"


def run_tune(path: Path, overrides: Sequence[str], out: Path, trials: int | None, console: Console) -> int:
    """Tune every algorithm of a config in a folder, new or with the beginning of this very tuning.

    Writes `trials.csv` after every trial, and at the end `tuned.toml` and the figure `sensitivity`; prints the winners
    and what to make of them. Returns the exit status: 1 where some algorithm has no trial that came to its end.

    Raises BadInput for a config, ranges or a folder that cannot be used.
    """
    config = read(path, overrides)
    chosen(config.run.device)
    if trials is not None:
        if trials < 1:
            raise BadInput("--trials", trials, "an integer of at least 1")
        table = (config.tune or TuneTable()).model_copy(update={"trials": trials})
        config = config.model_copy(update={"tune": table})
    tuning = Tuning(config)
    with busy("looking over the problem"):
        tuning.check()
    _open(out)
    tried = _before(tuning, out)
    _write_trials(tuning, tried, out)
    try:
        with _display(console, tuning, tried) as display:

            def told(trial: Tried) -> None:
                tried.append(trial)
                _write_trials(tuning, tried, out)
                display.told(trial)

            tuning.run(out, display, told)
    except KeyboardInterrupt as interrupt:
        complain(f"interrupted; go on with the same command and --out {shlex.quote(str(out))}")
        return 130 if type(interrupt) is KeyboardInterrupt else 143
    winners = {label: winner(mine) for label, mine in _by_label(tuning, tried).items()}
    write_whole(out / TUNED, write(tuned(config, tuning, winners)).encode())
    _draw(tuning, tried, winners, out)
    _report(tuning, tried, winners, console)
    print_files(console, out)
    return 1 if any(best is None and tuning.spaces[label] for label, best in winners.items()) else 0


def tuned(config: Config, tuning: Tuning, winners: dict[str, Tried | None]) -> Config:
    """The config with the winners' options in their own tables, and without `[tune]`."""
    for label, best in winners.items():
        if best is not None:
            config = with_options(config, label, best.options, tuning.entries[label])
    return config.model_copy(update={"tune": None})


def _open(out: Path) -> None:
    """Raises BadInput for a folder with something else in it."""
    allowed = "a new or an empty folder, or that of a tuning to go on with"
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = any(out.iterdir()) and not (out / JOURNAL).is_file()
    except OSError as error:
        raise BadInput("--out", str(out), f"{allowed} ({error.strerror})") from error
    if there:
        raise BadInput("--out", str(out), allowed)


def _before(tuning: Tuning, out: Path) -> list[Tried]:
    try:
        return tuning.held(out)
    except BadInput as error:
        raise BadInput("--out", error.value, error.allowed) from error


def _by_label(tuning: Tuning, tried: Sequence[Tried]) -> dict[str, list[Tried]]:
    return {label: [each for each in tried if each.label == label] for label in tuning.spaces}


# ---- what is written ----


def _write_trials(tuning: Tuning, tried: Sequence[Tried], out: Path) -> None:
    """Write `trials.csv`: a row for every trial, algorithm by algorithm; a column for every option that has a range."""
    options = list(dict.fromkeys(name for space in tuning.spaces.values() for name in space))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["algorithm", "trial", *options, "objective", "value", "reached", "rounds", "state"])
    for each in itertools.chain(*_by_label(tuning, tried).values()):
        given = [each.options.get(name, "") for name in options]
        trial = each.trial
        found = ["" if value is None else repr(value) for value in (trial.objective, trial.value)]
        writer.writerow([each.label, each.number, *given, *found, trial.reached, trial.rounds, trial.outcome])
    write_whole(out / "trials.csv", text.getvalue().encode())


def _draw(tuning: Tuning, tried: Sequence[Tried], winners: dict[str, Tried | None], out: Path) -> None:
    panels = {}
    for label, mine in _by_label(tuning, tried).items():
        best, goal = winners[label], tuning.goal
        reached = any(each.trial.objective is not None for each in mine)
        found = [each.trial.objective if reached else each.trial.value for each in mine]
        points = [
            Points(
                name,
                [(each.options[name], value) for each, value in zip(mine, found, strict=True)],
                None if best is None else best.options[name],
                (float(given.low), float(given.high)) if isinstance(given, Range) else None,
                isinstance(given, Range) and given.log,
            )
            for name, given in tuning.spaces[label].items()
        ]
        at_end = named(goal.column) if goal.column else "measure at the end"
        value = f"best {named(goal.target.column)}" if goal.target is not None else at_end
        panels[label] = Panel(named(goal.spent) if reached and goal.spent is not None else value, points)
    draw_sensitivity(panels, out, title=tuning.config.title, about=tuning.goal.text)


# ---- what is said ----


def _options(tried: Tried) -> str:
    return ", ".join(f"{name} = {_shown(value)}" for name, value in tried.options.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _found(tuning: Tuning, tried: Tried) -> str:
    trial = tried.trial
    if trial.objective is not None:
        return f"{trial.objective:.6g}"
    if trial.outcome != "complete":
        return "given up" if trial.outcome == "stopped" else "failed"
    return "not reached"


def _report(tuning: Tuning, tried: Sequence[Tried], winners: dict[str, Tried | None], console: Console) -> None:
    seeds = tuning.trial_config.run.seeds
    target = tuning.goal.target.text if tuning.goal.target is not None else ""
    say(console, "")
    say(console, f"{tuning.goal.text}, median of the seeds {', '.join(map(str, seeds))}", "bold")
    rows, remarks = [], []
    for label, mine in _by_label(tuning, tried).items():
        best = winners[label]
        if not tuning.spaces[label]:
            remarks.append(f"{label}: no option has a range; its options stay as they are")
            continue
        if best is None:
            remarks.append(f"{label}: no trial came to its end; its options stay as they are")
            continue
        trial = best.trial
        value = "—" if trial.value is None else f"{trial.value:.5g}"
        reached = f"{trial.reached}/{len(seeds)}" if tuning.goal.target is not None else "—"
        rows.append([label, _options(best), _found(tuning, best), value, reached, str(len(mine))])
        if trial.objective is None:
            remarks.append(f"{label}: no trial reached {target}; taken is the best value")
        for name, given in tuning.spaces[label].items():
            if isinstance(given, Range) and (text := edge(label, name, given, best.options[name])) is not None:
                remarks.append(text)
    if rows:
        print_table(console, ["algorithm", "options", "objective", "value", "reached", "trials"], rows, words=2)
    for remark in remarks:
        say(console, remark, "yellow" if fancy(console) else "")


class Display(Observer):
    """A line for every trial that is done, and on a terminal a bar for all of them."""

    def __init__(self, console: Console, tuning: Tuning, before: Sequence[Tried], progress: Progress | None) -> None:
        self.console, self._tuning, self._progress = console, tuning, progress
        self._total = sum(map(tuning.trials_of, tuning.spaces))
        self._done = len(before)
        self._best = {label: winner(mine) for label, mine in _by_label(tuning, before).items()}
        self._bar = None if progress is None else progress.add_task("trials", total=self._total, completed=self._done)

    def told(self, tried: Tried) -> None:
        """A trial is done."""
        self._done += 1
        best = winner([each for each in (self._best[tried.label], tried) if each is not None])
        self._best[tried.label] = best
        facts = [_options(tried), f"{_found(self._tuning, tried)} after {tried.trial.rounds} rounds"]
        if best is not None:
            facts.append(f"best {_found(self._tuning, best)}")
        say(self.console, f"[{self._done}/{self._total}] {tried.label}, trial {tried.number}: {'; '.join(facts)}")
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=self._done, description=f"trial {self._done} of {self._total}")


@contextmanager
def _display(console: Console, tuning: Tuning, before: Sequence[Tried]) -> Iterator[Display]:
    """The display for this console; whatever happens inside, the terminal is left clean."""
    if not fancy(console):
        yield Display(console, tuning, before, None)
        return
    columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
    with Progress(*columns, console=console, refresh_per_second=5, transient=True) as progress:
        yield Display(console, tuning, before, progress)

"""What a tuning has found: trials.csv, the figure of the trials, and the table of the winners."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.terminal import fancy, print_table, say
from fedbilevel.config.tune import Range
from fedbilevel.figures.sensitivity import Panel, Points, draw_sensitivity
from fedbilevel.results.files import write_whole
from fedbilevel.results.targets import named
from server.tuning.space import edge
from server.tuning.study import Tried, Tuning

if TYPE_CHECKING:
    from rich.console import Console

Winners = Mapping[str, Tried | None]
"""By label: the best trial, None where none came to its end."""


def by_label(tuning: Tuning, tried: Sequence[Tried]) -> dict[str, list[Tried]]:
    """The trials of each algorithm."""
    return {label: [each for each in tried if each.label == label] for label in tuning.spaces}


def write_trials(tuning: Tuning, tried: Sequence[Tried], path: Path) -> None:
    """Write a row for every trial, algorithm by algorithm; a column for every option that has a range."""
    options = list(dict.fromkeys(name for space in tuning.spaces.values() for name in space))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["algorithm", "trial", *options, "objective", "value", "reached", "rounds", "state"])
    for each in itertools.chain(*by_label(tuning, tried).values()):
        given = [each.options.get(name, "") for name in options]
        trial = each.trial
        results = ["" if value is None else repr(value) for value in (trial.objective, trial.value)]
        writer.writerow([each.label, each.number, *given, *results, trial.reached, trial.rounds, trial.outcome])
    write_whole(path, text.getvalue().encode())


def draw_trials(tuning: Tuning, tried: Sequence[Tried], winners: Winners, out: Path) -> None:
    """Draw what each option's values came to, into the folder."""
    panels = {}
    for label, mine in by_label(tuning, tried).items():
        best, goal = winners[label], tuning.goal
        reached = any(each.trial.objective is not None for each in mine)
        values = [each.trial.objective if reached else each.trial.value for each in mine]
        points = [
            Points(
                name,
                [(each.options[name], value) for each, value in zip(mine, values, strict=True)],
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


def options_of(tried: Tried) -> str:
    """The options of a trial in words."""
    return ", ".join(f"{name} = {_shown(value)}" for name, value in tried.options.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def found(tuning: Tuning, tried: Tried) -> str:
    """What a trial has found, in a word."""
    trial = tried.trial
    if trial.objective is not None:
        return f"{trial.objective:.6g}"
    if trial.outcome != "complete":
        return "given up" if trial.outcome == "stopped" else "failed"
    return "not reached"


def print_outcome(tuning: Tuning, tried: Sequence[Tried], winners: Winners, console: Console) -> None:
    """Print the winners and what to make of them."""
    seeds = tuning.trial_config.run.seeds
    target = tuning.goal.target.text if tuning.goal.target is not None else ""
    say(console, "")
    say(console, f"{tuning.goal.text}, median of the seeds {', '.join(map(str, seeds))}", "bold")
    rows, remarks = [], []
    for label, mine in by_label(tuning, tried).items():
        best = winners[label]
        if not tuning.spaces[label]:
            why = "fixed" if label in tuning.table.fixed else "no option has a range"
            remarks.append(f"{label}: {why}; its options stay as they are")
            continue
        if best is None:
            remarks.append(f"{label}: no trial came to its end; its options stay as they are")
            continue
        trial = best.trial
        value = "—" if trial.value is None else f"{trial.value:.5g}"
        reached = f"{trial.reached}/{len(seeds)}" if tuning.goal.target is not None else "—"
        rows.append([label, options_of(best), found(tuning, best), value, reached, str(len(mine))])
        if trial.objective is None:
            remarks.append(f"{label}: no trial reached {target}; taken is the best value")
        for name, given in tuning.spaces[label].items():
            if isinstance(given, Range) and (text := edge(label, name, given, best.options[name])) is not None:
                remarks.append(text)
    if rows:
        print_table(console, ["algorithm", "options", "objective", "value", "reached", "trials"], rows, words=2)
    for remark in remarks:
        say(console, remark, "yellow" if fancy(console) else "")

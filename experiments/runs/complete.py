"""Carry a run directory's config out, with the display, and say what came out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from experiments.live.backend import Backend
from experiments.live.loggers import Live
from experiments.process import Terminated
from experiments.reading.report import print_crossed, print_files, print_judgement, print_summary, print_unseen
from experiments.runs.launch import launched
from experiments.runs.progress import display
from experiments.runs.remarks import after
from experiments.terminal import busy, complain, say, stdout
from fedbilevel.config.tables import Config
from fedbilevel.report import RunDirectory
from fedbilevel.results import summarise
from server.running.experiment import Experiment, Several
from server.running.plan import check_problem


def execute(
    config: Config,
    directory: RunDirectory,
    ray_address: str | None,
    jobs: int | None,
    loggers: Mapping[str, Backend],
    *,
    restore: bool,
) -> int:
    """Run a config's algorithms into a run directory, from the beginning or where it was; the exit status."""
    with launched(config, directory, ray_address, jobs) as experiment:
        return complete(experiment, loggers, restore=restore)


def complete(experiment: Experiment, loggers: Mapping[str, Backend], *, restore: bool) -> int:
    """Run what a run directory still lacks, with the display and these loggers, and say what came out."""
    config, directory, console = experiment.config, experiment.directory, stdout()
    if restore:
        with busy("looking over what is there"):
            experiment.restore()
            check_problem(experiment.pending())
        if not experiment.pending():
            say(console, f"{directory.path}: every run is finished")
            scratch = directory.path / "checkpoints"
            if scratch.is_dir() or not directory.is_finished(
                experiment.history(), config.run.targets, config.algorithms
            ):
                experiment.run()  # it was interrupted at the last step: the summary and the figures may be missing
            return 0
    try:
        with display(console) as shown, Live(experiment, loggers, shown.note) as live:
            experiment.observer = Several(shown, live)
            failures = experiment.run()
    except KeyboardInterrupt as interrupt:
        complain(f"interrupted; go on with: fedbilevel resume {shlex.quote(str(directory.path))}")
        return 143 if isinstance(interrupt, Terminated) else 130
    say(console, "")
    rows = experiment.history()
    print_summary(console, summarise(rows, config.run.targets))
    print_judgement(console, rows, config.run.targets)
    print_crossed(console, rows, config)
    print_unseen(console, rows)
    for remark in after(rows):
        say(console, remark)
    print_files(console, directory.path)
    for _, error in failures:
        complain(str(error))
    return 1 if failures else 0

"""The command line. Exit status: 0 done, 1 a run failed, 2 bad input (one line on stderr), 130 interrupted.

What is slow to import (torch, matplotlib) is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import click
import typer
from typer.core import TyperCommand

from experiments.terminal import busy, complain, say, stdout

if TYPE_CHECKING:
    from fedbilevel.config.tables import Config
    from fedbilevel.report import RunDirectory
    from server.running.experiment import Experiment

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="A config, or the name of a packaged one: see fedbilevel list.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; the value is TOML, or a plain string."),
]
Engine = Annotated[str | None, typer.Option(help="What carries the messages: see fedbilevel list.")]
RayAddress = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Join this Ray cluster (or: auto), for --engine ray or --jobs.")
]
Jobs = Annotated[int | None, typer.Option(metavar="N", help="Run N algorithms or seeds at a time, as Ray tasks.")]


class Command(TyperCommand):
    """A command whose plain help does not show the backslashes that typer puts there for rich."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        super().format_help(ctx, formatter)
        formatter.buffer[:] = [text.replace("\\[", "[") for text in formatter.buffer]


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as Ctrl-C does."""


# ---- the commands ----


@app.callback(invoke_without_command=True)
def fedbilevel(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Simulate federated bilevel optimisation: AggITD, AID (FedNest) and first-order methods, exact and counted."""
    if version:
        from fedbilevel import __version__

        say(stdout(), f"fedbilevel {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(cls=Command)
def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The file to write.")] = Path("experiment.toml"),
    problem: Annotated[str, typer.Option(metavar="NAME", help="See fedbilevel list.")] = "hyper_representation",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a config to begin with, which runs as it is and says what every key means."""
    from experiments.init import run_init

    run_init(path, problem, stdout(), force=force)


@app.command(cls=Command)
def run(
    config_file: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the results.  [default: runs/NAME-TIME]")
    ] = None,
    engine: Engine = None,
    ray_address: RayAddress = None,
    jobs: Jobs = None,
) -> int:
    """Run every algorithm of a config for every seed."""
    from experiments.launch import carried
    from experiments.remarks import before
    from fedbilevel.config.tables import read
    from fedbilevel.errors import BadInput, RunFailed
    from server.running.plan import check_problem, plan, written

    config = carried(read(config_file, overrides or ()), engine, ray_address, jobs)
    planned = plan(config)
    text = written(config)
    with busy("looking over the problem"):
        check_problem(planned)
        remarks = before(config, planned)
    for remark in remarks:
        say(stdout(), remark)
    directory = _create(out or _unused(config_file.stem))
    try:
        directory.write_config(text)
        directory.write_history([])
        return _execute(config, directory, ray_address, jobs, restore=False)
    except (BadInput, RunFailed):  # of a start that was refused nothing stays that would block the next
        directory.discard()
        raise


@app.command(cls=Command)
def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run directory.")],
    engine: Engine = None,
    ray_address: RayAddress = None,
    jobs: Jobs = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Execute the problem and algorithm files that it names, wherever they are.")
    ] = False,
) -> int:
    """Go on with a run that was interrupted, where it was."""
    from experiments.launch import carried
    from experiments.trust import hold_trusted
    from fedbilevel.config.tables import read
    from fedbilevel.report import RunDirectory

    directory = RunDirectory.open(folder)
    config = carried(read(directory.config_path), engine, ray_address, jobs)
    for file in hold_trusted(config, directory.path, trust=trust):
        say(stdout(), f"executes {file}")
    return _execute(config, directory, ray_address, jobs, restore=True)


@app.command(cls=Command)
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the summary and the figures.")
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(metavar="rounds|bytes|seconds|wall", help="What is spent; seconds: simulated."),
    ] = None,
    y: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What the figure shows: of history.csv; error: 1 - accuracy.")
    ] = None,
    log_x: Annotated[bool, typer.Option("--log-x", help="A logarithmic x axis.")] = False,
    log_y: Annotated[
        bool | None, typer.Option("--log-y/--linear-y", help="The y axis; default: as the values are.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="text|markdown|latex|csv", help="How the tables are printed.")
    ] = "text",
    anyway: Annotated[bool, typer.Option("--anyway", help="Also compare runs of different problems.")] = False,
) -> None:
    """Redraw a run's summary and figures, or compare several runs of one problem."""
    from experiments.report import FORMATS, Looks
    from experiments.report import report as write_report
    from fedbilevel.errors import BadInput, unknown
    from fedbilevel.figures.curves import X_AXES

    axis = next((axis for axis in X_AXES if axis == x), None)
    chosen = next((each for each in FORMATS if each == form), None)
    if x is not None and axis is None:
        raise unknown("--x", x, X_AXES)
    if chosen is None:
        raise unknown("--format", form, FORMATS)
    try:
        write_report(folders, out, stdout(), looks=Looks(axis, y, log_x, log_y), form=chosen, anyway=anyway)
    except BadInput as error:
        raise _of_option(error) from error


@app.command("list", cls=Command)
def list_names(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show what this algorithm, problem or partition takes.")
    ] = None,
) -> None:
    """List the names to use in a config, or what one of them takes."""
    from experiments import catalogue

    if name is None:
        catalogue.print_names(stdout())
    else:
        catalogue.print_options(stdout(), name)


@app.command(cls=Command)
def check(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Your problem; default: the quadratic one.")
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Hold hypergradients against a dense solve: of every estimator, and of a config's algorithms as they are set."""
    from experiments.check import run_check

    return 0 if run_check(config_file, overrides or [], stdout()) else 1


@app.command(cls=Command)
def memory(
    config_file: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[
        str, typer.Option(metavar="N,N,...", help="Inner steps: local_steps, or the horizon and steps of a flow.")
    ] = "10,30,100,300,1000",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder for memory.csv and the figure.")] = None,
) -> int:
    """Measure the peak memory of a client's meta-gradient against the number of inner steps."""
    from experiments.memory import run_memory
    from fedbilevel.errors import BadInput

    counts = [int(part) for part in steps.split(",") if part.strip().isdecimal()]
    if len(counts) != len(steps.split(",")) or min(counts) < 1:
        raise BadInput("--steps", steps, "integers of at least 1 with commas between them")
    try:
        failures = run_memory(config_file, overrides or [], out, counts, stdout())
    except BadInput as error:
        raise _of_option(error) from error
    for failure in failures:
        complain(str(failure))
    return 1 if failures else 0


@app.command(cls=Command)
def tune(
    config_file: ConfigFile,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Trials of each algorithm, instead of 16.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder, or that of a tuning that was interrupted.")
    ] = None,
    then_run: Annotated[bool, typer.Option("--then-run", help="Run tuned.toml into DIR/run.")] = False,
) -> int:
    """Find good options for every algorithm, on seeds of their own: see the table [tune]."""
    from experiments.tune import TUNED, run_tune

    folder = out or _unused(f"{config_file.stem}-tune")
    status = run_tune(config_file, overrides or (), folder, trials, stdout())
    return status or (run(folder / TUNED, out=folder / "run") if then_run else 0)


# ---- their parts ----


def _unused(stem: str) -> Path:
    """A folder below runs/ that is not there yet."""
    plain = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (plain.with_name(f"{plain.name}-{number}") for number in range(2, 1000))
    return plain if not plain.exists() else next(path for path in numbered if not path.exists())


def _create(out: Path) -> RunDirectory:
    from fedbilevel.errors import BadInput
    from fedbilevel.report import RunDirectory

    try:
        return RunDirectory.create(out)
    except BadInput as error:
        raise _of_option(error) from error


def _of_option(error: Exception) -> Exception:
    """The same error; what is wrong with `out` was typed as --out."""
    from fedbilevel.errors import BadInput

    typed = {"out": "--out", "column": "--y", "log_y": "--log-y"}
    if isinstance(error, BadInput) and error.key in typed:
        return BadInput(typed[error.key], error.value, error.allowed)
    return error


def _execute(
    config: Config, directory: RunDirectory, ray_address: str | None, jobs: int | None, *, restore: bool
) -> int:
    from experiments.launch import launched

    with launched(config, directory, ray_address, jobs) as experiment:
        return _complete(experiment, restore=restore)


def _complete(experiment: Experiment, *, restore: bool) -> int:
    """Run what a run directory still lacks, with the display, and say what came out."""
    from experiments.progress import display
    from experiments.remarks import after
    from experiments.report import print_files, print_summary, print_unseen
    from fedbilevel.results import summarise
    from server.running.plan import check_problem

    config, directory, console = experiment.config, experiment.directory, stdout()
    if restore:
        with busy("looking over what is there"):
            experiment.restore()
            check_problem(experiment.pending())
        if not experiment.pending():
            say(console, f"{directory.path}: every run is finished")
            scratch = directory.path / "checkpoints"
            if scratch.is_dir() or not directory.is_finished(experiment.history(), config.run.targets):
                experiment.run()  # it was interrupted at the last step: the summary and the figures may be missing
            return 0
    try:
        with display(console) as experiment.observer:
            failures = experiment.run()
    except KeyboardInterrupt as interrupt:
        complain(f"interrupted; go on with: fedbilevel resume {shlex.quote(str(directory.path))}")
        return 143 if isinstance(interrupt, Terminated) else 130
    say(console, "")
    rows = experiment.history()
    print_summary(console, summarise(rows, config.run.targets))
    print_unseen(console, rows)
    for remark in after(rows):
        say(console, remark)
    print_files(console, directory.path)
    for _, error in failures:
        complain(str(error))
    return 1 if failures else 0


# ---- the process ----


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM raises Terminated while this lasts."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _once(message: str) -> str:
    """Typer and click each add the hint to an unknown command."""
    hint = message[message.find(" Did you mean") :] if " Did you mean" in message else ""
    return (
        message.removesuffix(hint) + hint[: len(hint) // 2] if hint and hint == 2 * hint[: len(hint) // 2] else message
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter must not end a run
    # threads that wait spin by default, and two processes that do on two cores take ten times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, talks on stderr
    command = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _termination(), command.make_context("fedbilevel", given) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "fedbilevel"
        complain(f"{_once(error.format_message()).rstrip('.')} (see {asked} --help)")
        return 2
    except KeyboardInterrupt as interrupt:
        complain("interrupted")
        return 143 if isinstance(interrupt, Terminated) else 130
    except Exception as error:
        from fedbilevel.errors import BadInput, RunFailed

        if not isinstance(error, BadInput | RunFailed):
            raise
        complain(str(error))
        return 2 if isinstance(error, BadInput) else 1


if __name__ == "__main__":
    sys.exit(main())

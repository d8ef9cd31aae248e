"""The command line. Exit status: 0 done, 1 a run failed, 2 bad input (one line on stderr), 130 interrupted.

What is slow to import (torch, matplotlib) is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.completion import values
from experiments.process import Command, run_command_line
from experiments.terminal import busy, complain, say, stdout

if TYPE_CHECKING:
    from experiments.live.backend import Backend
    from fedbilevel.report import RunDirectory

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG.toml",
        help="A config, or the name of a packaged one: see fedbilevel list.",
        autocompletion=values.configs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Override a key; the value is TOML, or a plain string.",
        autocompletion=values.overrides,
    ),
]
Engine = Annotated[
    str | None, typer.Option(help="What carries the messages: see fedbilevel list.", autocompletion=values.engines)
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Join this Ray cluster (or: auto), for --engine ray or --jobs.")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write every row to TensorBoard files in the folder.")]
WandB = Annotated[bool, typer.Option("--wandb", help="Send every row to Weights & Biases.")]
MLflow = Annotated[bool, typer.Option("--mlflow", help="Send every row to MLflow, or to its file in the folder.")]
Jobs = Annotated[int | None, typer.Option(metavar="N", help="Run N algorithms or seeds at a time, as Ray tasks.")]


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
    problem: Annotated[
        str, typer.Option(metavar="NAME", help="See fedbilevel list.", autocompletion=values.problems)
    ] = "hyper_representation",
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
    tensorboard: TensorBoard = False,
    wandb: WandB = False,
    mlflow: MLflow = False,
) -> int:
    """Run every algorithm of a config for every seed."""
    from experiments.runs.complete import execute
    from experiments.runs.launch import carried
    from experiments.runs.remarks import before
    from fedbilevel.config.tables import read
    from fedbilevel.errors import BadInput, RunFailed
    from server.running.plan import check_problem, plan, written

    config = carried(read(config_file, overrides or ()), engine, ray_address, jobs)
    planned = plan(config)
    text = written(config)
    loggers = _loggers(tensorboard=tensorboard, wandb=wandb, mlflow=mlflow)
    with busy("looking over the problem"):
        check_problem(planned)
        remarks = before(config, planned)
    for remark in remarks:
        say(stdout(), remark)
    directory = _create(out or _unused(config_file.stem))
    try:
        directory.write_config(text)
        directory.write_history([])
        return execute(config, directory, ray_address, jobs, loggers, restore=False)
    except (BadInput, RunFailed):  # of a start that was refused nothing stays that would block the next
        directory.discard()
        raise


@app.command(cls=Command)
def resume(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The run directory, or the folder of a tuning.", autocompletion=values.run_directories
        ),
    ],
    engine: Engine = None,
    ray_address: RayAddress = None,
    jobs: Jobs = None,
    tensorboard: TensorBoard = False,
    wandb: WandB = False,
    mlflow: MLflow = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Execute the problem and algorithm files that it names, wherever they are.")
    ] = False,
) -> int:
    """Go on with a run or a tuning that was interrupted, where it was."""
    from server.tuning.journal import JOURNAL

    if (folder / JOURNAL).is_file():
        from experiments.tuning.command import resume_tune
        from fedbilevel.errors import BadInput

        if engine not in (None, "local"):
            raise BadInput("--engine", engine, "local, on which trials run")
        for option, given in (("--tensorboard", tensorboard), ("--wandb", wandb), ("--mlflow", mlflow)):
            if given:
                raise BadInput(option, str(folder), "a run directory, not the folder of a tuning")
        return resume_tune(folder, stdout(), jobs=jobs, ray_address=ray_address, trust=trust)
    from experiments.runs.complete import execute
    from experiments.runs.launch import carried
    from experiments.runs.trust import hold_trusted
    from fedbilevel.config.tables import read
    from fedbilevel.report import RunDirectory

    directory = RunDirectory.open(folder)
    config = carried(read(directory.config_path), engine, ray_address, jobs)
    for file in hold_trusted(config, directory.path, trust=trust):
        say(stdout(), f"executes {file}")
    loggers = _loggers(tensorboard=tensorboard, wandb=wandb, mlflow=mlflow)
    return execute(config, directory, ray_address, jobs, loggers, restore=True)


@app.command(cls=Command)
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Run directories.", autocompletion=values.run_directories)
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the summary and the figures.")
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(
            metavar="rounds|bytes|seconds|wall|gradients|epsilon",
            help="What is spent; seconds: simulated.",
            autocompletion=values.axes,
        ),
    ] = None,
    y: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="What the figure shows: of history.csv; error: 1 - accuracy.",
            autocompletion=values.columns,
        ),
    ] = None,
    log_x: Annotated[bool, typer.Option("--log-x", help="A logarithmic x axis.")] = False,
    log_y: Annotated[
        bool | None, typer.Option("--log-y/--linear-y", help="The y axis; default: as the values are.")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="text|markdown|latex|csv",
            help="How the tables are printed.",
            autocompletion=values.formats,
        ),
    ] = "text",
    anyway: Annotated[bool, typer.Option("--anyway", help="Also compare runs of different problems.")] = False,
) -> None:
    """Redraw a run's summary and figures, or compare several runs of one problem."""
    from experiments.reading.report import FORMATS, Looks
    from experiments.reading.report import report as write_report
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
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show what the algorithm, problem, data set, ... of this name takes.",
            autocompletion=values.listed,
        ),
    ] = None,
) -> None:
    """List the names to use in a config, or what one of them takes."""
    from experiments.catalogue import names

    if name is None:
        names.print_names(stdout())
    else:
        names.print_options(stdout(), name)


@app.command(cls=Command)
def check(
    config_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG.toml]", help="Your problem; default: the quadratic one.", autocompletion=values.configs
        ),
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Hold hypergradients against a dense solve: of every estimator, and of a config's algorithms as they are set."""
    from experiments.checks.estimators import run_check

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
def uncertainty(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The run directory.", autocompletion=values.run_directories)
    ],
    tasks: Annotated[int, typer.Option(metavar="N", help="Unseen tasks of each seed.")] = 600,
    training: Annotated[
        int, typer.Option(metavar="N", help="Tasks of each client on which temperatures are fitted.")
    ] = 50,
    samples: Annotated[int, typer.Option(metavar="N", help="Draws of a posterior.")] = 30,
    ensembles: Annotated[int, typer.Option(metavar="K", help="Also ensembles of K seeds, without a posterior.")] = 1,
    trust: Annotated[
        bool, typer.Option("--trust", help="Execute the problem and algorithm files that it names, wherever they are.")
    ] = False,
) -> None:
    """Say how far finished runs can be trusted on unseen tasks: likelihood, calibration, risk against coverage."""
    from experiments.uncertainty import run_uncertainty
    from fedbilevel.errors import BadInput
    from server.uncertainty.study import Study

    least_of = {"tasks": (tasks, 2), "training": (training, 1), "samples": (samples, 2), "ensembles": (ensembles, 1)}
    for option, (value, least) in least_of.items():
        if value < least:
            raise BadInput(f"--{option}", value, f"an integer of at least {least}")
    run_uncertainty(folder, Study(tasks, training, samples, ensembles), stdout(), trust=trust)


@app.command(cls=Command)
def tune(
    config_file: ConfigFile,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Trials of each algorithm, instead of 16.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder, or that of a tuning that was interrupted.")
    ] = None,
    then_run: Annotated[bool, typer.Option("--then-run", help="Run tuned.toml into DIR/run.")] = False,
    ray_address: RayAddress = None,
    jobs: Jobs = None,
) -> int:
    """Find good options for every algorithm, on seeds of their own: see the table [tune]."""
    from experiments.tuning.command import TUNED, run_tune

    folder = out or _unused(f"{config_file.stem}-tune")
    status = run_tune(config_file, overrides or (), folder, trials, stdout(), jobs=jobs, ray_address=ray_address)
    return status or (run(folder / TUNED, out=folder / "run", jobs=jobs, ray_address=ray_address) if then_run else 0)


@app.command(cls=Command)
def deal(
    config_file: ConfigFile,
    nodes: Annotated[int, typer.Option(metavar="N", help="SuperNodes: each gets a block of the clients.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for node-0.npz, ..., and server.npz.")],
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="Of the run; default: the config's first.")] = None,
) -> None:
    """Cut a config's data into files, one per node of a deployment, and one for its server without any example."""
    from experiments.deal import run_deal

    run_deal(config_file, overrides or [], nodes, out, seed, stdout())


# ---- their parts ----


def _unused(stem: str) -> Path:
    """A folder below runs/ that is not there yet."""
    plain = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (plain.with_name(f"{plain.name}-{number}") for number in range(2, 1000))
    return plain if not plain.exists() else next(path for path in numbered if not path.exists())


def _loggers(**asked: bool) -> dict[str, Backend]:
    """The loggers asked for, each by its option."""
    from experiments.live.loggers import loggers

    return loggers(name for name, wanted in asked.items() if wanted)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status."""
    return run_command_line(app, arguments)


if __name__ == "__main__":
    sys.exit(main())

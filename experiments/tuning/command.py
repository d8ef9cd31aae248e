"""`fedbilevel tune`, and `fedbilevel resume` of a tuning: each algorithm's options, found on seeds of their own."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.process import Terminated
from experiments.reading.report import print_files
from experiments.runs.launch import as_typed, carried
from experiments.runs.trust import hold_trusted
from experiments.terminal import busy, complain, say
from experiments.tuning.display import display
from experiments.tuning.outcome import Winners, by_label, draw_trials, print_outcome, write_trials
from fedbilevel.config.tables import Config, read, write
from fedbilevel.config.tune import TuneTable
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.results.files import write_whole
from server.tuning.journal import JOURNAL
from server.tuning.space import with_options
from server.tuning.study import Study, Tried, Tuning, run_in_turn, winner

if TYPE_CHECKING:
    from rich.console import Console

CONFIG, TRIALS, TUNED = "config.toml", "trials.csv", "tuned.toml"


def run_tune(
    path: Path,
    overrides: Sequence[str],
    out: Path,
    trials: int | None,
    console: Console,
    *,
    jobs: int | None = None,
    ray_address: str | None = None,
) -> int:
    """Tune every algorithm of a config in a folder, new or with the beginning of this very tuning.

    Writes `config.toml` at the start, `trials.csv` after every trial, and at the end `tuned.toml` and the figure
    `sensitivity`; prints the winners and what to make of them. jobs: how many runs at a time. Returns the exit status:
    1 where some algorithm has no trial that came to its end.

    Raises BadInput for a config, ranges, jobs, an address or a folder that cannot be used, and RunFailed for a Ray
    without room.
    """
    config = read(path, overrides)
    if trials is not None:
        if trials < 1:
            raise BadInput("--trials", trials, "an integer of at least 1")
        table = (config.tune or TuneTable()).model_copy(update={"trials": trials})
        config = config.model_copy(update={"tune": table})
    _hold(config, jobs, ray_address)
    tuning = Tuning(config)
    with busy("looking over the problem"):
        tuning.check()
    return _tune(tuning, out, "--out", console, jobs=jobs, ray_address=ray_address)


def resume_tune(
    folder: Path, console: Console, *, jobs: int | None = None, ray_address: str | None = None, trust: bool = False
) -> int:
    """Go on with the tuning that a folder holds. Returns and raises as `run_tune` does.

    Raises BadInput too for files of a user's own that are not trusted: see `hold_trusted`.
    """
    config = read(folder / CONFIG)
    _hold(config, jobs, ray_address)
    for file in hold_trusted(config, folder, trust=trust):
        say(console, f"executes {file}")
    tuning = Tuning(config)
    with busy("looking over the problem"):
        tuning.check()
    return _tune(tuning, folder, "DIR", console, jobs=jobs, ray_address=ray_address)


def _hold(config: Config, jobs: int | None, ray_address: str | None) -> None:
    """Raises BadInput for jobs and an address that cannot be meant; trials run on the engine local."""
    if ray_address is not None and jobs is None:
        raise BadInput("--ray-address", ray_address, "a cluster for --jobs N")
    engine = config.engine.model_copy(update={"name": "local"})
    carried(config.model_copy(update={"engine": engine}), None, ray_address, jobs)


def _tune(tuning: Tuning, out: Path, key: str, console: Console, *, jobs: int | None, ray_address: str | None) -> int:
    made = _open(out)
    begun = (out / JOURNAL).is_file()
    tried: list[Tried] = []
    try:
        with _studies(tuning, out, key) as studies:
            tried += [each for study in studies for each in study.tried]
            write_whole(out / CONFIG, write(tuning.config).encode())
            write_trials(tuning, tried, out / TRIALS)
            if not any(study.left for study in studies):
                say(console, f"{out}: every trial is done")
            _go_on(tuning, studies, tried, out, console, jobs=jobs, ray_address=ray_address)
    except KeyboardInterrupt as interrupt:
        complain(f"interrupted; go on with: fedbilevel resume {shlex.quote(str(out))}")
        return 143 if isinstance(interrupt, Terminated) else 130
    except (BadInput, RunFailed):  # of a start that was refused nothing stays that would block the next
        if not begun and not tried:
            _discard(out, made)
        raise
    winners = {label: winner(mine) for label, mine in by_label(tuning, tried).items()}
    write_whole(out / TUNED, write(tuned(tuning, winners)).encode())
    draw_trials(tuning, tried, winners, out)
    print_outcome(tuning, tried, winners, console)
    print_files(console, out)
    return 1 if any(best is None and tuning.spaces[label] for label, best in winners.items()) else 0


def _go_on(
    tuning: Tuning,
    studies: Sequence[Study],
    tried: list[Tried],
    out: Path,
    console: Console,
    *,
    jobs: int | None,
    ray_address: str | None,
) -> None:
    with display(console, tuning, tried) as shown:

        def told(trial: Tried) -> None:
            tried.append(trial)
            write_trials(tuning, tried, out / TRIALS)
            shown.told(trial)

        if jobs is None or (jobs == 1 and ray_address is None):
            run_in_turn(studies, shown, told, tuning.table.threads)
            return
        from server.tuning.side_by_side import run_side_by_side  # the import of ray takes as long as that of torch

        with as_typed():
            run_side_by_side(tuning, studies, shown, told, jobs=jobs, ray_address=ray_address)


def tuned(tuning: Tuning, winners: Winners) -> Config:
    """The config with the winners' options in their own tables, and without `[tune]`."""
    config = tuning.config
    for label, best in winners.items():
        if best is not None:
            config = with_options(config, label, best.options, tuning.entries[label])
    return config.model_copy(update={"tune": None})


# ---- the folder ----


def _open(out: Path) -> tuple[Path, ...]:
    """Make the folder where there is none; returns what was made. Raises BadInput for one with something else in it."""
    allowed = "a new or an empty folder, or that of a tuning to go on with"
    try:
        made = tuple(each for each in (out, *out.parents) if not each.exists())
        out.mkdir(parents=True, exist_ok=True)
        other = any(out.iterdir()) and not (out / JOURNAL).is_file()
    except OSError as error:
        raise BadInput("--out", str(out), f"{allowed} ({error.strerror})") from error
    if other:
        raise BadInput("--out", str(out), allowed)
    return made


def _discard(out: Path, made: Sequence[Path]) -> None:
    """Take back what a tuning has made of which no trial is done."""
    for name in (CONFIG, TRIALS, JOURNAL):
        (out / name).unlink(missing_ok=True)
    for folder in made:
        with contextlib.suppress(OSError):  # somebody has put something there
            folder.rmdir()


@contextlib.contextmanager
def _studies(tuning: Tuning, out: Path, key: str) -> Iterator[list[Study]]:
    """Have a folder's studies while this lasts. Raises BadInput with this key for a folder that cannot be used."""
    with contextlib.ExitStack() as stack:
        try:
            studies = stack.enter_context(tuning.open(out))
        except BadInput as error:
            raise BadInput(key, error.value, error.allowed) from error
        yield studies

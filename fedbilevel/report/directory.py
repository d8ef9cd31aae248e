"""A run directory: `config.toml`, `history.csv`, `summary.csv`, `statistics.csv` and the figures of one run."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedbilevel.errors import BadInput
from fedbilevel.figures.canvas import KINDS
from fedbilevel.figures.curves import XAxis
from fedbilevel.figures.figure import draw, main_column, stem
from fedbilevel.figures.grid import STEM, draw_grid
from fedbilevel.figures.panels import panels
from fedbilevel.machine.environment import environment, read_environment, write_environment
from fedbilevel.page.write import PAGE, Contents, write_page
from fedbilevel.results.crossing import Crossing, crossing
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.files import PathLike, write_whole
from fedbilevel.results.history import Row, read_history, write_history
from fedbilevel.results.models import MODELS
from fedbilevel.results.summary import summarise, write_summary
from fedbilevel.results.targets import Target, measured, resolve_targets
from fedbilevel.statistics.table import comparable, judge, lines, remove_statistics, write_statistics
from fedbilevel.tables.crossed import crossed
from fedbilevel.tables.judgement import judged_sheets
from fedbilevel.tables.outcome import results

Targets = Sequence[float | Target] | None


@dataclass(frozen=True)
class RunDirectory:
    """Where one run keeps what it found. Made by `create` for a new run, by `open` for one that is there.

    made: the folders that `create` had to make, the innermost first.
    """

    path: Path
    made: tuple[Path, ...] = ()

    @classmethod
    def create(cls, path: PathLike) -> RunDirectory:
        """Make the folder (and its parents) for a new run and see that it can be written to.

        Raises `BadInput` with the key `out` if something that is not an empty folder is there, or if the folder cannot
        be made or written to. Nothing that exists is changed.
        """
        folder = Path(path)
        try:
            if folder.exists() and not folder.is_dir():
                raise BadInput("out", f"{folder}, a file", "a new folder or an empty one")
            if folder.is_dir() and any(folder.iterdir()):
                raise BadInput("out", f"{folder}, which is not empty", "a new folder or an empty one")
            made = tuple(each for each in (folder, *folder.parents) if not each.exists())
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            write_whole(probe, b"a run begins here\n")
            probe.unlink()
        except OSError as error:
            raise BadInput("out", f"{folder}: {error.strerror or error}", "a folder that can be made") from error
        except BadInput as error:
            if error.key == "out":
                raise
            raise BadInput("out", f"{folder}: {error.value}", "a folder that can be written to") from error
        return cls(folder, made)

    @classmethod
    def open(cls, path: PathLike) -> RunDirectory:
        """The directory of a run that was made before; `BadInput` if it is missing or has no config or history."""
        directory = cls(Path(path))
        if not directory.path.is_dir():
            raise BadInput("run directory", f"{directory.path}", "a folder that exists")
        for file in (directory.config_path, directory.history_path):
            if not file.is_file():
                allowed = "the folder of a run, with config.toml and history.csv"
                raise BadInput("run directory", f"{directory.path}, which has no {file.name}", allowed)
        return directory

    @property
    def config_path(self) -> Path:
        """The fully resolved config, which can be run again."""
        return self.path / "config.toml"

    @property
    def history_path(self) -> Path:
        """One row per evaluation."""
        return self.path / "history.csv"

    @property
    def summary_path(self) -> Path:
        """One row per algorithm and target."""
        return self.path / "summary.csv"

    @property
    def statistics_path(self) -> Path:
        """How sure the comparison is; only there where several algorithms and seeds can be compared."""
        return self.path / "statistics.csv"

    @property
    def environment_path(self) -> Path:
        """What the run was made on."""
        return self.path / "environment.toml"

    @property
    def page_path(self) -> Path:
        """The page with the curves, the tables, the config and the environment."""
        return self.path / PAGE

    def write_config(self, text: str) -> None:
        """Keep the config's text; raises `BadInput` if it cannot be written."""
        write_whole(self.config_path, text.encode())

    def write_history(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Replace the history by these rows, of which `statistics.csv` then knows nothing: it is removed.

        Raises `BadInput` if that cannot be, or the history cannot be written.
        """
        remove_statistics(self.statistics_path)
        write_history(self.history_path, rows)

    def read_history(self) -> list[Row]:
        """The rows kept; raises `BadInput`, naming the line, if the file is damaged."""
        return read_history(self.history_path)

    def discard(self) -> None:
        """Take back what `create` has made for a run of which nothing has begun; a history with rows stays."""
        if self.history_path.is_file() and self.read_history():
            return
        files = (self.config_path, self.history_path, self.summary_path, self.environment_path, self.page_path)
        for file in files:
            file.unlink(missing_ok=True)
        for folder in self.made:
            with contextlib.suppress(OSError):  # somebody has put something there
                folder.rmdir()

    def remove_parts(self) -> None:
        """Delete what a killed writer may have left."""
        for folder in (self.path, self.path / MODELS):
            for file in folder.glob(".*.part"):
                with contextlib.suppress(OSError):
                    file.unlink()

    def finish(
        self,
        rows: Sequence[Row],
        title: str,
        targets: Targets = None,
        ends: Ends = WHOLE,
        algorithms: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[dict[str, object]]:
        """Write the summary, the statistics where there are any, the `figures`, what it was run on, and the page.

        Returns the summary's rows.

        ends: which runs have ended before they should have, and which early: see `draw`. algorithms: those of the
        config, whose runs may be under several conditions.
        """
        summary = summarise(rows, targets)
        write_summary(self.summary_path, summary)
        judged = judge(rows, targets)
        write_statistics(self.statistics_path, lines(judged))
        under = crossing(algorithms or {})
        for x_axis, column in figures(rows, targets):
            draw(
                *(rows, self.path),
                title=title,
                targets=targets,
                x_axis=x_axis,
                column=column,
                ends=ends,
                crossing=under,
            )
        draw_conditions(rows, self.path, title, under, ends)
        if not self.environment_path.is_file():  # else the run was taken up again, perhaps elsewhere
            write_environment(self.environment_path, environment())
        sheet = crossed(rows, algorithms or {}, ends)
        tables = [*results(summary, rows), *([sheet] if sheet else [])]
        self.write_page(Contents(title, rows, targets, ends, tables, judged_sheets(judged)))
        return summary

    def write_page(self, contents: Contents) -> None:
        """Write the page with these contents, and with this run's config and environment where they have none.

        Raises `BadInput` if it cannot be written. Anything else that goes wrong is a warning: the runs are worth more
        than their page.
        """
        try:
            if not contents.configs:
                contents = replace(contents, configs={"": self.config_text()}, environments={"": self.environment()})
            write_page(self.page_path, contents)
        except BadInput:
            raise
        except Exception as error:
            warnings.warn(f"{self.page_path} could not be made: {error!r}", RuntimeWarning, stacklevel=2)

    def config_text(self) -> str:
        """The config as it stands in its file; nothing where there is none."""
        try:
            return self.config_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def environment(self) -> dict[str, object] | None:
        """What the run was made on; None where that is not known."""
        return read_environment(self.environment_path)

    def is_finished(
        self,
        rows: Sequence[Row],
        targets: Targets = None,
        algorithms: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> bool:
        """Whether everything is there that `finish` writes."""
        files = [self.path / f"{stem(*each)}.{kind}" for each in figures(rows, targets) for kind in KINDS]
        if has_grid(rows, crossing(algorithms or {})):
            files += [self.path / f"{STEM}.{kind}" for kind in KINDS]
        if comparable(rows, targets):
            files.append(self.statistics_path)
        return all(file.is_file() for file in (self.summary_path, self.page_path, *files))


def figures(rows: Sequence[Row], targets: Targets = None) -> list[tuple[XAxis, str]]:
    """The figures of a run, as what is spent and what is drawn; none without rows.

    The main measure over rounds and bytes, and every other measure that a target bounds over rounds.
    """
    if not rows:
        return []
    main = main_column(rows)
    more = measured(rows, dict.fromkeys(target.column for target in resolve_targets(rows, targets)))
    return [("rounds", main), ("bytes", main), *(("rounds", column) for column in more if column != main)]


def has_grid(rows: Sequence[Row], under: Crossing | None) -> bool:
    """Whether a run's ends are drawn as maps: under several conditions of several tables, or too many for panels."""
    return bool(rows) and under is not None and (len(under.factors) > 1 or panels(under) is None)


def draw_conditions(
    rows: Sequence[Row], folder: Path, title: str, under: Crossing | None, ends: Ends = WHOLE
) -> list[Path]:
    """Write the maps of a run that has some, and return their paths."""
    if under is None or not has_grid(rows, under):
        return []
    return draw_grid(rows, folder, title=title, crossing=under, column=main_column(rows), ends=ends)

"""A run directory: `config.toml`, `history.csv`, `summary.csv`, `statistics.csv` and the figures of one run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbilevel.errors import BadInput
from fedbilevel.figures.canvas import KINDS
from fedbilevel.figures.curves import Unfinished, XAxis
from fedbilevel.figures.figure import draw, main_column, stem
from fedbilevel.results.files import PathLike, write_whole
from fedbilevel.results.history import Row, read_history, write_history
from fedbilevel.results.models import MODELS
from fedbilevel.results.summary import summarise, write_summary
from fedbilevel.results.targets import Target, measured, resolve_targets
from fedbilevel.statistics.table import comparable, judge, lines, remove_statistics, write_statistics

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
        for file in (self.config_path, self.history_path, self.summary_path):
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
        self, rows: Sequence[Row], title: str, targets: Targets = None, unfinished: Unfinished = ()
    ) -> list[dict[str, object]]:
        """Write the summary, the statistics where there are any, and the `figures`; returns the summary's rows.

        unfinished: runs that ended before their goal, by algorithm and seed: a cross marks where.
        """
        summary = summarise(rows, targets)
        write_summary(self.summary_path, summary)
        write_statistics(self.statistics_path, lines(judge(rows, targets)))
        for x_axis, column in figures(rows, targets):
            draw(
                *(rows, self.path),
                title=title,
                targets=targets,
                x_axis=x_axis,
                column=column,
                unfinished=unfinished,
            )
        return summary

    def is_finished(self, rows: Sequence[Row], targets: Targets = None) -> bool:
        """Whether everything is there that `finish` writes."""
        files = [self.path / f"{stem(*each)}.{kind}" for each in figures(rows, targets) for kind in KINDS]
        if comparable(rows, targets):
            files.append(self.statistics_path)
        return all(file.is_file() for file in (self.summary_path, *files))


def figures(rows: Sequence[Row], targets: Targets = None) -> list[tuple[XAxis, str]]:
    """The figures of a run, as what is spent and what is drawn; none without rows.

    The main measure over rounds and bytes, and every other measure that a target bounds over rounds.
    """
    if not rows:
        return []
    main = main_column(rows)
    more = measured(rows, dict.fromkeys(target.column for target in resolve_targets(rows, targets)))
    return [("rounds", main), ("bytes", main), *(("rounds", column) for column in more if column != main)]

"""What a person reads after the runs: the tables on the terminal, and reports over several run directories."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.terminal import print_table, say
from fedbilevel.config.tables import read
from fedbilevel.errors import BadInput
from fedbilevel.results import RunDirectory, draw, summarise, write_summary
from fedbilevel.results.figure import XAxis
from fedbilevel.results.history import Row, number
from fedbilevel.results.summary import has_accuracy, runs

if TYPE_CHECKING:
    from rich.console import Console

NEVER = "—"
SPENT = ("rounds", "uplink", "downlink", "simulated")
_UNSEEN = {
    "metric_nll": "NLL",
    "metric_ece": "calibration error",
    "metric_uncertainty_auroc": "AUROC of the entropy",
    "metric_uncertainty_spearman": "rank correlation of deviation and error",
}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def spread(mean: Any, deviation: Any, form: str = ".0f", unit: str = "") -> str:
    """`mean ± deviation unit`, without a deviation of zero; a dash for what never was.

    >>> spread(120.0, 4.0), spread(120.0, None), spread(None, None)
    ('120 ± 4', '120', '—')
    """
    if mean is None:
        return NEVER
    text = f"{mean:{form}}" if not deviation else f"{mean:{form}} ± {deviation:{form.replace('.4g', '.2g')}}"
    return f"{text} {unit}".rstrip()


def count(mean: Any, deviation: Any) -> str:
    """A count: whole where it is."""
    whole = (mean or 0) >= 100 or all(value is None or float(value).is_integer() for value in (mean, deviation))
    return spread(mean, deviation, ".0f" if whole else ".1f")


def size(mean: Any, deviation: Any) -> str:
    """Bytes in the unit that the mean asks for.

    >>> size(1_250_000, 440_000), size(0, None)
    ('1.2 ± 0.4 MB', '0 B')
    """
    if mean is None:
        return NEVER
    power = min(int(math.log10(mean) / 3), len(_UNITS) - 1) if mean >= 1 else 0
    mean, deviation = mean / 1000.0**power, (deviation or 0.0) / 1000.0**power
    return spread(mean, deviation, _digits(mean) if power else ".0f", _UNITS[power])


def _digits(value: float) -> str:
    """Two or three digits of a number from 1 to 999; summary.csv has them all."""
    return ".1f" if value < 100 else ".0f"


def seconds(mean: Any, deviation: Any) -> str:
    """Simulated seconds."""
    return spread(mean, deviation, _digits(mean or 0), "s")


def _pair(line: dict[str, object], name: str) -> tuple[object, object]:
    return line[f"{name}_mean"], line[f"{name}_std"]


def print_summary(console: Console, summary: Sequence[dict[str, object]]) -> None:
    """Print what each algorithm spent until each target, and where it ended: mean ± standard deviation over seeds."""
    if not summary:
        say(console, "no evaluations yet")
        return
    targets = list(dict.fromkeys(line["target_accuracy"] for line in summary))
    if targets == [None]:
        say(console, "What the runs spent, and where they ended", "bold")
        rows = [[str(line["algorithm"]), *_spent(line), *_end(line)] for line in summary]
        print_table(console, ["algorithm", *SPENT, *_ends(summary)], rows, words=1)
        return
    rows = []
    for target in targets:
        for line in summary:
            if line["target_accuracy"] == target:
                reached = f"{line['seeds_reached']}/{line['seeds']}"
                rows.append([f"{target:g}", str(line["algorithm"]), *_spent(line), reached])
    algorithms = {str(line["algorithm"]): line for line in summary}
    say(console, "Spent until a test accuracy was reached", "bold")
    groups = range(len(algorithms) - 1, len(rows), len(algorithms))
    print_table(console, ["accuracy", "algorithm", *SPENT, "seeds"], rows, words=2, ends=groups)
    say(console, "")
    say(console, "Where the runs ended", "bold")
    rows = [[name, *_end(line)] for name, line in algorithms.items()]
    print_table(console, ["algorithm", *_ends(summary)], rows, words=1)


def _spent(line: dict[str, object]) -> list[str]:
    up, down = size(*_pair(line, "uplink_bytes")), size(*_pair(line, "downlink_bytes"))
    return [count(*_pair(line, "rounds")), up, down, seconds(*_pair(line, "simulated_seconds"))]


def _ends(summary: Sequence[dict[str, object]]) -> list[str]:
    accurate = any(line["final_accuracy_mean"] is not None for line in summary)
    return [*(("final accuracy", "best accuracy") if accurate else ()), "final upper loss", "seeds"]


def _end(line: dict[str, object]) -> list[str]:
    accuracy = [spread(*_pair(line, "final_accuracy"), ".4f"), spread(line["best_accuracy_mean"], None, ".4f")]
    known = line["final_accuracy_mean"] is not None
    return [*(accuracy if known else ()), spread(*_pair(line, "final_upper_loss"), ".4g"), str(line["seeds"])]


def print_unseen(console: Console, rows: Sequence[Row]) -> None:
    """Print the measures of adaptation to unseen tasks at the end of the runs, means over seeds; nothing without any.

    Behind the accuracy (or the loss) stands half the 95 % interval of its mean over the tasks, of one seed.
    """
    ended: dict[str, list[Row]] = {}
    for name, by_seed in runs(rows).items():
        last = [run[-1] for run in by_seed.values() if number(run[-1], "metric_test_interval") is not None]
        if last:
            ended[name] = last
    if not ended:
        return
    main = "test_accuracy" if has_accuracy(rows) else "test_loss"
    columns = [key for key in _UNSEEN if any(number(row, key) is not None for last in ended.values() for row in last)]

    def mean(last: Sequence[Row], key: str, form: str) -> str:
        values = [value for row in last if (value := number(row, key)) is not None]
        return f"{sum(values) / len(values):{form}}" if values else NEVER

    lines = [
        [name, f"{mean(last, main, '.4f')} ± {mean(last, 'metric_test_interval', '.4f')}"]
        + [mean(last, key, ".3f") for key in columns]
        for name, last in ended.items()
    ]
    say(console, "")
    say(console, "Adapted to unseen tasks, at the end", "bold")
    print_table(console, ["algorithm", main.replace("_", " "), *(_UNSEEN[key] for key in columns)], lines, words=1)


def print_files(console: Console, folder: Path) -> None:
    """Say which files a folder now holds."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    say(console, f"\n{folder}: {', '.join(names)}")


def report(folders: Sequence[Path], out: Path | None, x_axis: XAxis | None, console: Console) -> None:
    """Redraw one run directory in place, or compare several: on the terminal, and in the new folder `out`.

    x_axis: the figure to draw; None: those over rounds and bytes. Algorithms of the same name in several directories
    are told apart by the directory.

    Raises BadInput for directories that are none, or damaged.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise BadInput("DIR", " ".join(map(str, folders)), "directories that differ from each other")
    opened = [RunDirectory.open(folder) for folder in folders]
    configs = [read(directory.config_path) for directory in opened]
    histories = [directory.read_history() for directory in opened]
    titles = list(dict.fromkeys(config.title for config in configs))
    asked = [target for config in configs for target in config.run.targets or ()]
    targets = list(dict.fromkeys(asked)) or None
    rows = histories[0] if len(folders) == 1 else _joined(folders, histories)
    summary = summarise(rows, targets)
    place = out
    if out is not None:
        place = RunDirectory.create(out).path
    elif len(folders) == 1:
        place = folders[0]
    if place is not None:
        write_summary(place / "summary.csv", summary)
        for axis in (x_axis,) if x_axis else ("rounds", "bytes"):
            draw(rows, place, title=", ".join(titles), targets=targets, x_axis=axis)
    print_summary(console, summary)
    print_unseen(console, rows)
    if place is not None:
        print_files(console, place)


def _joined(folders: Sequence[Path], histories: Sequence[list[Row]]) -> list[Row]:
    """The rows of several runs; a name that several of them use gets its folder's name behind it."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    users = Counter(name for rows in histories for name in {str(row["algorithm"]) for row in rows})
    return [
        row | {"algorithm": f"{row['algorithm']} ({name})"} if users[str(row["algorithm"])] > 1 else row
        for name, rows in zip(names, histories, strict=True)
        for row in rows
    ]

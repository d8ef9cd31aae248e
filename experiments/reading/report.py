"""What a person reads after the runs: the tables on the terminal, and reports over several run directories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.reading.formats import latex, markdown, print_sheets
from experiments.terminal import say
from fedbilevel.config.tables import Config, read
from fedbilevel.errors import NOTHING, BadInput
from fedbilevel.figures.curves import XAxis
from fedbilevel.figures.figure import draw, hold_drawable, main_column
from fedbilevel.figures.profile import draw_profiles
from fedbilevel.page.write import Contents
from fedbilevel.report import RunDirectory
from fedbilevel.report.directory import draw_conditions, figures
from fedbilevel.results import summarise, write_summary
from fedbilevel.results.crossing import crossing
from fedbilevel.results.ending import Ends, ends_of
from fedbilevel.results.files import csv_text
from fedbilevel.results.history import Row
from fedbilevel.results.summary import SUMMARY_COLUMNS, runs
from fedbilevel.results.targets import Target
from fedbilevel.statistics.profiles import profiles, ranks
from fedbilevel.statistics.table import STATISTICS_COLUMNS, judge_hardest, lines, write_statistics
from fedbilevel.tables.crossed import crossed
from fedbilevel.tables.judgement import Trial, judged_sheets, rank_sheet, shared_costs, short_sheets
from fedbilevel.tables.outcome import Line, results, sheets, unseen
from fedbilevel.tables.sheet import Sheet

if TYPE_CHECKING:
    from rich.console import Console

Format = Literal["text", "markdown", "latex", "csv"]
FORMATS: tuple[Format, ...] = ("text", "markdown", "latex", "csv")


def print_summary(console: Console, summary: Sequence[Line]) -> None:
    """Print what each algorithm spent until each target, and where it ended: medians over all seeds."""
    if not summary:
        say(console, "no evaluations yet")
    print_sheets(console, sheets(summary))


def print_unseen(console: Console, rows: Sequence[Row]) -> None:
    """Print the measures of adaptation to unseen tasks at the end of the runs; nothing without any."""
    sheet = unseen(rows)
    if sheet is not None:
        say(console, "")
        print_sheets(console, [sheet])


def print_crossed(console: Console, rows: Sequence[Row], config: Config) -> None:
    """Print where the runs ended under each condition; nothing for a config of one."""
    sheet = crossed(rows, config.algorithms, _ends(config, rows))
    if sheet is not None:
        say(console, "")
        print_sheets(console, [sheet])


def print_judgement(console: Console, rows: Sequence[Row], targets: Sequence[float | Target] | None) -> None:
    """Print in short how sure the comparison of a run's algorithms is, at its hardest target; nothing without any."""
    judged = judge_hardest(rows, targets)
    if judged is not None:
        say(console, "")
        print_sheets(console, short_sheets(judged))


def print_files(console: Console, folder: Path) -> None:
    """Say which files a folder now holds."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    say(console, f"\n{folder}: {', '.join(names)}")


@dataclass(frozen=True)
class Looks:
    """What the figures of a report show: see `fedbilevel.results.draw`; None: as after a run."""

    x_axis: XAxis | None = None
    column: str | None = None
    log_x: bool = False
    log_y: bool | None = None


@dataclass(frozen=True)
class Gathered:
    """What several run directories hold together, and each problem among them for itself.

    bases: which algorithm of which directory a label stands for. configs, environments: the text of each directory's
    config, and what it was run on where that is known, by the directory's name. crossed: where the runs of each
    directory ended under several conditions. algorithms: the config's, of a single directory.
    """

    rows: list[Row]
    bases: Mapping[str, tuple[str, Path]]
    ends: Ends
    targets: list[float | Target] | None
    title: str
    trials: Sequence[Trial]
    configs: Mapping[str, str]
    environments: Mapping[str, Mapping[str, object] | None]
    crossed: Sequence[Sheet] = ()
    algorithms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def report(
    folders: Sequence[Path],
    out: Path | None,
    console: Console,
    *,
    looks: Looks = Looks(),
    form: Format = "text",
    anyway: bool = False,
) -> None:
    """Redraw one run directory in place, or compare several: on the terminal, and in the new folder `out`.

    Of several, algorithms of the same name are told apart by the directory, and a ratio says how many rounds each needs
    of what it needs in the first. Of several seeds and algorithms, tables and `statistics.csv` say how sure the
    comparison is; of several problems, average ranks and the figure `performance_profile` do. Nothing that the runs
    name as files of a person's own is executed.

    anyway: also compare runs of different problems. Raises BadInput for these, for a column that no run has, and for
    directories that are none, or damaged.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise BadInput("DIR", " ".join(map(str, folders)), "directories that differ from each other")
    found = gathered(folders, anyway)
    summary: list[Line] = summarise(found.rows, found.targets)
    if len(folders) > 1:
        summary = compared(summary, found.bases, folders[0])
    chosen = figures(found.rows, found.targets)
    if looks.x_axis or looks.column:
        axes: list[XAxis] = [looks.x_axis] if looks.x_axis else ["rounds", "bytes"]
        chosen = [(axis, looks.column or main_column(found.rows)) for axis in axes]
    for _, column in chosen:
        hold_drawable(found.rows, column, looks.log_y)
    place = folders[0] if len(folders) == 1 else None
    if out is not None:
        place = RunDirectory.create(out).path
    judged, statistics = judgement(found, place)
    if place is not None:
        write_summary(place / "summary.csv", summary)
        under = crossing(found.algorithms)
        for axis, column in chosen:
            draw(
                *(found.rows, place),
                title=found.title,
                targets=found.targets,
                x_axis=axis,
                column=column,
                log_x=looks.log_x,
                log_y=looks.log_y,
                ends=found.ends,
                crossing=under,
            )
        draw_conditions(found.rows, place, found.title, under, found.ends)
        contents = Contents(
            *(found.title, found.rows, found.targets, found.ends),
            results=[*results(summary, found.rows), *found.crossed],
            statistics=judged,
            configs=found.configs,
            environments=found.environments,
        )
        RunDirectory(place).write_page(contents)
    if form == "text":
        print_summary(console, summary)
        if judged:
            say(console, "")
            print_sheets(console, judged)
        print_unseen(console, found.rows)
        for sheet in found.crossed:
            say(console, "")
            print_sheets(console, [sheet])
        if place is not None:
            print_files(console, place)
    elif form == "csv":
        say(console, _as_one({"summary": summary, "statistics": statistics}).rstrip("\n"))
    else:
        last = unseen(found.rows)
        parts = [*sheets(summary), *judged, *([last] if last else []), *found.crossed]
        say(console, "\n\n".join(map({"markdown": markdown, "latex": latex}[form], parts)))


def _as_one(tables: Mapping[str, Sequence[Line]]) -> str:
    """Several tables as one csv with one header: `table` says which a row is of; what that table lacks is empty."""
    rows = [{"table": name, **row} for name, table in tables.items() for row in table]
    known = ["table", *SUMMARY_COLUMNS, *STATISTICS_COLUMNS]
    return csv_text(rows, dict.fromkeys([*known, *(key for row in rows for key in row)]))


def judgement(found: Gathered, place: Path | None) -> tuple[list[Sheet], list[Line]]:
    """How sure the comparison is, as tables and as the rows of `statistics.csv`.

    That and the profiles are written to `place`; an older `statistics.csv` is removed where there is nothing to say.
    """
    over_seeds = [(trial, trial.judged()) for trial in found.trials]
    several = len(found.trials) > 1
    tables = [sheet for trial, each in over_seeds for sheet in judged_sheets(each, trial.name if several else "")]
    costs, told = shared_costs(found.trials)
    ranked = ranks(costs) if costs else None
    if ranked is not None:
        tables.append(rank_sheet(ranked, told))
    records = lines([one for _, each in over_seeds for one in each], ranked)
    if place is not None:
        write_statistics(place / "statistics.csv", records)
        if costs:
            draw_profiles(profiles(costs), place, title=found.title)
    return tables, records


def gathered(folders: Sequence[Path], anyway: bool = False) -> Gathered:
    """Read run directories; a label that several of them use gets its directory's name behind it.

    Raises BadInput for directories that are none, or damaged, and unless `anyway` for runs of different problems.
    """
    opened = [RunDirectory.open(folder) for folder in folders]
    configs = [read(directory.config_path) for directory in opened]
    if not anyway:
        _hold_together(folders, configs)
    histories = [directory.read_history() for directory in opened]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    users = Counter(label for history in histories for label in runs(history))
    rows: list[Row] = []
    bases: dict[str, tuple[str, Path]] = {}
    broken_off: set[tuple[str, object]] = set()
    early: set[tuple[str, object]] = set()
    tables = []
    for folder, name, config, history in zip(folders, names, configs, histories, strict=True):
        labels = {label: f"{label} ({name})" if users[label] > 1 else label for label in runs(history)}
        bases |= {own: (label, folder) for label, own in labels.items()}
        rows += [row | {"algorithm": labels[str(row["algorithm"])]} for row in history]
        ends, lost = _ends(config, history), f" ({name})" if len(folders) > 1 else ""
        broken_off |= {(labels.get(label, label + lost), seed) for label, seed in ends.broken_off}
        early |= {(labels[label], seed) for label, seed in ends.early}
        tables.append(crossed(history, config.algorithms, ends))
    targets = _targets(configs)
    titles = dict.fromkeys(config.title for config in configs)
    trials = _trials(dict(zip(folders, configs, strict=True)), names, rows, bases)
    texts = {name: directory.config_text() for name, directory in zip(names, opened, strict=True)}
    machines = {name: directory.environment() for name, directory in zip(names, opened, strict=True)}
    ended = Ends(frozenset(broken_off), frozenset(early))
    under = [sheet for sheet in tables if sheet is not None]
    own = configs[0].algorithms if len(folders) == 1 else {}
    return Gathered(rows, bases, ended, targets, ", ".join(titles), trials, texts, machines, under, own)


def _ends(config: Config, rows: Sequence[Row]) -> Ends:
    """Which of the config's runs have ended before they should have, and which early."""
    planned = [(label, seed) for label in config.algorithms for seed in config.run.seeds]
    return ends_of(config.run.ending, rows, planned)


def _trials(
    configs: Mapping[Path, Config], names: Sequence[str], rows: Sequence[Row], bases: Mapping[str, tuple[str, Path]]
) -> list[Trial]:
    """The runs of each problem, by the first directory that has it; targets as for all of its directories together."""
    called = dict(zip(configs, names, strict=True))
    groups: list[list[Path]] = []
    for folder, config in configs.items():
        group = next((group for group in groups if _problem(configs[group[0]]) == _problem(config)), None)
        if group is None:
            groups.append([folder])
        else:
            group.append(folder)
    trials = []
    for group in groups:
        labels = {label: base for label, (base, folder) in bases.items() if folder in group}
        own = [row for row in rows if row["algorithm"] in labels]
        targets = _targets([configs[folder] for folder in group])
        trials.append(Trial(", ".join(called[folder] for folder in group), own, targets, labels))
    return trials


def _targets(configs: Sequence[Config]) -> list[float | Target] | None:
    """The targets that any of them asks for; None (common accuracies) where none does and one leaves it open."""
    asked = list(dict.fromkeys(target for config in configs for target in config.run.targets or ()))
    return asked if asked or all(config.run.targets is not None for config in configs) else None


def _hold_together(folders: Sequence[Path], configs: Sequence[Config]) -> None:
    """Raises BadInput, saying what differs, for runs that are not of the same problem on the same data."""
    first, *others = (_problem(config) for config in configs)
    for folder, other in zip(folders[1:], others, strict=True):
        keys = [key for key in {**first, **other} if first.get(key, NOTHING) != other.get(key, NOTHING)]
        if keys:
            pairs = [(key, first.get(key, NOTHING), other.get(key, NOTHING)) for key in keys[:3]]
            told = [f"{key} is {one!r} in {folders[0]} and {two!r} here" for key, one, two in pairs]
            raise BadInput("DIR", str(folder), f"a run of the same problem (or --anyway), and {', '.join(told)}")


def _problem(config: Config) -> dict[str, Any]:
    """What two runs have to share to be compared, by key."""
    tables = {"problem": config.problem.model_dump(), "data": config.data.model_dump() if config.data else {}}
    flat = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    return flat | {"run.dtype": config.run.dtype}


def compared(summary: Sequence[Line], bases: Mapping[str, tuple[str, Path]], first: Path) -> list[Line]:
    """The summary with the run of each line, and what it needs as a ratio to what the same label needs in the first.

    The ratio is of the rounds until the target; without a target, of the accuracy or the loss at the end. `ratio_is`
    says `at_least` where the rounds are censored, `at_most` where those of the first run are; where both are, there is
    no ratio. Lines of the same label stand together.
    """
    kind = ("target_column", "target_direction", "target_threshold")
    ours: dict[tuple[object, ...], Line] = {}
    for line in summary:
        label, folder = bases[line["algorithm"]]
        if folder == first:
            ours[(label, *(line[key] for key in kind))] = line
    lines = []
    for line in summary:
        label, folder = bases[line["algorithm"]]
        more: Line = {"run": str(folder), "ratio": None, "ratio_of": None, "ratio_is": None}
        one = ours.get((label, *(line[key] for key in kind)))
        of = "rounds" if line["target_column"] else "final_test_accuracy"
        if of != "rounds" and line[of] is None:
            of = "final_upper_loss"
        if one and one[of] and line[of] is not None and not (one["censored"] and line["censored"]):
            side = "at_least" if line["censored"] else "at_most" if one["censored"] else "exactly"
            more |= {"ratio": line[of] / one[of], "ratio_of": of, "ratio_is": side}
        lines.append(line | more)
    order = list(dict.fromkeys(label for label, _ in bases.values()))
    return sorted(lines, key=lambda line: order.index(bases[line["algorithm"]][0]))

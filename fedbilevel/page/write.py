"""`report.html`: put together from what a run directory holds, and written whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedbilevel.page.data import payload
from fedbilevel.page.html import Section, page, table, text
from fedbilevel.results.ending import WHOLE, Ends
from fedbilevel.results.files import PathLike, write_whole
from fedbilevel.results.history import Row, number
from fedbilevel.results.summary import runs
from fedbilevel.results.targets import Target
from fedbilevel.tables.outcome import NEVER, count
from fedbilevel.tables.sheet import Sheet

PAGE = "report.html"
"""The name of the page's file in a run directory."""


@dataclass(frozen=True)
class Contents:
    """What is on a page.

    ends: which runs broke off or have no evaluation yet, and which were ended early. results: the tables of targets and
    ends; statistics: how sure they are. configs: the text of each config, by the run directory's name;
    environments: what each run was made on, None where that is not known.
    """

    title: str
    rows: Sequence[Row]
    targets: Sequence[float | Target] | None = None
    ends: Ends = WHOLE
    results: Sequence[Sheet] = ()
    statistics: Sequence[Sheet] = ()
    configs: Mapping[str, str] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, object] | None] = field(default_factory=dict)


def write_page(path: PathLike, contents: Contents) -> None:
    """Write the page; the same contents give the same bytes. Raises `BadInput` if the file cannot be written."""
    found = runs(contents.rows)
    data: dict[str, Any] = payload(contents.rows, contents.targets, contents.ends)
    methods = list(found)
    sections = [Section("Results", _tables(contents.results, methods))] if contents.results else []
    if contents.statistics:
        sections.append(Section("Statistics", _tables(contents.statistics, methods)))
    sections.append(Section("Runs", _runs(contents, methods)))
    if any(contents.configs.values()):
        sections.append(Section("Config", _configs(contents.configs)))
    if contents.environments:
        sections.append(Section("Environment", _environments(contents.environments)))
    write_whole(path, page(contents.title, _about(contents), data, sections).encode(errors="replace"))


def _about(contents: Contents) -> str:
    found = runs(contents.rows)
    seeds = sorted({len(by_seed) for by_seed in found.values()})
    if not seeds:
        return "no evaluations yet"
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    last = max((number(row, "round") or 0.0 for row in contents.rows), default=0.0)
    said = [_counted(len(found), "method"), f"{each} seed{'s' * (seeds != [1])}{' each' * (len(found) > 1)}"]
    return ", ".join([*said, f"up to {_counted(round(last), 'round')}"])


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _tables(sheets: Sequence[Sheet], methods: Sequence[str]) -> str:
    return "".join(table(sheet, methods) for sheet in sheets)


def _runs(contents: Contents, methods: Sequence[str]) -> str:
    """How many runs are finished, and where each of the others stands."""
    found = runs(contents.rows)
    begun = {(label, seed): run for label, by_seed in found.items() for seed, run in by_seed.items()}
    unfinished = contents.ends.broken_off
    late = list(dict.fromkeys([*(key for key in begun if key in unfinished), *_sorted(unfinished)]))
    every = {*begun, *late}
    said = f"<p>{len(every) - len(late)} of {_counted(len(every), 'run')} finished.</p>"
    if not late:
        return said
    rows = []
    for label, seed in late:
        run = begun.get((label, seed), [])
        last = number(run[-1], "round") if run else None
        cells = [label, NEVER if seed is None else str(seed), str(len(run)), NEVER if last is None else count(last)]
        rows.append([*cells, "broken off" if run else "not begun"])
    title = "Runs that are not finished"
    return said + table(Sheet(title, ["run", "seed", "evaluations", "last round", "state"], rows), methods, "failed")


def _sorted(unfinished: Iterable[tuple[str, object]]) -> list[tuple[str, object]]:
    return sorted(unfinished, key=lambda key: (key[0], str(key[1]).zfill(20)))


def _configs(configs: Mapping[str, str]) -> str:
    if len(configs) == 1:
        return text(next(iter(configs.values())))
    return "".join(text(content, name) for name, content in configs.items())


def _environments(environments: Mapping[str, Mapping[str, object] | None]) -> str:
    names = list(dict.fromkeys(key for each in environments.values() for key in each or ()))
    if not names:
        return '<p class="note">Not recorded.</p>'
    columns = [*environments] if len(environments) > 1 else ["value"]
    rows = [[name, *(str((each or {}).get(name, NEVER)) for each in environments.values())] for name in names]
    return table(Sheet("What the runs were made on", ["", *columns], rows), kind="words")

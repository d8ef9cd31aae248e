"""`fedbilevel memory`: how much memory a client's meta-gradient takes, against the number of inner steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.reading.report import print_files
from experiments.terminal import print_table, say
from fedbilevel.config.tables import read
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.figures.peaks import draw_peaks, size_text, write_peaks
from fedbilevel.report import RunDirectory
from fedbilevel.tasks import is_local
from server.running.peak import meta_gradient_peak
from server.running.plan import Job, plan

if TYPE_CHECKING:
    from rich.console import Console


def run_memory(
    path: Path, overrides: Sequence[str], out: Path | None, steps: Sequence[int], console: Console
) -> list[RunFailed]:
    """Measure every algorithm of a config, for its first seed, with each number of inner steps; print a table.

    With a new folder `out`, write `memory.csv` and the figure `memory_vs_inner_steps` there. An algorithm that fails
    does not stop the others; returns the failures.

    Raises BadInput for a config, numbers of steps or a folder that cannot be used, and for algorithms without inner
    steps.
    """
    config = read(path, overrides)
    jobs = [job for job in plan(config) if job.seed == config.run.seeds[0]]
    problem = jobs[0].setup().problem()
    chosen = sorted(set(steps))
    for job in jobs:
        key = f"algorithms.{job.label}"
        job.entry.hold(problem, key)
        if "local_steps" not in job.entry.options.model_fields or not is_local(problem):
            raise BadInput(
                key, job.entry.name, "an algorithm whose clients adapt to tasks in inner steps (local_steps)"
            )
        for count in chosen:
            job.entry.parse(with_steps(job, count), key)
    assert is_local(problem)
    place = None if out is None else RunDirectory.create(out).path
    peaks: dict[str, list[tuple[int, int]]] = {}
    failures: list[RunFailed] = []
    for job in jobs:
        peaks[job.label] = []
        for count in chosen:
            try:
                size = meta_gradient_peak(problem, job.entry.name, with_steps(job, count), job.seed)
            except RunFailed as error:
                failures.append(RunFailed(f"{job.label}, {count} inner steps: {error}"))
                continue
            peaks[job.label].append((count, size))
    say(console, "Peak memory of a client's meta-gradient, by inner steps", "bold")
    rows = [[name, *(_shown(line, count) for count in chosen)] for name, line in peaks.items()]
    print_table(console, ["algorithm", *map(str, chosen)], rows, words=1)
    if place is not None:
        write_peaks(place / "memory.csv", peaks)
        tasks = sorted({int(getattr(job.options, "tasks_per_client", 1)) for job in jobs})
        number = " to ".join(str(n) for n in dict.fromkeys((tasks[0], tasks[-1])))
        about = f"{config.problem.name}: one client, {number} task{'s' * (tasks != [1])}, {config.run.dtype}"
        draw_peaks(peaks, place, title=config.title, about=about)
        print_files(console, place)
    return failures


def with_steps(job: Job, count: int) -> Mapping[str, Any]:
    """The job's options with so many inner steps; a flow runs as long as they do, in as many steps of its solver."""
    options: dict[str, Any] = job.options.model_dump(exclude_none=True)
    length = count * float(options.get("lower_step", 0.0))
    asked = {"local_steps": count, "ode_steps": count, "horizon": length, "initial_horizon": length}
    return options | {name: value for name, value in asked.items() if name in job.entry.options.model_fields}


def _shown(line: Sequence[tuple[int, int]], count: int) -> str:
    found = dict(line).get(count)
    return "—" if found is None else size_text(found)

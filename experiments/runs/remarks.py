"""What a person should know beside the numbers: in the first lines of a run, and in its last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from fedbilevel.config.tables import Config
from fedbilevel.problem import Problem
from fedbilevel.results.history import Row
from fedbilevel.results.targets import Target, accuracy
from fedbilevel.tasks import is_local
from server.evaluation.solution import every, seconds, size
from server.running.plan import Job, unread
from server.running.run import initial


def before(config: Config, jobs: list[Job]) -> list[str]:
    """The lines before a run: options that an algorithm does not read, and columns that are not asked for."""
    lines = [f"{label} does not read: {', '.join(names)}" for label, names in unread(config).items()]
    problem = jobs[0].setup().problem()
    said: dict[str, list[str]] = {}
    for job in (job for job in jobs if job.seed == jobs[0].seed):
        for text in job.run().remarks(problem, job.options):
            said.setdefault(text, []).append(job.label)
    lines += [f"{_several(labels)}: {text}" for text, labels in said.items()]
    return [*lines, *_harder(config), *_solution(config, problem, jobs[0].seed)]


def _several(labels: list[str]) -> str:
    """Whom a line is about.

    >>> _several(["a"]), _several(["a", "b"]), _several(["a", "b", "c", "d"])
    ('a', 'a and b', 'a and 3 others')
    """
    return " and ".join(labels) if len(labels) < 3 else f"{labels[0]} and {len(labels) - 1} others"


def _harder(config: Config) -> Iterator[str]:
    """Targets that a run hardly meets since it ends before."""
    stop = config.run.ending.stop_at
    for each in config.run.targets or ():
        target = each if isinstance(each, Target) else accuracy(each)
        alike = stop is not None and (target.column, target.direction) == (stop.column, stop.direction)
        if stop is not None and alike and not target.met(stop.threshold):
            yield (
                f"run.stop_at ends every run at {stop.text}: one that has not met {target.text} by then counts as "
                "later than its last row"
            )


def _solution(config: Config, problem: Problem, seed: int) -> Iterator[str]:
    start = initial(problem, seed)
    if config.run.solution_every is None and not is_local(problem) and every(None, problem, *start) == 0:
        large, cost = f"{size(problem, *start):.1e} examples x dimensions", seconds(problem, *start)
        yield (
            f"value and gradient norm at the true lower solution: off, since the problem is large ({large}); "
            f"--set run.solution_every=10 turns them on, about {cost:.1g} s each"
        )


def after(rows: Iterable[Row]) -> list[str]:
    """The lines after a run: seeds that have made no difference."""
    runs: dict[tuple[str, int], list[tuple[object, ...]]] = defaultdict(list)
    for row in rows:
        numbers = tuple(value for key, value in row.items() if key not in ("algorithm", "seed", "wall_seconds"))
        runs[str(row["algorithm"]), int(str(row["seed"]))].append(numbers)
    same: dict[tuple[str, tuple[int, ...]], None] = {}
    for (label, seed), own in runs.items():
        alike = tuple(other for (name, other), theirs in runs.items() if name == label and theirs == own)
        if len(alike) > 1 and seed == alike[0]:
            same[label, alike] = None
    return [
        f"{label}: seeds {', '.join(map(str, seeds))} gave the same numbers: nothing in these runs is random, and a "
        "spread over them says nothing"
        for label, seeds in same
    ]

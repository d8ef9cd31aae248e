"""The study of each algorithm: its trials one after another, each kept in a journal when it is done.

A trial's point depends on the seed of the tuning, the algorithm's label, the trial's number and the trials before it
alone, and the journal holds whole trials only: what was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedbilevel.config.tables import Config
from fedbilevel.config.tune import Range, TuneTable
from fedbilevel.errors import BadInput
from server.running.experiment import Observer
from server.running.plan import Job, check_problem, fingerprint, plan, resolved
from server.tuning.journal import journal
from server.tuning.objective import FAILED, Goal
from server.tuning.space import Space, cast, grid, spaces, with_options
from server.tuning.trial import RUNGS, Course, Trial, run_trial

if TYPE_CHECKING:
    import optuna
    from optuna.storages import JournalStorage

_STARTUP = 5
"""Random points before the sampler learns from them."""


@dataclass(frozen=True)
class Begun:
    """A trial that may run: its options, one job per seed, and how far it is."""

    options: Mapping[str, Any]
    jobs: list[Job]
    course: Course


@dataclass(frozen=True)
class Tried:
    """A trial of a study: its number from 0, the options that it was given, and what came of them."""

    label: str
    number: int
    options: Mapping[str, Any]
    trial: Trial


class Tuning:
    """The studies of a config's algorithms, in a folder.

    Raises BadInput for ranges, seeds or targets that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        tune = config.tune or TuneTable()
        self.config, self.table, self.goal = config, tune, Goal.of(config)
        seeds = tune.seeds_beside(config.run.seeds)
        targets = config.run.targets if self.goal.target is None else [self.goal.target]
        # a run that stops at an easier target could not meet the goal
        run = config.run.model_copy(update={"seeds": seeds, "targets": targets, "stop_at": None})
        self.trial_config = config.model_copy(update={"run": run})
        jobs = plan(self.trial_config)
        self.entries = {job.label: job.entry for job in jobs}
        self.spaces = spaces(config, jobs)
        gridded = self.spaces if tune.sampler == "grid" else {}
        self.grids = {label: grid(space, tune.trials) for label, space in gridded.items()}
        self.fingerprint = self._digest()

    def check(self) -> None:
        """Hold every algorithm against the problem. Raises BadInput."""
        check_problem(plan(self.trial_config))

    def trials_of(self, label: str) -> int:
        """How many trials an algorithm has."""
        space = self.spaces[label]
        if not space:
            return 0
        if all(isinstance(given, list) and len(given) == 1 for given in space.values()):
            return 1
        return len(self.grids[label]) if self.table.sampler == "grid" else self.table.trials

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[list[Study]]:
        """Have the studies of a folder to oneself while this lasts: of every algorithm that has ranges.

        Raises BadInput for those of another config, and where another process has them.
        """
        import optuna

        with journal(folder) as storage:
            for study in optuna.get_all_study_summaries(storage):
                if study.n_trials and study.user_attrs.get("fingerprint") != self.fingerprint:
                    allowed = "a new folder, or the trials of this very config: these are a study of another config"
                    raise BadInput("out", str(folder), allowed)
            yield [Study(self, label, storage) for label, space in self.spaces.items() if space]

    def _digest(self) -> str:
        """Of everything that the trials depend on, but how many there are where that only ends them."""
        only_ends = set() if self.table.sampler == "grid" else {"trials"}
        table = self.table.model_dump(mode="json", exclude={"ranges", "algorithms", "fixed", "defaults", *only_ends})
        ranges = {
            label: {name: given.model_dump() if isinstance(given, Range) else given for name, given in space.items()}
            for label, space in self.spaces.items()
        }
        target = self.goal.target and self.goal.target.model_dump(mode="json")
        text = json.dumps([fingerprint(resolved(self.trial_config)), table, ranges, target], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Study:
    """The trials of one algorithm, each of which depends on those before it."""

    def __init__(self, tuning: Tuning, label: str, storage: JournalStorage) -> None:
        import optuna

        self.label, self._tuning = label, tuning
        self._study = optuna.create_study(storage=storage, study_name=label, load_if_exists=True)
        if self._study.user_attrs.get("fingerprint") != tuning.fingerprint:
            self._study.set_user_attr("fingerprint", tuning.fingerprint)
        kept = self._study.get_trials(deepcopy=False)
        found = [Tried(label, n, dict(each.params), Trial(**each.user_attrs["trial"])) for n, each in enumerate(kept)]
        self.tried = found[: tuning.trials_of(label)]

    @property
    def left(self) -> int:
        """How many trials it lacks."""
        return self._tuning.trials_of(self.label) - len(self.tried)

    def begin(self) -> Begun:
        """The next trial, not begun yet."""
        tuning, number = self._tuning, len(self.tried)
        options = self._point(number)
        config = with_options(tuning.trial_config, self.label, options, tuning.entries[self.label])
        jobs = [job for job in plan(config) if job.label == self.label]
        trials = [each.trial for each in self.tried]
        others = {rung: [trial.rungs[rung] for trial in trials if rung in trial.rungs] for rung in map(str, RUNGS)}
        best = min((trial.score for trial in trials if trial.outcome == "complete"), default=FAILED)
        return Begun(options, jobs, Course(jobs, tuning.goal, best, others, stopping=tuning.table.stopping))

    def keep(self, options: Mapping[str, Any], trial: Trial) -> Tried:
        """Keep a trial that is over."""
        import optuna

        pruned = trial.outcome == "stopped"
        self._study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
                value=None if pruned else trial.score,
                params=dict(options),
                distributions=distributions(self._tuning.spaces[self.label]),
                intermediate_values={trial.rounds: trial.score} if pruned else {},
                user_attrs={"trial": asdict(trial)},
            )
        )
        self.tried.append(Tried(self.label, len(self.tried), options, trial))
        return self.tried[-1]

    def _point(self, number: int) -> dict[str, Any]:
        """The options of a trial, from those before it."""
        space, table = self._tuning.spaces[self.label], self._tuning.table
        if table.sampler == "grid":
            return self._tuning.grids[self.label][number]
        import optuna

        text = json.dumps([table.seed, self.label, number])
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
        sampler: optuna.samplers.BaseSampler
        if table.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
        asked = optuna.create_study(sampler=sampler)
        asked.add_trials(self._study.get_trials(deepcopy=False)[:number])
        params = asked.ask(distributions(space)).params
        return {
            name: cast(given, params[name]) if isinstance(given, Range) else params[name]
            for name, given in space.items()
        }


def run_in_turn(studies: Sequence[Study], observer: Observer, told: Callable[[Tried], None], threads: int) -> None:
    """Run the trials that studies lack, one after another, with so many of torch's threads; `told` of each when kept.

    Whatever ends it, the trials that were done are kept.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for study in studies:
            while study.left:
                begun = study.begin()
                told(study.keep(begun.options, run_trial(begun.jobs, begun.course, observer)))
    finally:
        torch.set_num_threads(before)


def distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """A space as Optuna knows it."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, given in space.items():
        if not isinstance(given, Range):
            found[name] = CategoricalDistribution(given)
        elif given.integers:
            found[name] = IntDistribution(int(given.low), int(given.high), log=given.log)
        else:
            found[name] = FloatDistribution(float(given.low), float(given.high), log=given.log)
    return found


def winner(tried: list[Tried]) -> Tried | None:
    """The best of the whole trials of one algorithm, the first of equals; None where all have failed."""
    whole = [each for each in tried if each.trial.outcome == "complete"]
    return min(whole, key=lambda each: each.trial.score, default=None)

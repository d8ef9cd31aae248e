"""The study of each algorithm: its trials one after another, each kept in a journal when it is done.

A trial's point depends on the seed of the tuning, the algorithm's label, the trial's number and the trials before it
alone, and the journal holds whole trials only: what was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbilevel.config.tables import Config
from fedbilevel.config.tune import Range, TuneTable
from fedbilevel.errors import BadInput
from server.running.experiment import Observer
from server.running.plan import check_problem, fingerprint, plan, resolved
from server.tuning.objective import FAILED, RUNGS, Goal, Trial, run_trial
from server.tuning.space import Space, cast, grid, spaces, with_options

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"
_STARTUP = 5
"""Random points before the sampler learns from them."""


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
        run = config.run.model_copy(update={"seeds": seeds, "targets": targets})
        self.trial_config = config.model_copy(update={"run": run})
        jobs = plan(self.trial_config)
        self.entries = {job.label: job.entry for job in jobs}
        self.spaces = spaces(config, jobs)
        gridded = self.spaces if tune.sampler == "grid" else {}
        self._grids = {label: grid(space, tune.trials) for label, space in gridded.items()}
        self.fingerprint = self._digest()

    def check(self) -> None:
        """Hold every algorithm against the problem. Raises BadInput."""
        check_problem(plan(self.trial_config))

    def trials_of(self, label: str) -> int:
        """How many trials an algorithm has."""
        if not self.spaces[label]:
            return 0
        return len(self._grids[label]) if self.table.sampler == "grid" else self.table.trials

    def open(self, folder: Path) -> dict[str, optuna.Study]:
        """The studies of a folder, by label. Raises BadInput for those of another config."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        studies = {}
        for label in (label for label, space in self.spaces.items() if space):
            study = optuna.create_study(storage=storage, study_name=label, load_if_exists=True)
            held = study.user_attrs.get("fingerprint")
            if held is None and not study.get_trials(deepcopy=False):
                study.set_user_attr("fingerprint", self.fingerprint)
            elif held != self.fingerprint:
                raise BadInput("out", str(folder), "a new folder, or one with the trials of this very config")
            studies[label] = study
        return studies

    def held(self, folder: Path) -> list[Tried]:
        """The trials that a folder holds. Raises BadInput for those of another config."""
        studies = self.open(folder).items()
        return [each for label, study in studies for each in self._before(label, study)[: self.trials_of(label)]]

    def run(self, folder: Path, observer: Observer, told: Callable[[Tried], None]) -> None:
        """Run the trials that the folder still lacks, algorithm by algorithm; `told` of each that is done.

        Whatever ends it, the trials that were done are kept.
        """
        for label, study in self.open(folder).items():
            tried = self._before(label, study)
            for number in range(len(tried), self.trials_of(label)):
                options = self._point(label, study, number)
                tried.append(Tried(label, number, options, self._run(label, options, tried, observer)))
                self._keep(study, tried[-1])
                told(tried[-1])

    def _run(self, label: str, options: Mapping[str, Any], before: list[Tried], observer: Observer) -> Trial:
        config = with_options(self.trial_config, label, options, self.entries[label])
        jobs = [job for job in plan(config) if job.label == label]
        others = {
            rung: [each.trial.rungs[rung] for each in before if rung in each.trial.rungs] for rung in map(str, RUNGS)
        }
        best = min((each.trial.score for each in before if each.trial.outcome == "complete"), default=FAILED)
        return run_trial(jobs, self.goal, best, others, observer, stopping=self.table.stopping)

    def _point(self, label: str, study: optuna.Study, number: int) -> dict[str, Any]:
        """The options of a trial, from those before it."""
        space = self.spaces[label]
        if self.table.sampler == "grid":
            return self._grids[label][number]
        import optuna

        text = json.dumps([self.table.seed, label, number])
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
        sampler: optuna.samplers.BaseSampler
        if self.table.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
        asked = optuna.create_study(sampler=sampler)
        asked.add_trials(study.get_trials(deepcopy=False))
        params = asked.ask(distributions(space)).params
        return {
            name: cast(given, params[name]) if isinstance(given, Range) else params[name]
            for name, given in space.items()
        }

    def _keep(self, study: optuna.Study, tried: Tried) -> None:
        import optuna

        trial = tried.trial
        pruned = trial.outcome == "stopped"
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE,
                value=None if pruned else trial.score,
                params=dict(tried.options),
                distributions=distributions(self.spaces[tried.label]),
                intermediate_values={trial.rounds: trial.score} if pruned else {},
                user_attrs={"trial": asdict(trial)},
            )
        )

    def _before(self, label: str, study: optuna.Study) -> list[Tried]:
        held = study.get_trials(deepcopy=False)
        return [Tried(label, n, dict(each.params), Trial(**each.user_attrs["trial"])) for n, each in enumerate(held)]

    def _digest(self) -> str:
        """Of everything that the trials depend on, but how many there are where that only ends them."""
        table = self.table.model_dump(mode="json", exclude=set() if self.table.sampler == "grid" else {"trials"})
        target = self.goal.target and self.goal.target.model_dump(mode="json")
        text = json.dumps([fingerprint(resolved(self.trial_config)), table, target], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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

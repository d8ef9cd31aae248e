"""Runs of a run directory held against unseen tasks: as they are, as ensembles, and scaled by tasks of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from clients.methods import methods
from clients.methods.method import Adapted
from clients.tasks import TaskBatch
from fedbilevel import randomness
from fedbilevel.errors import BadInput
from fedbilevel.machine.device import where
from fedbilevel.results.models import Model
from fedbilevel.tasks import TaskProblem, Tasks, is_local, is_personal
from server.kit.meta import TaskOptions, adapted
from server.kit.predictive import Predictive, joined, mixture, predict
from server.running.load import Loaded
from server.running.plan import Job, plan
from server.uncertainty.scaling import FACTORS, chosen_factor, fitted_temperature, tempered
from server.uncertainty.scores import Scores


@dataclass(frozen=True)
class Study:
    """How many tasks, draws and members a study takes.

    tasks: unseen ones of every seed. training: tasks of every client on which temperatures are fitted. samples: draws
    of a posterior. members: of an ensemble, 1 for none.
    """

    tasks: int = 600
    training: int = 50
    samples: int = 30
    members: int = 1


@dataclass(frozen=True)
class Judged:
    """One way of predicting.

    label: of the algorithm; members: 1, or of how many runs it is the ensemble. scaled: whether a temperature was
    fitted on tasks of training: those of the seeds are in `temperatures`. factors: by which the posterior variance of
    every run was multiplied, as tasks of training chose; empty without a posterior. training_nll: of these tasks.
    """

    label: str
    members: int
    scaled: bool
    scores: Scores
    temperatures: tuple[float, ...]
    factors: tuple[float, ...]
    training_nll: float


def judged(loaded: Loaded, study: Study, tell: Callable[[str], None] = lambda text: None) -> list[Judged]:
    """Every algorithm of a run directory, plain and scaled: its runs, and without a posterior ensembles of `members`.

    Runs of `members` seeds, in their order, are one ensemble, judged on the tasks of the first of these seeds; seeds
    that do not fill one are in none. Raises BadInput for a problem or an algorithm without a predictive distribution,
    and for runs without a model.
    """
    found = []
    jobs = plan(loaded.config)
    if missing := [job.name for job in jobs if (job.label, job.seed) not in loaded]:
        raise BadInput("run directory", f"no model of {', '.join(missing[:3])}", "runs that are done: resume it")
    for label in loaded.config.algorithms:
        own = [job for job in jobs if job.label == label]
        tell(label)
        singles = list(_ways(loaded, study, [[job] for job in own]))
        found += singles
        members = study.members
        groups = [own[k : k + members] for k in range(0, len(own) - members + 1, members)]
        if members > 1 and groups and not singles[0].factors:
            tell(f"{label}, ensembles of {members}")
            found += _ways(loaded, study, groups)
    return found


def _ways(loaded: Loaded, study: Study, groups: Sequence[Sequence[Job]]) -> Iterator[Judged]:
    """The plain and the scaled way of some ensembles of one label."""
    plain, scaled, temperatures, factors, costs = [], [], [], [], []
    for group in groups:
        seed = group[0].seed
        problem = held(loaded, seed)
        seen, test = training_tasks(problem, seed, study.training), problem.test_tasks(study.tasks)
        fits, says = [], []
        for job in group:
            run = Posterior.of(problem, job, loaded[job.label, job.seed], study.samples)
            fits.append(run.fit(seen))
            says.append(run.predict(test, fits[-1][0]))
        fitted = mixture([on for _, on in fits])
        temperature = fitted_temperature(fitted)
        costs.append([float(each.nll.double().mean()) for each in (fitted, fitted.scaled(temperature))])
        together = mixture(says)
        plain.append(Scores.of(together, seed))
        scaled.append(Scores.of(together.scaled(temperature), seed))
        temperatures.append(temperature)
        factors += [factor for factor, _ in fits if factor is not None]
    about, cost = (groups[0][0].label, len(groups[0])), np.mean(costs, 0)
    yield Judged(*about, False, Scores.joined(plain), (), tuple(factors), float(cost[0]))
    yield Judged(*about, True, Scores.joined(scaled), tuple(temperatures), tuple(factors), float(cost[1]))


def held(loaded: Loaded, seed: int) -> TaskProblem:
    """The problem of a seed. Raises BadInput for one without outputs to judge on tasks that are nobody's."""
    problem = loaded.problem(seed)
    if not is_local(problem) or is_personal(problem) or problem.kind is None:
        allowed = "a problem with a local lower level, unseen tasks, and outputs: few_shot, sinusoid"
        raise BadInput("problem.name", loaded.config.problem.name, allowed)
    return problem


def training_tasks(problem: TaskProblem, seed: int, count: int) -> Tasks:
    """`count` tasks of each client, which no round has drawn."""
    m = len(problem.clients)
    numbers = randomness.uniform(seed, np.arange(m), 0, "tasks to calibrate", count * problem.draws)
    return problem.tasks(problem.clients.lower, numbers.reshape(m, count, problem.draws))


@dataclass(frozen=True)
class Posterior:
    """One run's model, which adapts to tasks and predicts."""

    adapted: Callable[[Tasks], Iterator[tuple[TaskBatch, Adapted]]]
    samples: int

    @classmethod
    def of(cls, problem: TaskProblem, job: Job, model: Model, samples: int) -> Posterior:
        """Raises BadInput for an algorithm that does not adapt to tasks."""
        if job.entry.name not in methods() or not isinstance(job.options, TaskOptions):
            raise BadInput(f"algorithms.{job.label}", job.entry.name, "an algorithm that adapts to tasks")
        method, settings, x = methods()[job.entry.name], job.options.settings(), model.x.to(where(problem))
        return cls(partial(adapted, method, settings, x, problem), samples)

    @torch.no_grad()
    def fit(self, tasks: Tasks) -> tuple[float | None, Predictive]:
        """The factor of the posterior's variance that these tasks choose (None without one), and what is said then."""
        found = list(self.adapted(tasks))
        if found[0][1].variance is None:
            return None, joined([predict(*each) for each in found])
        said = [
            joined([predict(batch, tempered(of, factor), self.samples) for batch, of in found]) for factor in FACTORS
        ]
        factor = chosen_factor(said)
        return factor, said[FACTORS.index(factor)]

    @torch.no_grad()
    def predict(self, tasks: Tasks, factor: float | None) -> Predictive:
        """What is said of these tasks."""
        return joined([predict(b, tempered(of, factor or 1.0), self.samples) for b, of in self.adapted(tasks)])

"""The conditions of a run: what only the problem can tell of them, and an iteration in which nobody answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedbilevel.conditions.tables import Conditions
from fedbilevel.config.tables import RunTable
from fedbilevel.errors import BadInput, NobodyAnswered, RunFailed
from fedbilevel.federation.participation import Participation, Population
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Systems
from fedbilevel.problem import Problem

MOST_ATTEMPTS = 1000
"""An iteration is begun so many times at most."""
S = TypeVar("S")


def hold(conditions: Conditions, systems: Systems, table: RunTable, problem: Problem, seed: int) -> None:
    """Hold the conditions against the problem's clients. Raises BadInput."""
    m, sample = len(problem.clients), table.clients_per_round
    if systems.sampling == "poisson" and sample is None:
        raise BadInput("systems.sampling", "poisson", "fixed, or run.clients_per_round: so many are drawn in the mean")
    if systems.over_selection:
        key, extra = "systems.over_selection", systems.over_selection
        if sample is None or systems.sampling == "poisson":
            raise BadInput(key, extra, "0, or a fixed number run.clients_per_round of which more are asked")
        if sample + extra > m:
            raise BadInput(key, extra, f"at most {m - sample}: with run.clients_per_round they are {m} clients at most")
    population = Population.of(problem.clients)
    who = Participation(population, systems, seed, sample)
    if sample is None or sample <= m:
        conditions.hold(min(sample or m, m), who.expected)
    _hold_attackers(systems, m)
    if systems.deadline_seconds is not None:
        nothing = np.zeros(m)
        least = float(systems.seconds(seed, who.everyone, nothing, nothing, nothing).min())
        if least > systems.deadline_seconds:
            allowed = f"at least {least}, the two latencies of the fastest client"
            raise BadInput("systems.deadline_seconds", systems.deadline_seconds, allowed)
    if problem.clients.blocks is not None:
        _hold_blocks(conditions, systems)


def _hold_attackers(systems: Systems, m: int) -> None:
    byzantine = systems.byzantine
    if byzantine is not None and round(byzantine.largest_share * m) >= m:
        allowed = f"a share by which one of the {m} clients is honest"
        raise BadInput("systems.byzantine.share", byzantine.share, allowed)


def _hold_blocks(conditions: Conditions, systems: Systems) -> None:
    """What is done to each client's own answer knows of no blocks of x that are one client's."""
    named = [
        ("aggregation.rule", conditions.aggregation.rule, "mean"),
        ("aggregation.before", conditions.aggregation.before, None),
        ("channel.uplink", conditions.channel.uplink, "exact"),
        ("channel.downlink", conditions.channel.downlink, "exact"),
    ]
    for key, value, polite in named:
        if value is not None and value != polite:
            allowed = (
                f"{polite or 'nothing'} where every client has a block of x to itself, of which there is one answer"
            )
            raise BadInput(key, value, allowed)
    if systems.byzantine is not None and systems.byzantine.of_answers:
        allowed = "label_flip where every client has a block of x to itself"
        raise BadInput("systems.byzantine.attack", systems.byzantine.attack, allowed)
    if conditions.privacy is not None:
        raise BadInput("privacy", "a table", "none where every client has a block of x to itself")


def remarks(conditions: Conditions, systems: Systems, weights: NDArray[np.float64], table: RunTable) -> Iterator[str]:
    """What the reader of the results should know of the conditions."""
    rule = conditions.aggregation
    if not rule.polite or conditions.privacy is not None:
        votes = "privacy gives" if rule.polite else f"the rule {rule.rule} gives"
        if np.ptp(weights) > 1e-12:
            yield f"{votes} every client one vote: the weights p_i are not used"
        if table.weighting == "unbiased":
            yield f"{votes} every client one vote: run.weighting = unbiased changes nothing"
    if table.weighting == "unbiased" and (systems.deadline_seconds is not None or systems.over_selection):
        yield "who answers in time is no fair sample: unbiased weights are unbiased for the fast clients alone"
    byzantine = systems.byzantine
    if byzantine is not None and not rule.polite:
        attackers = byzantine.count(len(weights)) if isinstance(byzantine.share, float | int) else 0
        if attackers > rule.byzantine:
            yield f"{attackers} clients attack, and the rule is to withstand {rule.byzantine} (aggregation.byzantine)"


def persevere(step: Callable[[], S], fed: Federation, iteration: int) -> S:
    """One iteration, begun again for as long as nobody answers in one of its rounds.

    Raises RunFailed if that goes on.
    """
    for attempt in range(MOST_ATTEMPTS):
        fed.begin(iteration, attempt)
        try:
            return step()
        except NobodyAnswered as nobody:
            last = nobody
    raise RunFailed(f"{last}, in {MOST_ATTEMPTS} attempts")

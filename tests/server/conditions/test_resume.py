"""Under every condition a run that goes on from a checkpoint ends as one that was never interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.node import Setting
from fedbilevel.conditions.compression import ChannelTable
from fedbilevel.conditions.privacy import PrivacyTable
from fedbilevel.conditions.rule import AggregationTable
from fedbilevel.conditions.tables import Conditions
from fedbilevel.config.tables import RunTable
from fedbilevel.errors import BadInput, RunFailed
from fedbilevel.federation.rounds import Federation
from fedbilevel.federation.systems import Systems
from server.grids.engines import in_process
from server.kit.algorithm import find
from server.running import conditions as loop
from server.running.checkpoints import Checkpoint, Checkpoints
from server.running.run import Result, Run, initial, run_one
from tests.algorithm_table import SHARED
from tests.algorithm_table.row import STEPS
from tests.problem_table import quadratic
from tests.server.conditions.test_every_method import CONDITIONS

SEED, END = 4, 4
METHODS: list[tuple[str, dict[str, Any]]] = [("fednest", {}), ("br-fedbi", {"variant": "page"})]
"""Vectors that are sent in two iterations, SVRG and FedOut; estimates and points that clients keep."""
MORE: dict[str, dict[str, Any]] = {
    "rarely anybody": {"systems": {"dropout": 0.6}},
    "blocks": {"systems": {"availability": 0.4, "availability_pattern": "blocks", "availability_period": 2}},
    "half precision": {"channel": {"uplink": "float16", "downlink": "float16"}},
    "large and random": {"channel": {"uplink": "top_k", "downlink": "random_k", "keep": 0.5}, "clients_per_round": 3},
    "one by one": {
        "systems": {"sampling": "poisson"},
        "privacy": {"clip": 1.0, "noise_multiplier": 1.0},
        "clients_per_round": 3,
    },
    "buckets": {
        "systems": {"byzantine": {"share": 0.2, "attack": "alie"}, "dropout": 0.2},
        "aggregation": {"rule": "krum", "before": "bucketing"},
    },
}


def prepared(name: str, told: dict[str, Any], iterations: int = END, **chosen: Any) -> Run:
    entry = find(name)
    options = {**STEPS, **SHARED[name].sampled, **chosen}
    options = {key: value for key, value in options.items() if key in entry.options.model_fields}
    asked = {key: told[key] for key in ("clients_per_round", "weighting") if key in told}
    privacy = told.get("privacy")
    conditions = Conditions(
        AggregationTable(**told.get("aggregation", {})),
        ChannelTable(**told.get("channel", {})),
        None if privacy is None else PrivacyTable.model_validate(privacy),
    )
    table = RunTable(iterations=iterations, seeds=[SEED], batch=2, solution_every=0, **asked)
    systems = Systems.model_validate(told.get("systems", {}))
    return Run(name, SEED, entry.build(entry.parse(options)), table, systems, conditions)


def gone(run: Run, problem: Any = None, **settings: Any) -> Result:
    problem = problem or quadratic()
    said = settings.pop("say", lambda text: None)
    return run_one(run, problem, in_process(problem, Setting(seed=SEED, batch=2)), say=said, **settings)


def written(folder: Path, run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint as it comes back from the disk."""
    held = Checkpoints(folder / "checkpoints")
    held.save(run.label, checkpoint)
    loaded = held.load(run.label, run.algorithm.init(*initial(quadratic(), SEED)))
    assert loaded is not None
    return loaded


def rows(result: Result) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != "wall_seconds"} for row in result.history]


@pytest.mark.parametrize("condition", [*CONDITIONS, *MORE])
@pytest.mark.parametrize(("name", "chosen"), METHODS)
def test_a_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, name: str, chosen: dict[str, Any], condition: str
) -> None:
    run, kept = prepared(name, (CONDITIONS | MORE)[condition], **chosen), list[Checkpoint]()
    whole = gone(run, keep=kept.append)
    at = len(kept) // 2
    later = gone(run, resume=written(tmp_path, run, kept[at]))
    assert torch.equal(later.x, whole.x)
    assert torch.equal(later.y, whole.y)
    assert later.communication == whole.communication
    assert rows(later) == rows(whole)[at + 1 :]


def test_a_checkpoint_holds_what_the_federation_carries_on(tmp_path: Path) -> None:
    """And nothing that a polite run does not have: there it is as good as empty."""
    told = {
        "clipping": ["last"],
        "quantised": ["downlink"],
        "adaptively private": ["clips", "groups"],
        "rarely anybody": ["lost", "repeated"],
        "bursts": ["dropped"],
    }
    for condition, names in told.items():
        kept: list[Checkpoint] = []
        run = prepared("fednest", (CONDITIONS | MORE)[condition])
        gone(run, keep=kept.append)
        held = written(tmp_path, run, kept[-1]).federation
        assert all(held[name] for name in names), condition
    kept = []
    polite = prepared("fednest", {})
    gone(polite, keep=kept.append)
    assert not any(written(tmp_path, polite, kept[-1]).federation.values())


@pytest.mark.parametrize(
    "spoiled",
    [
        {"lost": "3"},
        {"clips": {"y": "1"}},
        {"last": {"y": 1.0}},
        {"downlink": {"y": (torch.zeros(2), ["a"])}},
        {"more": 1},
    ],
)
def test_what_no_federation_carries_on_is_no_checkpoint(tmp_path: Path, spoiled: dict[str, Any]) -> None:
    kept: list[Checkpoint] = []
    run = prepared("fednest", {})
    gone(run, keep=kept.append)
    checkpoint = dataclasses.replace(kept[1], federation={**kept[1].federation, **spoiled})
    with pytest.raises(BadInput, match="what the federation remembers"):
        written(tmp_path, run, checkpoint)


def test_dropped_answers_are_said_once_with_their_place_and_not_again_after_a_checkpoint(tmp_path: Path) -> None:
    run, kept = prepared("fednest", CONDITIONS["bursts"]), list[Checkpoint]()
    said: list[str] = []
    whole = gone(run, keep=kept.append, say=said.append)
    [line] = [text for text in said if "not finite" in text]
    assert line.startswith("fednest, seed 4: answers that are not finite were dropped, 1 of 5 in operation ")
    dropped = [row["metric_dropped"] for row in whole.history]
    assert dropped[:2] == [0, 0]  # of two iterations the second one is of attackers
    assert dropped[-1] == 2 * float(str(dropped[2])) > 0
    again: list[str] = []
    gone(run, resume=written(tmp_path, run, kept[-2]), say=again.append)
    assert not [text for text in again if "not finite" in text]


# ---- an iteration in which nobody answers ----


def test_an_iteration_that_nobody_answers_is_made_again_from_the_same_state() -> None:
    """Its rounds are in the ledger, x moves once, and the trace holds all that were asked."""
    result = gone(prepared("fednest", {"systems": {"dropout": 0.8}}), trace=True)
    assert result.trace is not None
    last = result.history[-1]
    repeated, lost = (float(str(last[name])) for name in ("metric_repeated", "metric_lost"))
    assert repeated > 0
    assert [entry.iteration for entry in result.trace] == list(range(1, END + 1))
    assert sum(entry.rounds for entry in result.trace) == result.communication["rounds"]
    assert all(len(entry.clients) == entry.rounds for entry in result.trace)
    asked = sum(len(clients) for entry in result.trace for clients in entry.clients)
    assert result.communication["messages"] == 2 * asked - lost


class Fickle:
    """A step that fails at its first attempts, and a federation that is only begun."""

    def __init__(self, failures: int) -> None:
        self.left, self.attempts = failures, list[tuple[int, int]]()

    def begin(self, iteration: int, attempt: int) -> None:
        self.attempts.append((iteration, attempt))

    def step(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise loop.NobodyAnswered("operation h, round 3: nobody answered")
        return "done"


def test_attempts_are_numbered_and_end() -> None:
    fickle: Any = Fickle(2)
    assert loop.persevere(fickle.step, fickle, 7) == "done"
    assert fickle.attempts == [(7, 0), (7, 1), (7, 2)]
    never: Any = Fickle(10**9)
    with pytest.raises(RunFailed, match=r"^operation h, round 3: nobody answered, in 1000 attempts$"):
        loop.persevere(never.step, never, 0)


def test_a_poisson_sample_of_nobody_is_drawn_again() -> None:
    told = {"systems": {"sampling": "poisson"}, "clients_per_round": 1}
    result = gone(prepared("fednest", told, 12), trace=True)
    assert float(str(result.history[-1]["metric_repeated"])) > 0
    assert result.trace is not None
    assert all(len(clients) for entry in result.trace for clients in entry.clients)


def test_only_an_iteration_that_is_made_again_is_counted() -> None:
    fed = Federation(in_process(quadratic(), Setting()), loop.Population.of(quadratic().clients))
    for iteration, attempt in ((0, 0), (1, 0), (1, 1), (1, 2), (2, 0)):
        fed.begin(iteration, attempt)
    assert fed.repeated == 2
    assert np.array_equal(fed.sampled, np.arange(5))

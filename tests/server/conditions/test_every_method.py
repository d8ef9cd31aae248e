"""Every method under every condition, from tables alone: nothing of them stands in an algorithm."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from server.kit.algorithm import find
from server.running.run import Result
from tests.algorithm_table import LOCAL, SHARED
from tests.algorithm_table.row import STEPS, Options
from tests.problem_table import Softmax, problem_for
from tests.runs import traced

NAMES = sorted({*SHARED, *LOCAL})
NOBODY_LIES = {"systems": {"byzantine": {"share": 0.0, "attack": "nan"}}}
"""Every client's own answer is asked for, and none of them falsified."""
CONDITIONS: dict[str, dict[str, Any]] = {
    "dropout": {"systems": {"dropout": 0.4}},
    "dropout for an iteration": {"systems": {"dropout": 0.3, "dropout_lasts": "iteration"}, "weighting": "unbiased"},
    "deadline": {"systems": {"deadline_seconds": 0.4, "network": {"latency_ms": 200.0, "spread": 0.5}}},
    "over-selection": {
        "systems": {"over_selection": 2, "network": {"spread": 1.0}},
        "clients_per_round": 2,
        "weighting": "unbiased",
    },
    "Poisson": {"systems": {"sampling": "poisson"}, "clients_per_round": 2},
    "days": {"systems": {"availability": 0.5, "availability_pattern": "day", "availability_period": 4}},
    "robust": {
        "systems": {"byzantine": {"share": 0.2, "attack": "ipm", "strength": 0.5}},
        "aggregation": {"rule": "trimmed_mean", "before": "nnm", "byzantine": 1},
    },
    "bursts": {
        "systems": {"byzantine": {"share": [0.0, 0.2], "attack": "nan"}},
        "aggregation": {"rule": "geometric_median", "byzantine": 1},
    },
    "clipping": {
        "systems": {"byzantine": {"share": 0.2, "attack": "gaussian"}},
        "aggregation": {"rule": "centred_clipping", "byzantine": 1},
    },
    "quantised": {"channel": {"uplink": "quantise", "downlink": "quantise"}},
    "sparse": {"channel": {"uplink": "random_k", "downlink": "top_k", "keep": 0.7}, "clients_per_round": 3},
    "private": {"privacy": {"clip": 1.0, "noise_multiplier": 0.01}, "clients_per_round": 3},
    "adaptively private": {
        "privacy": {"clip": 1.0, "noise_multiplier": 0.01, "adaptive": {"rate": 0.5}},
        "channel": {"uplink": "float16"},
    },
}


def options_of(name: str) -> Options:
    """What a sampled run of this method takes."""
    return {**STEPS, **SHARED[name].sampled} if name in SHARED else {"local_steps": 2}


def run(name: str, iterations: int = 3, **told: Any) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        problem = problem_for(name) if name in SHARED else Softmax()
        takes = options_of(name)
        if name not in SHARED:
            takes = {key: value for key, value in takes.items() if key in find(name).options.model_fields}
        return traced(problem, name, iterations, seed=4, evaluate_every=1, **takes, **told)


@functools.cache
def polite(name: str, **asked: Any) -> Result:
    """The same run where everybody is polite."""
    return run(name, **asked)


def assert_same(a: Result, b: Result, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a.x, b.x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.y, b.y, rtol=tolerance, atol=tolerance)
    assert a.communication == b.communication


@pytest.mark.parametrize(("weighting", "batch"), [("normalised", "full"), ("unbiased", 2)])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_the_clients_own_answers_is_the_mean_of_the_pooled_ones(
    name: str, weighting: str, batch: Any
) -> None:
    told = {"weighting": weighting, "clients_per_round": 3, "batch": batch}
    assert_same(run(name, **told, **NOBODY_LIES), run(name, **told))


@pytest.mark.parametrize("condition", list(CONDITIONS))
@pytest.mark.parametrize("name", NAMES)
def test_a_condition_changes_a_run_and_gives_the_same_on_several_workers(name: str, condition: str) -> None:
    told = CONDITIONS[condition]
    here, spread = run(name, **told), run(name, **told, workers=3)
    assert torch.isfinite(here.x).all()
    assert np.isfinite(float(str(here.history[-1]["upper_loss"])))
    assert_same(here, spread)
    asked = {key: value for key, value in told.items() if key in ("clients_per_round", "weighting")}
    assert not torch.equal(here.x, polite(name, **asked).x)

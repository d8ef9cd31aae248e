"""AggITD against FedNest at the same steps and T = N: the rounds to an accuracy stand as the formulas predict."""

from __future__ import annotations

import pytest

from fedbilevel import simulate
from fedbilevel.data import federate
from fedbilevel.problems import HyperRepresentation

N = 4
STEPS = {"upper_step": 1.0, "lower_step": 0.3, "neumann_step": 0.1, "lower_rounds": N, "neumann_terms": N}


@pytest.fixture(scope="module")
def problem() -> HyperRepresentation:
    data = federate("digits", clients=10, partition_name="pathological", parameters={"classes_per_client": 3}, seed=1)
    return HyperRepresentation(data, hidden=[16], activation="tanh")


def rounds_to(problem: HyperRepresentation, accuracy: float, algorithm: str, accounting: str) -> int:
    """In float64: rounding must not decide which examples are right where the accuracy passes the threshold."""
    result = simulate(problem, algorithm, iterations=30, accounting=accounting, dtype="float64", **STEPS)
    return next(int(str(row["round"])) for row in result.history if float(str(row["test_accuracy"])) >= accuracy)


@pytest.mark.parametrize(("accounting", "predicted"), [("paper", 2 / 3), ("merged", 1 / 2)])
def test_aggitd_takes_the_predicted_share_of_fednest_s_rounds(
    problem: HyperRepresentation, accounting: str, predicted: float
) -> None:
    aggitd, fednest = (rounds_to(problem, 0.85, name, accounting) for name in ("aggitd", "fednest"))
    assert aggitd / fednest == pytest.approx(predicted, rel=0.1)
    assert fednest >= 5 * (2 * N + N + 3 if accounting == "paper" else 2 * N + 2)


def test_features_are_computed_once_per_x(problem: HyperRepresentation, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    prepare = HyperRepresentation.prepare

    def counted(self: HyperRepresentation, x: object, examples: object) -> object:
        calls.append(x)
        return prepare(self, x, examples)  # type: ignore[arg-type]

    monkeypatch.setattr(HyperRepresentation, "prepare", counted)
    settings = {"iterations": 3, "evaluate_every": 10**6, "solution_every": 0}
    simulate(problem, "fednest", local_steps=3, **settings, **STEPS)
    # two evaluations and three iterations, a lower and an upper part each; before them the problem is looked over (4
    # calls on one client's examples) and weighed (1)
    assert len(calls) <= 5 + 2 * 2 + 3 * 2

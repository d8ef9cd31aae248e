"""What a round carries: vectors and bytes counted by hand."""

from __future__ import annotations

import pytest

from tests.algorithm_table import SHARED
from tests.algorithm_table.row import Options, Transcript
from tests.problem_table import DX, DY, M, problem_for, quadratic
from tests.runs import traced

DIMENSION = {"x": DX, "h": DX, "fx": DX, "qx": DX, "mx": DX}
DIMENSION |= {"points": 3 * DY, "f": 3, "gxs": 3 * DX}
"""Of three samples, one after another."""
TRANSCRIPTS = [(name, *travels) for name, row in SHARED.items() for travels in row.travels]


def length(names: str) -> int:
    return sum(DIMENSION.get(name, DY) for name in names.split())


@pytest.mark.filterwarnings("ignore:aggitd-aq. mixing takes the noise")
@pytest.mark.parametrize(("name", "options", "transcript"), TRANSCRIPTS)
@pytest.mark.parametrize("asked", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_travels(name: str, options: Options, transcript: list[Transcript], asked: int | None, dtype: str) -> None:
    """Per round: the vectors down that a client does not hold yet in this iteration, and the vectors up."""
    if name == "fedmbo" and asked is not None:
        pytest.skip("other clients in every round: counted in a test of its own")
    result = traced(problem_for(name), name, 2, **options, clients_per_round=asked, dtype=dtype, evaluate_every=1)
    clients, item = asked or M, {"float32": 4, "float64": 8}[dtype]
    rounds = [each for iteration in transcript for each in iteration]
    total = result.communication
    assert total["rounds"] == len(rounds)
    assert total["messages"] == 2 * clients * len(rounds)
    assert total["vectors_down"] == clients * sum(len(down.split()) for down, _ in rounds)
    assert total["vectors_up"] == clients * sum(len(up.split()) for _, up in rounds)
    assert total["downlink_bytes"] == clients * item * sum(length(down) for down, _ in rounds)
    assert total["uplink_bytes"] == clients * item * sum(length(up) for _, up in rounds)
    first = result.history[1]
    assert first["round"] == len(transcript[0])
    assert first["downlink_bytes"] == clients * item * sum(length(down) for down, _ in transcript[0])
    assert first["uplink_bytes"] == clients * item * sum(length(up) for _, up in transcript[0])


def test_clients_that_are_sampled_anew_are_sent_what_they_lack() -> None:
    """fedmbo, T = 1, N' = 2: x y and y+ to S; then y+, p and the x of that iteration to the clients of each factor."""
    options = {"lower_rounds": 1, "neumann_terms": 3, "indices": [2, 2, 2], "upper_local_steps": 0}
    result = traced(quadratic(), "fedmbo", 3, **options, clients_per_round=2)
    assert result.trace is not None
    vectors = 0
    for entry in result.trace:
        inner, gradient, first, second, last = map(set, entry.clients)
        assert inner == last
        has_x, has_y = set(inner), set(inner)  # y is sent to S for the lower step; y+ is another vector
        vectors += 2 * len(inner)
        has_y = set()
        for asked, more in ((gradient, 0), (first, 1), (second, 1), (last, 1)):
            vectors += len(asked - has_x) + len(asked - has_y) + more * len(asked)
            has_x, has_y = has_x | asked, has_y | asked
    assert result.communication["vectors_down"] == vectors
    sets = [tuple(each.tolist()) for entry in result.trace for each in entry.clients]
    assert len(set(sets)) > 4

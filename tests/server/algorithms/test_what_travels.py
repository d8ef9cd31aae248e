"""What a round carries: vectors and bytes counted by hand."""

from __future__ import annotations

import pytest

from tests.algorithm_table import GLOBAL
from tests.algorithm_table.row import Options, Transcript
from tests.problem_table import DX, DY, M, quadratic
from tests.runs import traced

DIMENSION = {"x": DX, "h": DX, "fx": DX, "qx": DX}
TRANSCRIPTS = [(name, *travels) for name, row in GLOBAL.items() for travels in row.travels]


def length(names: str) -> int:
    return sum(DIMENSION.get(name, DY) for name in names.split())


@pytest.mark.parametrize(("name", "options", "transcript"), TRANSCRIPTS)
@pytest.mark.parametrize("asked", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_travels(name: str, options: Options, transcript: list[Transcript], asked: int | None, dtype: str) -> None:
    """Per round: the vectors down that a client does not hold yet in this iteration, and the vectors up."""
    result = traced(quadratic(), name, 2, **options, clients_per_round=asked, dtype=dtype, evaluate_every=1)
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

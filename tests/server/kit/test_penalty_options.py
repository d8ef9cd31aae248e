"""Options of the first-order methods: the lower step that matches a penalty, and the inner steps of a local level."""

from __future__ import annotations

from typing import Any

import pytest

from fedbilevel import simulate
from fedbilevel.errors import BadInput
from server.kit.algorithm import find

SYSTEMS = {"network": {"downlink_mbps": 1e15, "uplink_mbps": 1e15, "latency_ms": 0, "examples_per_second": 1.0}}


def test_the_lower_step_matches_the_penalty_unless_it_is_given() -> None:
    """eta_y = lower_step / (1 + lam)."""
    for name in ("f2sa", "memfbo"):
        o: Any = find(name).parse({"lower_step": 0.3, "penalty": 5.0})
        assert [o.penalised_step(lam) for lam in (5.0, 2.0, 0.0)] == pytest.approx([0.05, 0.1, 0.3])
        o = find(name).parse({"lower_step": 0.3, "penalised_lower_step": 0.02})
        assert o.penalised_step(5.0) == 0.02


@pytest.mark.parametrize(("options", "steps"), [({}, 5), ({"local_steps": 1}, 1), ({"local_steps": 7}, 7)])
def test_a_local_lower_level_takes_five_inner_steps_unless_it_is_told(options: dict[str, Any], steps: int) -> None:
    """MemFBO differentiates a support example twice a step and a query example once; each task has one of both."""
    given: dict[str, Any] = {"iterations": 1, "tasks_per_client": 3, "evaluation_tasks": 1, "systems": SYSTEMS}
    result = simulate("quadratic_tasks", "memfbo", **given, **options)
    assert result.communication["simulated_seconds"] == pytest.approx(3 * steps * (2 + 1), rel=1e-9)


def test_a_local_lower_level_takes_one_number_of_steps() -> None:
    for steps in ({"epochs": 2}, [1] * 8):
        with pytest.raises(
            BadInput, match=r"^options\.local_steps: got .*an integer of at least 1 where the lower level"
        ):
            simulate("quadratic_tasks", "memfbo", iterations=1, local_steps=steps)
